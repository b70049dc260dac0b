"""Running a predictor over videos: order, resumption, what is never looked at, what is never left behind."""

import errno
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from configs import load_config, model_config_path
from datasets.readers import read_labels, write_labels
from datasets.records import open_videos
from inference import Predictor, runner
from inference.runner import Outputs, claim, identity, run_videos, share
from inference.sources import DatasetSource, decode_ahead
from inference.writer import Writer

SIZE = (48, 64)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    import torch

    torch.manual_seed(0)
    return Predictor.from_config(load_config(model_config_path("aott")))


@pytest.fixture()
def data(tmp_path):
    """Two videos: in `late` the first frame is empty and object 7 joins object 3 later; names step by five."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    for video, frames in (("late", 6), ("short", 3)):
        for index in range(frames):
            image, labels = ground.copy(), np.zeros(SIZE, np.uint8)
            if index >= (1 if video == "late" else 0):
                labels[8:24, 4 + 3 * index : 24 + 3 * index] = 3
            if index >= 3:
                labels[30:44, 20:40] = 7
            image[labels == 3], image[labels == 7] = (250, 20, 20), (20, 20, 250)
            labels[0, 0] = 255
            stem = f"{1 + 5 * index:08d}"
            (tmp_path / "data/val/JPEGImages" / video).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / f"data/val/JPEGImages/{video}/{stem}.jpg"), image[:, :, ::-1])
            write_labels(tmp_path / f"data/val/Annotations/{video}/{stem}.png", labels)
    return tmp_path / "data"


def sources(root, rule="late") -> list[DatasetSource]:
    return [DatasetSource(video, rule) for video in open_videos(root, "val").videos]


def masks_of(folder) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): read_labels(path) for path in sorted((folder / "masks").rglob("*.png"))}


def test_every_frame_gets_a_mask_in_the_data_sets_ids_and_given_pixels_win(predictor, data, tmp_path):
    assert run_videos(predictor, sources(data), Outputs(tmp_path / "out")) == {"done": 2, "skipped": 0}
    masks = masks_of(tmp_path / "out")
    assert len(masks) == 9 and all(mask.shape == SIZE for mask in masks.values())
    assert not masks["masks/late/00000001.png"].any(), "before the first object a mask is empty"
    given = read_labels(data / "val/Annotations/late/00000006.png")
    assert np.array_equal(masks["masks/late/00000006.png"], np.where(given == 255, 0, given))
    joined = masks["masks/late/00000016.png"]
    assert (joined[30:44, 20:40] == 7).all() and set(np.unique(joined)) <= {0, 3, 7}
    with Image.open(tmp_path / "out/masks/late/00000016.png") as image:
        assert image.mode == "P" and image.getpalette()[3:6] == [128, 0, 0]


def test_only_first_appearances_are_seen(predictor, data, tmp_path):
    """Changing any annotation pixel that is not an object's first appearance changes no prediction."""
    run_videos(predictor, sources(data), Outputs(tmp_path / "before"))
    for stem in ("00000011", "00000016", "00000021", "00000026"):
        path = data / f"val/Annotations/late/{stem}.png"
        labels = read_labels(path)
        if stem != "00000016":
            labels[:] = np.where(labels == 7, 3, 0)[::-1]
        else:  # object 7 appears here: object 3's pixels may change, 7's may not
            labels[labels == 3] = 0
            labels[40:46, 50:60] = 3
        write_labels(path, labels)
    run_videos(predictor, sources(data), Outputs(tmp_path / "after"))
    before, after = masks_of(tmp_path / "before"), masks_of(tmp_path / "after")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_finished_video_is_skipped_and_a_broken_one_redone(predictor, data, tmp_path):
    outputs = Outputs(tmp_path / "out")
    run_videos(predictor, sources(data), outputs)
    whole = masks_of(outputs.folder)
    (outputs.folder / "masks/late/00000021.png").unlink()
    assert run_videos(predictor, sources(data), outputs) == {"done": 1, "skipped": 1}
    assert all(np.array_equal(whole[name], mask) for name, mask in masks_of(outputs.folder).items())
    (outputs.folder / "videos/short.json").unlink()
    assert run_videos(predictor, sources(data), outputs) == {"done": 1, "skipped": 1}


def test_streams_change_nothing(predictor, data, tmp_path):
    run_videos(predictor, sources(data), Outputs(tmp_path / "one"))
    run_videos(predictor, sources(data), Outputs(tmp_path / "two"), streams=2)
    one, two = masks_of(tmp_path / "one"), masks_of(tmp_path / "two")
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_overlays_and_scores(predictor, data, tmp_path):
    outputs = Outputs(tmp_path / "out", overlays=True, scores=True)
    run_videos(predictor, sources(data), outputs)
    film = cv2.VideoCapture(str(tmp_path / "out/overlays/late.mp4"))
    assert int(film.get(cv2.CAP_PROP_FRAME_COUNT)) == 6
    assert len(list((tmp_path / "out/overlays/late").glob("*.jpg"))) == 6
    scores = np.load(tmp_path / "out/scores/late/00000021.npz")
    assert scores["ids"].tolist() == [0, 3, 7] and scores["probability"].shape == (3, *SIZE)
    assert abs(scores["probability"].sum(0, dtype=int) - 255).max() <= 2
    winner = scores["ids"][scores["probability"].argmax(0)]
    assert (winner == read_labels(tmp_path / "out/masks/late/00000021.png")).mean() > 0.99
    assert not [path for path in (tmp_path / "out").rglob(".*") if "part" in path.name]


