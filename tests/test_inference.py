"""Running a predictor over videos: order, resumption, what is never looked at, what is never left behind."""

import dataclasses
import errno
import itertools
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.ranks import Ranks
from configs import load_config, model_config_path
from datasets.readers import read_labels, write_labels
from datasets.records import open_videos
from inference import Predictor
from inference.results import Cost, Outputs, claim, finished, identity, summarise
from inference.runner import expected_bytes, run_videos
from inference.sources import DatasetSource, OwnSource, decode_ahead, read_in_order
from inference.writer import Overlays, Writer
from models import Network
from models.memory import POLICIES

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


def segment(predictor, videos, outputs, streams=1) -> int:
    """What infer.py does with the videos; returns how many were not finished before."""
    waiting = [video for video in videos if not finished(video, outputs)]
    run_videos(predictor, waiting, outputs, streams)
    return len(waiting)


def masks_of(folder) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): read_labels(path) for path in sorted((folder / "masks").rglob("*.png"))}


def test_every_frame_gets_a_mask_in_the_data_sets_ids_and_given_pixels_win(predictor, data, tmp_path):
    assert segment(predictor, sources(data), Outputs(tmp_path / "out")) == 2
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
    assert segment(predictor, sources(data), outputs) == 2
    whole = masks_of(outputs.folder)
    assert segment(predictor, sources(data), outputs) == 0
    mask, record = outputs.folder / "masks/late/00000021.png", outputs.folder / "videos/late.json"
    for harm in (mask.unlink, lambda: mask.write_bytes(mask.read_bytes()[:-20]), lambda: mask.write_bytes(b""),
                 lambda: write_labels(mask, np.zeros((9, 9), np.uint8)), record.unlink, lambda: record.write_text("{")):
        harm()
        assert segment(predictor, sources(data), outputs) == 1
        assert all(np.array_equal(whole[name], found) for name, found in masks_of(outputs.folder).items())


def test_what_was_not_asked_for_before_is_made_at_the_next_call(predictor, data, tmp_path):
    segment(predictor, sources(data), Outputs(tmp_path / "out"))
    for more in ({"overlays": True}, {"scores": True}, {"inspect": True}):
        assert segment(predictor, sources(data), Outputs(tmp_path / "out", **more)) == 2
        assert segment(predictor, sources(data), Outputs(tmp_path / "out", **more)) == 0
    assert segment(predictor, sources(data), Outputs(tmp_path / "out")) == 0


