"""infer.py as people run it: exit statuses, one line an error, a kill in the middle, one's own film."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import infer as entry
from common.command import run
from configs import load_config, model_config_path
from datasets.readers import read_labels, write_labels
from models import build_network, save_weights

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = load_config(model_config_path("aott"))
    path = tmp_path_factory.mktemp("weights") / "aott.safetensors"
    save_weights(path, build_network(config).state_dict(), config)
    return path


def make_data(root: Path, frames: int) -> Path:
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for video in ("a", "b"):
        for folder in ("JPEGImages", "Annotations"):
            (root / "val" / folder / video).mkdir(parents=True)
        for index in range(frames):
            image, labels = ground.copy(), np.zeros((48, 64), np.uint8)
            labels[10:30, index % 30 : 20 + index % 30] = 1
            image[labels == 1] = (200, 30, 30)
            cv2.imwrite(str(root / f"val/JPEGImages/{video}/{index:05d}.jpg"), image)
            write_labels(root / f"val/Annotations/{video}/{index:05d}.png", labels)
    return root


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "infer.py"), *map(str, arguments)]


def run_infer(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd or REPOSITORY,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_killed_and_started_again_it_ends_with_the_same_masks(weights, tmp_path):
    data = make_data(tmp_path / "data", 40)
    whole = run_infer("--weights", weights, "--data", data, "--output", tmp_path / "whole", "--device", "cpu")
    assert whole.returncode == 0, whole.stderr
    assert f"wrote {tmp_path / 'whole/masks'}" in whole.stdout and "frames/s" in whole.stdout
    again = ("--weights", weights, "--data", data, "--output", tmp_path / "cut", "--device", "cpu")
    running = subprocess.Popen(command(*again), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and len(list((tmp_path / "cut").glob("masks/b/*.png"))) < 2:
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert running.returncode == -signal.SIGKILL, "it finished before it could be killed: use a longer video"
    after = run_infer(*again)
    assert after.returncode == 0 and "1 videos were finished before and skipped" in after.stdout, after.stderr
    names = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole/masks").rglob("*.png"))
    assert len(names) == 80
    assert names == sorted(path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut/masks").rglob("*"
                                                                           ) if path.suffix == ".png")
    assert all(np.array_equal(read_labels(tmp_path / "whole" / name), read_labels(tmp_path / "cut" / name))
               for name in names)


def test_sigterm_leaves_with_143(weights, tmp_path):
    data = make_data(tmp_path / "data", 60)
    running = subprocess.Popen(command("--weights", weights, "--data", data, "--output", tmp_path / "out"),
                               cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not list((tmp_path / "out").glob("masks/a/*.png")):
        time.sleep(0.02)
    running.terminate()
    _, said = running.communicate()
    assert running.returncode == 143 and "Traceback" not in said
    assert not (tmp_path / "out/videos/b.json").exists()


@pytest.mark.parametrize("arguments, said", [
    (("memory.polcy=fifo",), "memory.polcy: unknown key .* did you mean 'policy'"),
    (("memory.policy=fifi",), "memory.policy: no policy 'fifi'"),
    (("--model", "aotx"), "--model aotx: no such variant; did you mean"),
    (("--model", "deaott"), "holds weights of aott, not of deaott"),
    (("--split", "train"), "train"),
    (("--videos", "a,zz"), "zz"),
    (("--video", "nothing.mp4"), "--data or --video: name one of them"),
])
def test_what_the_user_can_mend_is_one_line_and_status_2(arguments, said, weights, tmp_path, monkeypatch):
    data = make_data(tmp_path / "data", 2)
    stderr = io.StringIO()
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, ("--weights", weights, "--data", data, "--output", out)),
                                      *arguments])
    with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as left:
        run(entry.main)
    assert left.value.code == 2 and re.search(said, stderr.getvalue()), stderr.getvalue()
    assert stderr.getvalue().count("\n") == 1 and not out.exists()


def test_bad_data_is_found_before_work_starts_all_at_once(weights, tmp_path):
    data = make_data(tmp_path / "data", 3)
    (data / "val/JPEGImages/a/00001.jpg").write_bytes(b"")
    cv2.imwrite(str(data / "val/Annotations/b/00000.png"), np.zeros((48, 64, 3), np.uint8))
    result = run_infer("--weights", weights, "--data", data, "--output", tmp_path / "out")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "a/00001.jpg" in result.stderr and "b/00000.png" in result.stderr
    assert not (tmp_path / "out").exists()


def test_ones_own_film_with_a_second_mask(weights, tmp_path):
    film = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for index in range(5):
        image = np.full((48, 64, 3), 90, np.uint8)
        image[10:30, 5 + index : 25 + index] = (30, 30, 220)
        film.write(image)
    film.release()
    first, later = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    first[10:30, 5:25], later[36:46, 40:60] = 255, 2
    write_labels(tmp_path / "first.png", first)
    write_labels(tmp_path / "later.png", later)
    result = run_infer("--weights", weights, "--video", tmp_path / "film.mp4", "--mask", tmp_path / "first.png",
                   "--mask", f"3:{tmp_path / 'later.png'}", "--output", tmp_path / "out", "--overlay")
    assert result.returncode == 0, result.stderr
    masks = sorted((tmp_path / "out/masks/film").glob("*.png"))
    assert [path.stem for path in masks] == [f"{index:08d}" for index in range(5)]
    assert set(np.unique(read_labels(masks[0]))) == {0, 1}
    assert (read_labels(masks[3])[36:46, 40:60] == 2).all()
    assert (tmp_path / "out/overlays/film.mp4").is_file()
