"""infer.py as people run it: exit statuses, one line an error, a kill in the middle, one's own film."""

import contextlib
import io
import json
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
from common.errors import UserError
from configs import load_config, model_config_path
from datasets.readers import read_labels, write_labels
from inference.results import Outputs, discard
from inference.writer import PALETTE, Overlays, overlay
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


@pytest.mark.parametrize("policy, gap, told", [
    ("rmem", 9999, True), ("rmem", 4, False), ("references", 9999, False), ("unbounded", 9999, False)])
def test_a_rule_that_never_gets_a_frame_is_told_of(policy, gap, told, capsys):
    config = load_config(model_config_path("aott"), [f"memory.policy={policy}", f"memory.gap={gap}"])
    videos = [type("Video", (), {"name": name, "size": lambda self: (48, 64), "__len__": lambda self: 5})()
              for name in "ab"]
    entry.announce(videos, videos, config, torch.device("cpu"))
    assert ("never gets a frame" in capsys.readouterr().err) == told


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
    assert after.returncode == 0 and "finished before and skipped: 1 of 2 videos" in after.stdout, after.stderr
    names = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole/masks").rglob("*.png"))
    assert len(names) == 80
    assert names == sorted(path.relative_to(tmp_path / "cut") for path in (tmp_path / "cut/masks").rglob("*"
                                                                           ) if path.suffix == ".png")
    assert all(np.array_equal(read_labels(tmp_path / "whole" / name), read_labels(tmp_path / "cut" / name))
               for name in names)


def test_what_inspect_writes_the_report_reads(weights, tmp_path):
    data, out = make_data(tmp_path / "data", 6), tmp_path / "out"
    done = run_infer("--weights", weights, "--data", data, "--output", out, "--device", "cpu", "--inspect",
                     "memory.gap=2")
    assert done.returncode == 0, done.stderr
    report = [sys.executable, "-m", "tools.memory_report", str(out), "--data", str(data), "--split", "val"]
    page = subprocess.run(report, cwd=REPOSITORY, capture_output=True, text=True)
    assert page.returncode == 0, page.stderr
    text = (out / "memory_report.html").read_text()
    assert "a (6 frames)" in text and text.count("data:image/jpeg") >= 4  # reference and two frames, of two videos


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


def test_sigterm_ends_several_streams(weights, tmp_path):
    data = make_data(tmp_path / "data", 60)
    running = subprocess.Popen(command("--weights", weights, "--data", data, "--output", tmp_path / "out",
                                       "inference.streams=2"),
                               cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not all(list((tmp_path / "out").glob(f"masks/{name}/*.png")) for name in "ab"):
        time.sleep(0.02)
    running.terminate()
    _, said = running.communicate()
    assert running.returncode == 143 and "Traceback" not in said
    assert not list((tmp_path / "out").glob("videos/*.json"))


def test_torchrun_shares_the_videos(weights, tmp_path):
    data = make_data(tmp_path / "data", 4)
    arguments = ("--weights", weights, "--data", data, "--device", "cpu", "--output")
    together = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         *command(*arguments, tmp_path / "two")[1:]], capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("2 videos segmented") == 1, "one process speaks"
    summary = json.loads((tmp_path / "two/run.json").read_text())
    assert [process["frames"] for process in summary["processes"]] == [4, 4] and summary["frames"] == 8
    assert run_infer(*arguments, tmp_path / "one").returncode == 0
    for path in (tmp_path / "one/masks").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize("arguments, said", [
    (("lr=1", "seed=1"), "lr: unknown key .* and the command line; did you mean 'train.lr'"),
    (("memory.polcy=fifo",), "memory.polcy: unknown key .* did you mean 'memory.policy'"),
    (("memory.policy=fifi",), "memory.policy: no policy 'fifi'"),
    (("--config", "deaotl"), "deaotl: no such configuration file; did you mean configs/models/deaotl.yaml"),
    (("--model", "aotx"), "--model aotx: no such variant; did you mean"),
    (("--model", "deaott"), "holds weights of aott, not of deaott"),
    (("--split", "train"), "train"),
    (("--videos", "a,zz"), "zz"),
    (("--mask", "first.png"), "--mask: goes with --video"),
    (("--video", "nothing.mp4"), "--data or --video: name one of them"),
    (("model.heads=7",), "model.heads: .*256 channels do not divide into so many heads"),
    (("model.channels=65",), "model.channels: .*multiple of 16"),
    (("inference.scales=[.inf]",), r"inference.scales.0: .*finite"),
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


@pytest.mark.parametrize("mask, said", [
    (np.zeros((48, 64), np.uint8), r"mask\.png: the mask is empty; paint"),
    (np.ones((20, 30), np.uint8), r"mask\.png: the mask is 30x20, its frame 64x48; make them equal"),
    (np.ones((48, 64, 3), np.uint8), r"mask\.png: RGB colours instead of a palette; convert"),
    (None, r"mask\.png: the mask is missing"),
], ids=["empty", "other size", "RGB", "missing"])
def test_a_mask_that_cannot_be_used_is_named_before_work_starts(mask, said, weights, tmp_path, monkeypatch):
    if mask is not None:
        cv2.imwrite(str(tmp_path / "mask.png"), mask)
    video = make_data(tmp_path / "data", 2) / "val/JPEGImages/a"
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, (
        "--weights", weights, "--video", video, "--mask", tmp_path / "mask.png", "--output", tmp_path / "out"))])
    with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as left:
        run(entry.main)
    assert left.value.code == 2 and re.search(said, stderr.getvalue()), stderr.getvalue()
    assert stderr.getvalue().count("\n") == 1 and not (tmp_path / "out").exists()