def test_what_a_killed_run_left_is_removed_before_a_video_is_made_anew(predictor, data, tmp_path):
    outputs = Outputs(tmp_path / "out", overlays=True, inspect=True)
    left = [tmp_path / "out" / name for name in (
        "masks/late/.00000001.99.part.png", "overlays/.late.part.mp4", "inspect/.late.99.part.jsonl",
        "scores/late/00000001.npz", "masks/late/99999999.png")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    segment(predictor, sources(data), outputs)
    assert not [path for path in left if path.exists()]


def test_other_masks_for_ones_own_video_replace_it_once_its_record_is_gone(predictor, data, tmp_path):
    outputs, mask = Outputs(tmp_path / "out"), tmp_path / "mask.png"
    folder = data / "val/JPEGImages/short"
    labels = read_labels(data / "val/Annotations/short/00000001.png")
    write_labels(mask, labels)
    assert segment(predictor, [OwnSource(folder, [mask])], outputs) == 1
    assert segment(predictor, [OwnSource(folder, [mask])], outputs) == 0
    write_labels(mask, np.where(labels == 3, 9, 0).astype(np.uint8))
    with pytest.raises(UserError, match=r"choose another --output, or delete .*short\.json"):
        segment(predictor, [OwnSource(folder, [mask])], outputs)
    outputs.record("short").unlink()
    assert segment(predictor, [OwnSource(folder, [mask])], outputs) == 1
    assert set(np.unique(read_labels(tmp_path / "out/masks/short/00000001.png"))) == {0, 9}


def test_a_processor_without_half_precision_computes_in_float32(predictor, data, tmp_path, monkeypatch):
    monkeypatch.setattr("models.precision.computes_in", lambda wanted, device: device.type != "cpu")
    config = load_config(model_config_path("aott"), ["inference.amp=bf16"])
    other = Predictor.from_config(config, predictor.network)
    for name, which in (("one", predictor), ("two", other)):
        segment(which, sources(data), Outputs(tmp_path / name))
    for name, labels in masks_of(tmp_path / "one").items():
        assert np.array_equal(labels, masks_of(tmp_path / "two")[name]), name
    on_cpu, on_cuda = (expected_bytes(config, SIZE, 10, torch.device(name)) for name in ("cpu", "cuda"))
    assert on_cpu == 2 * on_cuda
    own = {"weights": "0" * 64}
    for name, arithmetic in (("cpu", "float32"), ("meta", "bfloat16")):
        summary = summarise(Outputs(tmp_path / "two"), own, config, torch.device(name), [Cost(1, 1.0, 1)])
        assert summary["arithmetic"] == arithmetic


def test_keeping_the_scores_changes_no_mask_in_half_precision(predictor, data, tmp_path, monkeypatch):
    """In bfloat16 a softmax makes ties of scores that differ."""
    monkeypatch.setattr("models.precision.computes_in", lambda *_: True)
    half = Predictor.from_config(load_config(model_config_path("aott"), ["inference.amp=bf16"]), predictor.network)
    for name, scores in (("one", False), ("two", True)):
        segment(half, sources(data), Outputs(tmp_path / name, scores=scores))
    for name, labels in masks_of(tmp_path / "one").items():
        assert np.array_equal(labels, masks_of(tmp_path / "two")[name]), name


def test_streams_change_nothing(predictor, data, tmp_path):
    run_videos(predictor, sources(data), Outputs(tmp_path / "one"))
    run_videos(predictor, sources(data), Outputs(tmp_path / "two"), streams=2)
    one, two = masks_of(tmp_path / "one"), masks_of(tmp_path / "two")
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_an_error_in_one_stream_ends_the_others(predictor, data, tmp_path):
    class Endless:
        name, rate = "endless", None

        def __len__(self):
            return 10**6

        def __iter__(self):
            return itertools.chain.from_iterable(itertools.repeat(list(sources(data)[1])))

    videos = [Endless(), *sources(data)]
    (data / "val/JPEGImages/late/00000021.jpg").unlink()
    with pytest.raises(UserError, match=r"late/00000021\.jpg"):
        run_videos(predictor, videos, Outputs(tmp_path / "out"), streams=2)
    assert not list((tmp_path / "out").glob("videos/endless.json"))


def test_outputs_that_are_no_numbers_finish_no_video(predictor, data, tmp_path, monkeypatch):
    segment_frame, outputs = Network.segment, Outputs(tmp_path / "out")
    frames = []

    def broken(network, *arguments):
        logits, tokens = segment_frame(network, *arguments)
        frames.append(0)
        return (logits * float("nan") if len(frames) == 2 else logits), tokens

    monkeypatch.setattr(Network, "segment", broken)
    with pytest.raises(UserError, match="outputs are no numbers"):
        segment(predictor, sources(data)[:1], outputs)
    assert len(frames) > 2 and not list(tmp_path.glob("out/videos/*"))


def test_a_film_that_is_not_whole_takes_no_place(tmp_path):
    films = Overlays(tmp_path / "clip", tmp_path / "clip.mp4", 6)
    for stem in "ab":
        films.add(stem, np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8))
    films._count += 1  # a picture that a full disk swallowed
    with pytest.raises(UserError, match="could not be written whole"):
        films.finish()
    films.abandon()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip"]


