"""The policy in docs/memory.md runs as it is printed, from the configuration, and keeps the rules for policies."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from configs import load_config, model_config_path
from configs.schema import MemoryConfig
from inference import Predictor
from models import build_network
from models.memory import POLICIES, Bank, Candidate, Evidence, build_policy

OURS = 11  # policies that the page lists; somebody's own need not stand there
PAGE = Path(__file__).resolve().parent.parent / "docs" / "memory.md"


@pytest.fixture
def surest(tmp_path):
    """The printed file, imported; its name is forgotten afterwards."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 32  # a rule is about thirty lines
    taken = POLICIES.pop("surest", None)  # by somebody who followed the page
    path = tmp_path / "surest.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("surest", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield "surest"
    del POLICIES["surest"]
    if taken is not None:
        POLICIES["surest"] = taken


def frame(seed: int) -> torch.Tensor:
    return (255 * torch.rand(49, 65, 3, generator=torch.Generator().manual_seed(seed))).byte()


def test_the_printed_policy_runs_from_the_configuration(surest):
    torch.manual_seed(0)
    config = load_config(model_config_path("aott"), [
        f"memory.policy={surest}", "memory.capacity=2", "memory.gap=1", "model.channels=64", "model.heads=2"])
    predictor = Predictor.from_config(config, build_network(config))
    predictor.inspect = True
    labels = torch.zeros(49, 65, dtype=torch.uint8)
    labels[10:30, 10:40] = 1
    predictor.start(frame(0), labels)
    confidence = {}
    for number in range(1, 12):
        predictor.step(frame(number))
        group = predictor.inspection()["groups"][0]
        confidence[number] = group["objects"][1]["confidence"]
    assert group["references"] == [0] and len(group["stored"]) == 3
    kept = [number for number in group["stored"] if number]
    assert max(confidence, key=confidence.get) in [*kept, 11]  # the surest frame never left


def test_the_printed_policy_never_looks_at_values(surest):
    with FakeTensorMode(), torch.device("cuda"):
        fused = [(torch.empty(1, 4, 8), torch.empty(1, 4, 8))]
        policy = build_policy(MemoryConfig(policy=surest, capacity=2))
        bank = Bank(fused, policy.slots())
        seen = Evidence(torch.empty(2), torch.empty(2), torch.empty(()), torch.empty(()), torch.empty(4))
        for number in range(1, 6):
            slot = policy.choose(bank, Candidate(number, fused[0][0], 2, evidence=seen))
            bank.write(fused, slot, number)
        assert slot.device.type == "cuda" and slot.dtype == torch.int64


def test_every_policy_and_key_of_the_page_exists():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", page, re.MULTILINE)
    assert set(rows) <= set(POLICIES) and len(rows) == len(set(rows)) == OURS
    keys = set(re.findall(r"`((?:memory|model|train)\.[a-z_]+)`", page))
    config = load_config()
    for key in keys:
        section, name = key.split(".")
        assert hasattr(getattr(config, section), name), key