def call(monkeypatch, *arguments: object) -> tuple[int, str]:
    """The exit status of infer.py in this process, and what it said about errors and doubts."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, arguments), "--device", "cpu"])
    with contextlib.redirect_stderr(stderr):
        try:
            run(entry.main)
        except SystemExit as left:
            return int(left.code or 0), stderr.getvalue()
    return 0, stderr.getvalue()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")
            if path.is_file() and path.name != "run.json"}


@pytest.mark.parametrize("changed", ["JPEGImages/a/00002.jpg", "Annotations/a/00000.png"])
def test_masks_of_another_data_set_are_neither_kept_as_these_nor_lost(changed, weights, tmp_path, monkeypatch):
    data, other = make_data(tmp_path / "data", 3), make_data(tmp_path / "other", 3)
    arguments = ("--weights", weights, "--output", tmp_path / "out", "--data")
    assert call(monkeypatch, *arguments, data)[0] == 0
    before = contents(tmp_path / "out")
    assert call(monkeypatch, *arguments, other)[0] == 0 and contents(tmp_path / "out") == before, "the same files"
    path = other / "val" / changed
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    write_labels(path, read_labels(path)[::-1].copy()) if path.suffix == ".png" else cv2.imwrite(str(path), 255 - image)
    status, said = call(monkeypatch, *arguments, other)
    assert status == 2 and "was made from other frames or given masks" in said and "videos/a.json" in said
    assert contents(tmp_path / "out") == before


def test_a_film_of_the_same_name_replaces_nothing(weights, tmp_path, monkeypatch):
    video, other = (make_data(tmp_path / name, 2) / "val/JPEGImages/a" for name in ("one", "two"))
    cv2.imwrite(str(other / "00001.jpg"), np.zeros((48, 64, 3), np.uint8))
    mask = tmp_path / "one/val/Annotations/a/00000.png"
    arguments = ("--weights", weights, "--output", tmp_path / "out", "--mask", mask, "--video")
    assert call(monkeypatch, *arguments, video)[0] == 0
    before = contents(tmp_path / "out")
    status, said = call(monkeypatch, *arguments, other)
    assert status == 2 and "out/masks/a" in said and contents(tmp_path / "out") == before


def test_what_a_video_had_before_it_is_made_anew_it_has_again(weights, tmp_path, monkeypatch):
    data, out = make_data(tmp_path / "data", 2), tmp_path / "out"
    arguments = ("--weights", weights, "--data", data, "--output", out)
    assert call(monkeypatch, *arguments, "--save-scores", "--inspect")[0] == 0
    before = contents(out)
    assert call(monkeypatch, *arguments, "--overlay")[0] == 0
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name.parts[0] in ("masks", "scores"))
    assert {name.parts[0] for name in after} >= {"overlays", "scores", "inspect"}


def test_a_stop_while_a_finished_video_is_made_anew_takes_nothing_away(weights, tmp_path, monkeypatch):
    data, out = make_data(tmp_path / "data", 2), tmp_path / "out"
    arguments = ("--weights", weights, "--data", data, "--output", out)
    assert call(monkeypatch, *arguments, "--save-scores")[0] == 0
    before = contents(out)

    def stopped(*_):
        raise UserError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("inference.runner._add_picture", stopped)
        assert call(patched, *arguments, "--overlay")[0] == 2
    assert {name: data for name, data in contents(out).items() if name.parts[0] != ".remade"} == before
    assert call(monkeypatch, *arguments, "--overlay")[0] == 0
    assert {name.parts[0] for name in contents(out)} == {"masks", "scores", "overlays", "videos"}


@pytest.mark.parametrize("rate", [119.831, 239.873, 90000.0])
def test_a_film_of_any_rate_gets_its_overlay(tmp_path, rate):
    films = Overlays(tmp_path / "a", tmp_path / "a.mp4", rate)
    films.add("0", np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8))
    films.finish()
    assert (tmp_path / "a.mp4").is_file()


@pytest.mark.parametrize(("option", "message"), [
    (("--videos", "a"), "--videos: goes with --data"), (("--split", "val"), "--split: goes with --data"),
    (("data.objects=first",), "data.objects: goes with --data"), (("data.split=test",), "data.split: is of training"),
])
def test_options_of_data_sets_are_refused_for_a_video_of_ones_own(weights, tmp_path, monkeypatch, option, message):
    status, said = call(monkeypatch, "--weights", weights, "--video", tmp_path, "--mask", tmp_path / "m.png",
                        "--output", tmp_path / "out", *option)
    assert status == 2 and message in said


def test_want_of_memory_is_said_in_one_line(weights, tmp_path, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    def greedy(*_):
        raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("inference.runner.segment_video", greedy)
    status, said = call(monkeypatch, "--weights", weights, "--data", make_data(tmp_path / "data", 2), "--output",
                        tmp_path / "out")
    assert status == 2 and "out of memory" in said and "memory.policy" in said


def test_an_overlay_has_a_contour_on_every_side():
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7] = 1
    picture = overlay(np.zeros((9, 9, 3), np.uint8), labels)
    full = (picture == PALETTE[1]).all(-1)
    assert full[2:7, 2:7].sum() == full.sum() == 16  # the square's own border, and nothing outside
    assert not picture[labels == 0].any()


def test_what_was_lost_of_a_finished_video_is_made_again(weights, tmp_path, monkeypatch):
    data, out = make_data(tmp_path / "data", 2), tmp_path / "out"
    arguments = ("--weights", weights, "--data", data, "--output", out, "--save-scores", "--overlay")
    assert call(monkeypatch, *arguments)[0] == 0
    lost = [out / "scores/a/00001.npz", out / "overlays/b/00000.jpg"]
    for path in lost:
        path.unlink()
    assert call(monkeypatch, *arguments)[0] == 0 and all(path.is_file() for path in lost)


def test_discarding_a_video_leaves_one_whose_name_begins_alike(tmp_path):
    outputs = Outputs(tmp_path)
    names = (f".clip{end}" for end in (".left.part.mp4", ".7.part.mp4", ".left.7.part.jsonl", ".8.7.part.jsonl"))
    others = [tmp_path / ("overlays" if name.endswith("mp4") else "inspect") / name for name in names]
    own = [tmp_path / "overlays/.clip.part.mp4", tmp_path / "inspect/.clip.7.part.jsonl"]
    for path in (*others, *own):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    discard(outputs, "clip")
    assert all(path.exists() for path in others) and not any(path.exists() for path in own)


def test_nothing_is_written_into_the_data(weights, tmp_path, monkeypatch):
    data = make_data(tmp_path / "data", 2)
    status, said = call(monkeypatch, "--weights", weights, "--data", data, "--output", data / "val/JPEGImages/out")
    assert status == 2 and "lies inside" in said and not (data / "val/JPEGImages/out").exists()
    (tmp_path / "file").touch()
    status, said = call(monkeypatch, "--weights", weights, "--data", data, "--output", tmp_path / "file/out")
    assert status == 2 and f"{tmp_path / 'file'} is a file" in said


def test_a_first_mask_without_an_object_is_told_before_work_starts(weights, tmp_path, monkeypatch):
    data = make_data(tmp_path / "data", 3)
    write_labels(data / "val/Annotations/b/00000.png", np.zeros((48, 64), np.uint8))
    arguments = ("--weights", weights, "--data", data, "--output", tmp_path / "out")
    status, said = call(monkeypatch, *arguments, "data.objects=first")
    assert status == 2 and "b/00000.png: shows no object" in said and not (tmp_path / "out").exists()
    assert call(monkeypatch, *arguments, "data.objects=late")[0] == 0


def test_a_film_that_ends_before_its_time_is_said(weights, tmp_path, monkeypatch):
    path = tmp_path / "film.avi"
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(20):
        film.write(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    film.release()
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    labels = np.zeros((48, 64), np.uint8)
    labels[10:30, 10:30] = 1
    write_labels(tmp_path / "mask.png", labels)
    for _ in range(2):  # and again where it was finished before
        status, said = call(monkeypatch, "--weights", weights, "--video", path, "--mask", tmp_path / "mask.png",
                            "--output", tmp_path / "out")
        assert status == 0 and re.search(r"film: \d+ frames could be decoded of the 20 that it announces", said)


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
    film = cv2.VideoCapture(str(tmp_path / "out/overlays/film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and film.get(cv2.CAP_PROP_FPS) == 10


@pytest.mark.slow
def test_memory_is_flat_from_200_frames_to_2000(weights, tmp_path):
    """The whole process's peak, with a bounded policy, differs by less than 5 %."""
    peaks = []
    for frames in (200, 2000):
        data = make_data(tmp_path / f"data{frames}", frames)
        result = run_infer("--weights", weights, "--data", data, "--videos", "a", "--output", tmp_path / f"out{frames}",
                           "--device", "cpu", "memory.policy=fifo", "memory.gap=5")
        assert result.returncode == 0, result.stderr
        peaks.append(json.loads((tmp_path / f"out{frames}/run.json").read_text())["peak_bytes"])
    assert peaks[1] <= 1.05 * peaks[0], peaks