def test_overlays_and_scores(predictor, data, tmp_path):
    outputs = Outputs(tmp_path / "out", overlays=True, scores=True)
    segment(predictor, sources(data), outputs)
    film = cv2.VideoCapture(str(tmp_path / "out/overlays/late.mp4"))
    assert int(film.get(cv2.CAP_PROP_FRAME_COUNT)) == 6
    assert len(list((tmp_path / "out/overlays/late").glob("*.jpg"))) == 6
    assert sorted(path.stem for path in (tmp_path / "out/scores/late").glob("*.npz")) == [
        f"{1 + 5 * index:08d}" for index in range(1, 6)], "there are no probabilities before the first object"
    for stem, ids in (("00000006", [0, 3]), ("00000011", [0, 3]), ("00000016", [0, 3, 7]), ("00000021", [0, 3, 7])):
        scores = np.load(tmp_path / f"out/scores/late/{stem}.npz")
        assert scores["ids"].tolist() == ids and scores["probability"].shape == (len(ids), *SIZE)
        assert abs(scores["probability"].sum(0, dtype=int) - 255).max() <= 2
        winner = scores["ids"][scores["probability"].argmax(0)]
        assert (winner == read_labels(tmp_path / f"out/masks/late/{stem}.png")).mean() > 0.99
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
        segment(predictor, videos, Outputs(tmp_path / "out"))
    assert not (tmp_path / "out/videos/late.json").exists()


def test_a_full_disk_stops_the_run_names_the_file_and_leaves_no_half_file(predictor, data, tmp_path, monkeypatch):
    real, written = Image.Image.save, []

    def full(image, path, **options):
        if len(written) == 2:
            path.write_bytes(b"half a fi")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(image, path, **options)
        written.append(path)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left") as error:
        segment(predictor, sources(data), Outputs(tmp_path / "out"))
    assert error.value.filename == str(tmp_path / "out/masks/late/00000011.png")
    assert not (tmp_path / "out/videos").exists()
    assert sorted(path.name for path in (tmp_path / "out/masks/late").iterdir()) == ["00000001.png", "00000006.png"]
    monkeypatch.undo()
    assert segment(predictor, sources(data), Outputs(tmp_path / "out")) == 2


