"""Inspection: the record of a frame says what the memory really did."""

import json

import pytest
import torch

from configs import load_config, model_config_path
from inference import Predictor
from models import build_network

SMALL = ["model.blocks=1", "model.channels=32", "model.heads=2"]


def predictor_of(*overrides: str, name: str = "aott", **boxes) -> Predictor:
    torch.manual_seed(0)
    config = load_config(model_config_path(name), [*SMALL, *overrides])
    predictor = Predictor.from_config(config, build_network(config))
    predictor.inspect = True
    return predictor


def frame(seed: int) -> torch.Tensor:
    return (255 * torch.rand(49, 81, 3, generator=torch.Generator().manual_seed(seed))).byte()


def labels(*ids: int) -> torch.Tensor:
    """Each id gets a box of its own in a grid of boxes."""
    mask = torch.zeros(49, 81, dtype=torch.uint8)
    for place, value in enumerate(ids):
        mask[12 * (place // 4) : 12 * (place // 4) + 10, 20 * (place % 4) : 20 * (place % 4) + 18] = value
    return mask


def test_record_follows_a_fifo():
    predictor = predictor_of("memory.policy=fifo", "memory.capacity=2", "memory.gap=2")
    predictor.start(frame(0), labels(7, 9))
    records = [predictor.inspection()]
    for number in range(1, 9):
        predictor.step(frame(number))
        records.append(json.loads(json.dumps(predictor.inspection())))
    assert [record["number"] for record in records] == list(range(9))
    groups = [record["groups"][0] for record in records]
    assert [group["written"] for group in groups] == [[0], [], [2], [], [4], [], [6], [], [8]]
    assert [group["dropped"] for group in groups] == [[]] * 6 + [[2], [], [4]]
    assert groups[8]["stored"] == [0, 6, 8] and groups[8]["references"] == [0]
    assert set(groups[8]["mass"]) == {"0", "4", "6"} and abs(sum(groups[8]["mass"].values()) - 1) < 1e-2
    assert "mass" not in groups[7] and groups[8]["offered"] and not groups[7]["offered"]
    assert set(groups[8]["objects"]) == {"7", "9"}
    assert groups[8]["bytes"] == predictor.num_bytes()


def test_record_says_what_was_declined():
    predictor = predictor_of("memory.policy=absence_aware", "memory.gap=1", "memory.min_confidence=1.0")
    predictor.start(frame(0), labels(3))
    predictor.step(frame(1))
    group = predictor.inspection()["groups"][0]
    assert group["offered"] and group["written"] == [] and group["stored"] == [0] and group["mass"] == {0: 1.0}


def test_a_late_group_counts_frames_from_the_videos_first():
    predictor = predictor_of("memory.policy=fifo", "memory.gap=1")
    predictor.start(frame(0), labels(*range(1, 10)))
    predictor.step(frame(1))
    predictor.add_objects(frame(2), labels(*[0] * 9, 20, 21))
    first, second = predictor.inspection()["groups"]
    assert first["written"] == [2] and first["references"] == [0, 2]
    assert second["written"] == second["references"] == second["stored"] == [2]
    predictor.step(frame(3))
    first, second = predictor.inspection()["groups"]
    assert first["stored"] == [0, 1, 2, 3] and second["stored"] == [2, 3]
    assert list(first["objects"]) == [*range(1, 10), 20] and list(second["objects"]) == [21]


@pytest.mark.parametrize("form", ["dense", "slots"])
def test_global_memory_reports_its_writes(form):
    predictor = predictor_of(f"model.global_bank={form}", "memory.global_interval=3", name="ddmemory")
    predictor.start(frame(0), labels(1, 2))
    reports = {}
    for number in range(1, 7):
        predictor.step(frame(number))
        group = predictor.inspection()["groups"][0]
        reports[number] = group.get("global")
        assert group["written"] == []  # the bank of references is another matter
    assert {number for number, report in reports.items() if report} == {3, 6}
    assert set(reports[3]) == {"share", "openness", "confidence"}
    assert all(0 <= value <= 1 for value in reports[3].values()) and reports[3]["openness"] > 0 < reports[3]["share"]
    predictor.add_objects(frame(7), labels(0, 0, 3))
    assert predictor.inspection()["groups"][0]["global"]["openness"] > 0  # a late object's frame is written, too


def test_the_share_of_the_global_memory_is_that_of_the_read_before_the_write():
    predictor = predictor_of("memory.global_interval=5", name="ddmemory")
    predictor.start(frame(0), labels(1, 2))
    for number in range(1, 5):
        predictor.step(frame(number))
    network, state = predictor.network, predictor._views[0].states[0]
    _, tokens = network.segment(network.encode(predictor._look(frame(5), predictor._views[0])), state)
    expected = network.describe_read(tokens, state)["share"].item()
    predictor.step(frame(5))
    assert predictor.inspection()["groups"][0]["global"]["share"] == pytest.approx(expected, abs=1e-4)


def test_inspection_changes_no_mask_and_is_off_by_default():
    def masks(inspect: bool) -> torch.Tensor:
        predictor = predictor_of("memory.policy=rmem", "memory.gap=1", "memory.capacity=2")
        predictor.inspect = inspect
        predictor.start(frame(0), labels(1, 2))
        return torch.stack([predictor.step(frame(number)) for number in range(1, 6)]), predictor.inspection()

    (seen, record), (unseen, nothing) = masks(True), masks(False)
    assert torch.equal(seen, unseen) and record and nothing == {}
    config = load_config(model_config_path("aott"), SMALL)
    assert not Predictor.from_config(config).inspect
