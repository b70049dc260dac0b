"""The scores behind the benchmark of memories, on hand-made videos, and the whole command at its smallest."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory_speed
from benchmarks.memory import RECIPES, ROWS, difference, main, numbers, scored, table, trained
from benchmarks.memory_scores import frames_after_absences, object_scores, silent_scores
from common.errors import UserError
from configs import dump_config, load_config
from datasets.readers import read_labels
from datasets.records import open_videos
from datasets.synthetic import make
from models import build_network, save_weights
from tests.training_helper import tiny

REPOSITORY = Path(__file__).resolve().parent.parent


def test_only_long_absences_count_and_only_the_first_ten_frames_after():
    visible = [True] * 3 + [False] * 99 + [True] * 5 + [False] * 100 + [True] * 4 + [False] * 2 + [True] * 20
    assert frames_after_absences(visible) == [list(range(207, 211))]
    assert frames_after_absences([False] * 150 + [True] * 30) == [list(range(150, 160))]
    assert frames_after_absences([True] * 500) == []


def masks(present: list[bool], value: int = 3) -> list[np.ndarray]:
    frames = []
    for there in present:
        frame = np.zeros((20, 30), np.uint8)
        frame[5:15, 5:15] = value * there
        frames.append(frame)
    return frames


def test_scores_of_a_target_that_is_lost_after_its_absence():
    present = [True] * 50 + [False] * 120 + [True] * 50
    found = [True] * 50 + [False] * 110 + [True] * 10 + [False] * 50
    scores = object_scores(masks(present), masks(found), 3, 0)
    assert scores["after"] == 0 and scores["drop"] == 1
    assert math.isclose(scores["false_alarm"], 10 / 120)
    assert math.isclose(scores["jf"], (49 + 110) / 218)  # the first and the last frame are not scored
    assert math.isclose(scores["visible"], 49 / 98) and len(scores["curve"]) == 218
    perfect = object_scores(masks(present), masks(present), 3, 0)
    assert (perfect["jf"], perfect["after"], perfect["drop"], perfect["false_alarm"]) == (1, 1, 0, 0)


def test_silence_scores_what_predicting_nothing_would(tmp_path):
    data = make(tmp_path / "data", "long", seed=3, videos=(1, 1, 0), frames=400, size=(64, 96))
    video = open_videos(data, "val").videos[0]
    truths = [read_labels(video.mask_path(stem)) for stem in video.frames]
    nothing = [np.zeros_like(truth) for truth in truths]
    first = {int(value): number for number, truth in reversed(list(enumerate(truths)))
             for value in np.unique(truth) if value}
    expected = [object_scores(truths, nothing, value, start)["jf"] for value, start in sorted(first.items())]
    assert silent_scores(video) == pytest.approx(expected) and 0 < max(expected) < 1


def result(score: float, seconds: float = 0.1) -> dict:
    one = {"jf": score, "visible": score, "after": None, "drop": 0.1, "false_alarm": None, "curve": [score] * 40}
    return {name: {"objects": {"1": one}, "seconds": seconds, "bytes": 2_000_000} for name in ("a", "b", "c")}


def test_numbers_are_means_in_points():
    found = numbers(result(0.5))
    assert found["jf"] == 50 and math.isnan(found["after"]) and math.isclose(found["fps"], 10) and found["bytes"] == 2e6


def test_table_says_spread_and_difference():
    baseline = [result(0.5), result(0.6)]
    better = [result(0.6), result(0.8)]
    text = table({"reference + local": baseline, "mine": better}, 49.73)
    assert "| nothing predicted | 49.7 | 0.0 |" in text
    assert "| mine | 70.0 ± 14.1 |" in text and "+15.0 [+15.0, +15.0]" in text and "2.00 MB" in text
    assert "| 70.0 ± 14.1 | – | " in text, "no object comes back after a long absence"
    assert difference(baseline, baseline) == "–"


def test_rows_have_names_of_their_own():
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_without_training_every_row_reads_the_same_weights(tmp_path, monkeypatch, capsys):
    data = make(tmp_path / "data", seed=3, videos=(1, 1, 0), frames=60, size=(64, 96))
    config = tiny(data, "memory.policy=uniform", "memory.gap=5")  # which no row means
    save_weights(tmp_path / "weights.safetensors", build_network(config).state_dict(), config)
    command = ["memory", "--untrained", "--budget", "smoke", "--data", str(data), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--weights", str(tmp_path / "weights.safetensors"), "--rows",
                                      "reference + local;fifo;DDMemory slots, every 1"])
    monkeypatch.setattr("benchmarks.memory.trained", None)  # must not be called
    main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    held = {line.split("|")[1].strip(): float(line.split("|")[8].split()[0]) for line in lines[3:]}
    assert held["fifo"] > held["reference + local"]
    assert held["DDMemory slots, every 1"] > held["reference + local"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"untrained", "table.md", "results.json", "curves.png"}
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError, match="--weights"):
        main()


def test_what_other_settings_made_is_not_taken_for_this(tmp_path):
    data = make(tmp_path / "data", seed=3, videos=(1, 1, 0), frames=24, size=(64, 96))
    videos = open_videos(data, "val").videos
    row = next(row for row in ROWS if row.name == "reference + local")
    for name in "ab":
        config = tiny(data)
        save_weights(tmp_path / f"{name}.safetensors", build_network(config).state_dict(), config)
    first = scored(row, tmp_path / "a.safetensors", videos, tmp_path / "scores")
    assert scored(row, tmp_path / "a.safetensors", videos, tmp_path / "scores") == first
    with pytest.raises(UserError, match="made with other weights or settings"):
        scored(row, tmp_path / "b.safetensors", videos, tmp_path / "scores")
    run = tmp_path / "run"
    run.mkdir()
    settings = [f"data.root={data.resolve()}", "seed=0", "train.steps=4", "train.checkpoint_every=4",
                "train.validate_split=none"]
    (run / "config.yaml").write_text(dump_config(load_config(RECIPES / "memory_benchmark.yaml", settings)))
    (run / "weights.safetensors").touch()
    assert trained(run, "memory_benchmark", data, 0, 4, []) == run / "weights.safetensors"
    for other in ((tmp_path, 0, 4, []), (data, 1, 4, []), (data, 0, 5, []), (data, 0, 4, ["train.lr=1e-3"])):
        with pytest.raises(UserError, match="trained on other data or with other settings"):
            trained(run, "memory_benchmark", *other)


def test_no_row_takes_the_global_memory_of_the_weights(tmp_path):
    videos = open_videos(make(tmp_path / "data", seed=3, videos=(1, 1, 0), frames=12, size=(64, 96)), "val").videos
    config = tiny(tmp_path, "model.family=ddmemory", "model.global_bank=slots", "model.global_gate=open")
    tensors = build_network(config).state_dict()
    save_weights(tmp_path / "slots.safetensors", tensors, config)
    for name in ("reference + local", "unbounded", "DDMemory dense, every 5"):
        row = next(row for row in ROWS if row.name == name)
        with pytest.raises(UserError, match="weights do not fit the model"):
            scored(row, tmp_path / "slots.safetensors", videos, tmp_path / "scores")


@pytest.mark.slow
def test_the_command_resumes(tmp_path):
    command = [sys.executable, "-m", "benchmarks.memory", "--budget", "smoke", "--output", str(tmp_path / "out"),
               "--rows", "reference + local;absence_aware;DDMemory slots, every 5"]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "DDMemory slots, every 5" in (tmp_path / "out" / "table.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rows = [[line for line in done.stdout.splitlines() if line.startswith("|")] for done in (first, second)]
    assert len(rows[0]) == 6 and rows[0] == rows[1]
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}


def test_speed_of_every_memory_beside_the_others(tmp_path, monkeypatch, capsys):
    report = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["memory_speed", "--height", "65", "--width", "97", "--warm", "6", "--frames", "1",
                                      "--report", str(report)])
    memory_speed.main()
    rows = json.loads(report.read_text())["rows"]
    assert set(rows) == set(memory_speed.COMPARED) <= {row.name for row in ROWS}
    assert all(row["fps"] > 0 for row in rows.values()) and "| lvos6 |" in capsys.readouterr().out
    assert rows["unbounded"]["bytes"] > rows["reference + local"]["bytes"]  # a frame was offered
    assert rows["DDMemory dense, every 5"]["bytes"] > rows["reference + local"]["bytes"]