def test_a_video_without_any_object_is_an_error(predictor, data, tmp_path):
    for path in (data / "val/Annotations/short").glob("*.png"):
        write_labels(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(UserError, match="short: no mask gives an object"):
        run_videos(predictor, sources(data), Outputs(tmp_path / "out"))


def test_an_output_of_other_weights_or_settings_is_refused(predictor, tmp_path, monkeypatch):
    outputs, config = Outputs(tmp_path / "out"), predictor.config
    claim(outputs, identity(config, "c", "late"))
    claim(outputs, identity(config, "a", "late"))  # nothing was made yet: a mistake put right
    write_labels(outputs.masks_of("short") / "0.png", np.zeros(SIZE, np.uint8))
    claim(outputs, identity(config, "a", "late"))
    with pytest.raises(UserError, match="was made with other weights"):
        claim(outputs, identity(config, "b", "late"))
    with pytest.raises(UserError, match=r"data\.objects=late, not first"):
        claim(outputs, identity(config, "a", "first"))
    other = config.model_copy(deep=True)
    other.inference.streams = 3
    claim(outputs, identity(other, "a", "late"))  # changes no mask
    other.memory.gap = 5
    with pytest.raises(UserError, match=r"memory\.gap=9999, not 5"):
        claim(outputs, identity(other, "a", "late"))
    with monkeypatch.context() as patched:
        patched.setitem(POLICIES, config.memory.policy, POLICIES["fifo"])
        with pytest.raises(UserError, match=r"memory\.rule_code=[0-9a-f]{16}, not [0-9a-f]{16}"):
            claim(outputs, identity(config, "a", "late"))
    other = config.model_copy(deep=True)
    other.model.blocks += 1
    with pytest.raises(UserError, match=r"model\.blocks"):
        claim(outputs, identity(other, "a", "late"))
    foreign = tmp_path / "foreign/file"
    foreign.parent.mkdir()
    foreign.write_text("x")
    with pytest.raises(UserError, match=r"no output of infer\.py"):
        claim(Outputs(foreign.parent), identity(config, "a", "late"))
    with pytest.raises(UserError, match="is a file"):
        claim(Outputs(foreign), identity(config, "a", "late"))
    outputs.run.write_text("[]")
    with pytest.raises(UserError, match=r"is no record of infer\.py"):
        claim(outputs, identity(config, "a", "late"))


def test_videos_are_shared_out_longest_first_and_each_once():
    class Fake(list):
        name = ""

    videos = []
    for index, length in enumerate((10, 3, 7, 8, 2)):
        videos.append(Fake(range(length)))
        videos[-1].name = str(index)
    parts = [Ranks(rank, 2, torch.device("cpu")).share(videos) for rank in range(2)]
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


def test_images_that_several_threads_read_come_in_order(data):
    """Where many processors decode, frames stay in order and a broken one is an error where it was due."""
    paths = sorted((data / "val/JPEGImages/late").glob("*.jpg"))
    for one, two in zip(read_in_order(paths, 1), read_in_order(paths, 3), strict=True):
        assert np.array_equal(one, two)
    paths[4].unlink()
    running = read_in_order(paths, 3)
    assert len([next(running) for _ in range(4)]) == 4
    with pytest.raises(UserError, match=paths[4].name):
        next(running)


def test_several_writing_threads_write_all(tmp_path):
    with Writer(3) as writer:
        for number in range(40):
            writer.put((tmp_path / str(number)).write_text, "x")
    assert len(list(tmp_path.iterdir())) == 40


def test_one_stream_takes_several_videos_one_after_the_other(predictor, data, tmp_path):
    """A stream's predictor and lane begin each video anew."""
    alone = [video for video in sources(data) if video.name == "short"]
    run_videos(predictor, alone, Outputs(tmp_path / "one"))
    again = [DatasetSource(dataclasses.replace(source.video, name=f"{source.name}_again"), "late")
             for source in sources(data)]  # names of their own: nothing else keeps videos in work at once apart
    cost = run_videos(predictor, [*sources(data), *again], Outputs(tmp_path / "two"), streams=2)
    assert cost.frames == 18
    one, two = masks_of(tmp_path / "one"), masks_of(tmp_path / "two")
    assert len(one) == 3 and len(two) == 18
    assert all(np.array_equal(mask, two[name]) for name, mask in one.items())
    assert all(np.array_equal(mask, two[name.replace("short", "short_again")]) for name, mask in one.items())
    record = json.loads((tmp_path / "two/videos/short.json").read_text())
    assert 0 < record["model_seconds"] <= record["seconds"]


def test_the_writer_raises_what_failed():
    def fail():
        raise ValueError("cannot")

    with pytest.raises(ValueError, match="cannot"), Writer() as writer:
        writer.put(fail)


def test_run_json_says_what_was_run_and_what_it_cost(predictor, data, tmp_path):
    outputs, own = Outputs(tmp_path / "out"), identity(predictor.config, "hash", "late")
    cost = run_videos(predictor, sources(data), outputs)
    summarise(outputs, own, predictor.config, predictor.device, [cost])
    summary = json.loads(outputs.run.read_text())
    assert summary["frames"] == 9 and summary["weights_sha256"] == "hash" and "pytest" in summary["command"]
    assert summary["config"]["model"]["name"] == "aott" and summary["versions"]["torch"]
    assert summary["model_frames_per_second"] >= summary["frames_per_second"] > 0 and summary["peak_bytes"] > 2**26
    assert [video["video"] for video in summary["videos"]] == ["late", "short"]
    late = summary["videos"][0]
    assert (late["frames"], late["height"], late["width"], late["objects"]) == (6, *SIZE, 2)
    assert late["memory_bytes"] > 0 and late["seconds"] >= late["model_seconds"] > 0
    claim(outputs, own)  # still continues


def test_labels_are_checked_before_the_frame_that_they_belong_to(predictor):
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    first, late = np.zeros((2, 48, 64), np.uint8)
    first[5:20, 5:20], late[25:40, 30:50] = 1, 2

    def run(mistakes):
        predictor.start(frames[0], first.astype(np.uint16))
        for mistake in mistakes:
            with pytest.raises(UserError, match="mask: "):
                predictor.add_objects(frames[1], mistake)
        return [predictor.add_objects(frames[1], late), predictor.step(frames[2]), predictor._frame]

    wrong = [late[:-1], late.astype(np.uint16) * 200, late * 0.3]
    for ours, expected in zip(run(wrong), run([]), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_several_scales_limit_the_short_edge_as_the_official_evaluator_does():
    def limit(*settings):
        return load_config(None, settings).inference.short_limit

    assert (limit(), limit("inference.scales=[1.0,1.3]"), limit("inference.scales=[1.3]")) == (None, 624, 624)
    assert limit("inference.scales=[1.3]", "inference.short_edge=null") is None
    assert limit("inference.short_edge=300") == 300