@pytest.mark.parametrize("harm, said", [
    (lambda path: path.write_bytes(b""), "not a readable image"),
    (lambda path: path.write_bytes(path.read_bytes()[:-300]), "cut short|not a readable image"),
    (lambda path: path.unlink(), "missing"),
    (lambda path: cv2.imwrite(str(path), np.zeros((20, 20, 3), np.uint8)), "20x20 pixels in a video of 64x48"),
], ids=["empty", "truncated", "missing", "other size"])
def test_a_bad_frame_is_named_and_no_half_video_counts(harm, said, predictor, data, tmp_path):
    videos = sources(data)
    harm(data / "val/JPEGImages/late/00000021.jpg")
    with pytest.raises(UserError, match=f"late/00000021.jpg.*({said})"):
        run_videos(predictor, videos, Outputs(tmp_path / "out"))
    assert not (tmp_path / "out/videos/late.json").exists()


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(predictor, data, tmp_path, monkeypatch):
    real, written = runner.write_labels, []

    def full(path, labels):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, labels)
        written.append(path)

    monkeypatch.setattr(runner, "write_labels", full)
    with pytest.raises(OSError, match="No space left"):
        run_videos(predictor, sources(data), Outputs(tmp_path / "out"))
    assert not (tmp_path / "out/videos").exists()
    assert len(masks_of(tmp_path / "out")) == 2


def test_a_video_without_any_object_is_an_error(predictor, data, tmp_path):
    for path in (data / "val/Annotations/short").glob("*.png"):
        write_labels(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(UserError, match="short: no mask gives an object"):
        run_videos(predictor, sources(data), Outputs(tmp_path / "out"))


def test_an_output_of_other_weights_or_settings_is_refused(predictor, tmp_path):
    outputs, config = Outputs(tmp_path / "out"), predictor.config
    claim(outputs, identity(config, "a"))
    claim(outputs, identity(config, "a"))
    with pytest.raises(UserError, match="was made with other weights"):
        claim(outputs, identity(config, "b"))
    other = config.model_copy(deep=True)
    other.memory.gap = 5
    with pytest.raises(UserError, match=r"memory\.gap=9999, not 5"):
        claim(outputs, identity(other, "a"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/file").write_text("x")
    with pytest.raises(UserError, match=r"no run of infer\.py"):
        claim(Outputs(tmp_path / "foreign"), identity(config, "a"))


def test_videos_are_shared_out_longest_first_and_each_once():
    class Fake(list):
        name = ""

    videos = []
    for index, length in enumerate((10, 3, 7, 8, 2)):
        videos.append(Fake(range(length)))
        videos[-1].name = str(index)
    parts = [share(videos, rank, 2) for rank in range(2)]
    assert sorted(video.name for part in parts for video in part) == list("01234")
    assert [sum(map(len, part)) for part in parts] == [15, 15]
    assert len(parts[0][0]) == 10


def test_decoding_ahead_keeps_order_is_bounded_and_hands_errors_over():
    taken = []

    def numbers(fail=False):
        for number in range(100):
            if fail and number == 3:
                raise UserError("frame 3: broken")
            taken.append(number)
            yield number

    running = decode_ahead(numbers(), ahead=2)
    assert [next(running) for _ in range(3)] == [0, 1, 2]
    running.close()
    assert len(taken) <= 7, "no more than asked for is decoded ahead"
    got = []
    with pytest.raises(UserError, match="frame 3: broken"):
        for number in decode_ahead(numbers(fail=True)):
            got.append(number)
    assert got == [0, 1, 2]


def test_the_writer_raises_what_failed():
    def fail():
        raise ValueError("cannot")

    with pytest.raises(ValueError, match="cannot"), Writer() as writer:
        writer.put(fail)


def test_run_json_says_what_it_cost(predictor, data, tmp_path):
    import torch

    outputs = Outputs(tmp_path / "out")
    run_videos(predictor, sources(data), outputs)
    runner.summarise(outputs, identity(predictor.config, "hash"), torch.device("cpu"))
    summary = json.loads((tmp_path / "out/run.json").read_text())
    assert summary["frames"] == 9 and summary["identity"]["weights"] == "hash"
    assert summary["model_frames_per_second"] >= summary["frames_per_second"] > 0 and summary["peak_bytes"] > 2**26
    assert [video["video"] for video in summary["videos"]] == ["late", "short"]
    assert summary["videos"][0]["memory_bytes"] > 0
    shutil.rmtree(tmp_path / "out")
