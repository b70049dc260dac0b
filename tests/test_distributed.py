"""Two processes (gloo, on the CPU) train as one does, only the first one writes, and validation is shared."""

import json
import os
import subprocess
import sys

import pytest
import torch

from models import load_weights
from tests.conftest import REPOSITORY
from tests.training_helper import SETTINGS, lines, small_data


def launched(ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train.py"] if ranks == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, "--device", "cpu", *arguments], cwd=REPOSITORY, env=environment,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data") / "set", validation=2)


def test_two_ranks_equal_one_and_each_takes_half_of_the_batch(data, tmp_path):
    (tmp_path / "tiny.yaml").write_text("{}\n")
    # Own masks feed the memory in the last step: the identity bank then has no gradient on any rank.
    settings = [*SETTINGS, f"data.root={data}", "train.steps=3", "train.batch=4", "model.drop_path=0.2",
                "train.feed_predictions_from=0.6"]
    runs = {ranks: tmp_path / f"ranks{ranks}" for ranks in (1, 2)}
    for ranks, run in runs.items():
        done = launched(ranks, "--config", str(tmp_path / "tiny.yaml"), "--output", str(run), *settings)
        assert done.returncode == 0, done.stderr
    one, two = (load_weights(run / "weights.safetensors")[1] for run in runs.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)  # a step changes up to 2e-4
    for first, second in zip(lines(runs[1], "loss", "gradient"), lines(runs[2], "loss", "gradient"), strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    assert len(lines(runs[2], "loss")) == 3, "one rank writes, not both"
    assert len(list((runs[2] / "tensorboard").iterdir())) == 1
    assert len(list((runs[2] / "val" / "0000003" / "videos").iterdir())) == 2
    scores = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["validation"] for run in runs.values()]
    assert scores[0] == pytest.approx(scores[1], abs=0.5), "each rank segmented one video"


def test_a_mistake_is_said_once_and_ends_all_ranks(data, tmp_path):
    (tmp_path / "tiny.yaml").write_text("{}\n")
    done = launched(2, "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "run"), *SETTINGS,
                    f"data.root={data}", "train.batch=3")
    assert done.returncode != 0 and "train.batch: 3 clips do not divide" in done.stderr
