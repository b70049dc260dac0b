"""Equal numbers with the official code: recorded outputs, and trained weights on real clips."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs import load_config, model_config_path
from datasets.readers import read_labels
from datasets.records import open_videos
from inference import Predictor
from inference.results import Outputs
from inference.runner import run_videos
from inference.sources import DatasetSource
from models.preprocess import input_size, prepare_frame
from tools.check_parity import RECORDED_RESIZE, RESIZED, _deviation, case_config, check, main, resize_leeway

FAST = ("aott_round_newobj", "aott_lvos_gap1", "deaott_stskip3_gap2")


@pytest.mark.parametrize("case", FAST)
def test_recorded_cases(case, shared):
    rows = check(shared / "golden" / "aot", shared / "golden" / "aot", case)
    assert len(rows) == 2 and all(row.passed for row in rows), rows


@pytest.mark.slow
def test_every_recorded_case_and_training_run(shared):
    rows = check(shared / "golden" / "aot", shared / "golden" / "aot")
    assert len(rows) == 2 * 16 + 8 and all(row.passed for row in rows), [row for row in rows if not row.passed]


def test_a_wrong_memory_rule_is_noticed(shared, tmp_path):
    """The check can fail: with another short-term skip the logits are far off."""
    copied_case(shared, tmp_path, "aott_stskip2_gap3", short_term_mem_skip=1)
    rows = check(tmp_path, shared / "golden" / "aot")
    assert not rows[0].passed and rows[0].rms > 0.01


def copied_case(shared, root, name: str, **changes) -> None:
    """A recorded case under ROOT/cases, its options or other entries changed."""
    source, folder = shared / "golden" / "aot" / "cases" / name, root / "cases" / name
    folder.mkdir(parents=True)
    case = json.loads((source / "case.json").read_text())
    options = {key: changes.pop(key) for key in list(changes) if key in case["options"]}
    (folder / "case.json").write_text(json.dumps({**case, **changes, "options": {**case["options"], **options}}))
    for file in ("logits.npz", "masks.npz", "prob.npz"):
        (folder / file).symlink_to(source / file)


def test_a_case_that_cannot_run_fails_alone_and_says_why(shared, tmp_path, capsys):
    copied_case(shared, tmp_path, "aott_basic", max_long_edge=80.5)  # another size than was recorded
    copied_case(shared, tmp_path, "aott_lvos_gap1", frames_sha256="of other frames")
    copied_case(shared, tmp_path, "deaott_stskip3_gap2")
    report = tmp_path / "report.json"
    command = ["check_parity", "--golden", str(tmp_path), "--manifests", str(shared / "golden" / "aot"), "--report",
               str(report)]
    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit, match="1"):
        patched.setattr("sys.argv", command)
        main()
    rows = json.loads(report.read_text())
    assert [row["passed"] for row in rows] == [False] * 4 + [True] * 2
    assert "the network sees" in rows[0]["note"] and "other frames" in rows[2]["note"] and not rows[4]["note"]
    assert "2 of 6 passed" in capsys.readouterr().out


def test_a_record_that_is_damaged_fails_alone_and_an_unnamed_one_has_its_folders_name(shared, tmp_path):
    copied_case(shared, tmp_path, "aott_basic")
    golden = tmp_path / "cases" / "aott_basic"
    case = json.loads((golden / "case.json").read_text())
    del case["name"]
    (golden / "case.json").write_text(json.dumps(case))
    for name, text in (("a_empty", None), ("b_broken", "{"), ("c_lacking", "{}")):
        (tmp_path / "cases" / name).mkdir()
        if text is not None:
            (tmp_path / "cases" / name / "case.json").write_text(text)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "aott.json").write_text("[]")
    rows = check(tmp_path, shared / "golden" / "aot")
    assert [(row.case, row.passed) for row in rows] == [
        ("a_empty", False), ("b_broken", False), ("c_lacking", False), ("aott", False), ("aott_basic", True),
        ("aott_basic", True)]
    assert all("cannot be read" in row.note or "has no variant" in row.note for row in rows[:4])


@pytest.mark.parametrize(("file", "change", "why"), [
    ("case.json", lambda case: case["options"].update(top_k=32), "options top_k"),
    ("case.json", lambda case: case["labels_sha256"].update({"0": "of others"}), "other labels"),
    ("prob.npz", lambda arrays: arrays.pop("f03"), "has no f03"),
    ("prob.npz", lambda arrays: arrays["f03"].__iadd__(1e-3), "probabilities differ by 1.0e-03"),
    ("logits.npz", lambda arrays: arrays.pop("f02_a0_e0"), "no recorded logits f02_a0_e0"),
])
def test_what_a_record_says_otherwise_is_noticed(shared, tmp_path, file, change, why):
    copied_case(shared, tmp_path, "aott_basic")
    path = tmp_path / "cases" / "aott_basic" / file
    if file == "case.json":
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        content = dict(np.load(path))
        change(content)
        path.unlink()
        np.savez(path, **content)
    row = check(tmp_path, shared / "golden" / "aot")[0]
    assert not row.passed and why in row.note


@pytest.mark.parametrize("limit, size", [(166.66666666666666, (65, 161)), (167, (81, 161)), (None, (97, 209))])
def test_limits_of_the_size_need_not_be_whole(limit, size):
    """The official evaluator's long edge is its short one times 800 / 480: 100 gives 166.67, which decides a size."""
    config = case_config({"variant": "aott", "options": {
        "lvos_rule": False, "long_term_mem_gap": 5, "short_term_mem_skip": 1, "flip": False, "multi_scale": [1.0],
        "max_short_edge": None, "max_long_edge": limit}})
    assert input_size(90, 203, True, config.inference.short_edge, config.inference.long_edge) == size


def test_a_number_that_is_not_finite_is_infinitely_far():
    good = {"f01_a0_e0": np.zeros((2, 3, 3), np.float32)}
    assert _deviation(good, good, 1.0) == (0, 0, "")
    bad = [({"f01_a0_e0": np.full((2, 3, 3), np.nan, np.float32)}, "not finite"), ({}, "no logits f01_a0_e0"),
           ({"f01_a0_e0": np.zeros((2, 3, 4), np.float32)}, "(2, 3, 4)"),
           ({**good, "f02_a0_e0": np.zeros(1)}, "no recorded logits f02_a0_e0")]
    for ours, why in bad:
        largest, rms, note = _deviation(ours, good, 1.0)
        assert (largest, rms) == (np.inf, np.inf) and why in note
    assert _deviation(good, bad[0][0], 1.0)[0] == np.inf, "nor is a record that is not finite equal to anything"


@pytest.mark.parametrize("error,leeway", [(0.0, 1.0), (3e-7, RESIZED), (1e-3, 1.0)])
def test_only_rounding_of_the_resize_gives_leeway(error, leeway, tmp_path, monkeypatch, capsys):
    """Where OpenCV resizes as it did for the recordings there is none, nor for a mistake."""
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    recorded = prepare_frame(frame, (17, 33), torch.device("cpu"))[0].numpy()
    recorded = recorded + np.float32(error)
    np.savez(tmp_path / "inputs.npz", input_f01_a0=recorded, input_f01_a1=recorded[..., ::-1])
    rule = SimpleNamespace(video=SimpleNamespace(make_video=lambda spec: ([None, frame], {})))
    case = {"video": {}, "network_sizes": {"0": [17, 33], "1": [17, 33]}, "options": {"flip": True}}
    assert resize_leeway({tmp_path: case}, rule) == leeway
    assert ("resizes otherwise" in capsys.readouterr().out) == (leeway > 1)


@pytest.mark.parametrize("digest, leeway", [(RECORDED_RESIZE, 1.0), ("of another processor", RESIZED)])
def test_without_recorded_inputs_a_picture_tells(digest, leeway, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.check_parity.resized_picture", lambda: digest)
    assert resize_leeway({tmp_path: {}}, SimpleNamespace()) == leeway
    assert ("a picture tells" in capsys.readouterr().out) == (leeway > 1)


def agreement(shared, tmp_path, name: str, data: str, videos: list[str], frames: int | None = None) -> float:
    """Share of pixels on which ours equal the official masks."""
    root = shared / "golden" / "aot" / "real"
    predictor = Predictor(root / "aott_official_names.safetensors", "aott")
    found = open_videos(shared / "data" / data, "val", objects="first", videos=videos)
    equal = total = 0
    for video in found.videos:
        source = DatasetSource(video, found.objects)
        if frames is not None:
            source.video = type(video)(**{**vars(video), "frames": video.frames[:frames]})
        run_videos(predictor, [source], Outputs(tmp_path))
        for stem in source.video.frames:
            ours = read_labels(tmp_path / "masks" / video.name / f"{stem}.png")
            theirs = read_labels(root / "masks" / name / video.name / f"{stem}.png")
            equal, total = equal + int((ours == theirs).sum()), total + ours.size
    return equal / total


def test_trained_weights_on_the_start_of_a_real_clip(shared, tmp_path):
    assert agreement(shared, tmp_path, "real", "real", ["horsejump-high"], 5) >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name, data", [("davis16", "davis16"), ("real", "real")])
def test_trained_weights_on_all_real_clips(name, data, shared, tmp_path):
    videos = [video.name for video in open_videos(shared / "data" / data, "val").videos]
    assert agreement(shared, tmp_path, name, data, videos) >= 0.999


def test_more_than_ten_objects_run_in_groups(shared):
    """44 objects of a real first mask: five groups, all ids alive, and the memory is theirs alone."""
    found = open_videos(shared / "data" / "real", "test", videos=["1001_3iEIq5HBY1s"])
    frames = list(zip(range(2), DatasetSource(found.videos[0], "first"), strict=False))
    config = load_config(model_config_path("aott"), ["inference.long_edge=161"])
    predictor = Predictor.from_config(config)
    first = frames[0][1]
    labels = predictor.start(first.image, first.given)
    assert np.array_equal(labels, np.where(first.given == 255, 0, first.given)) and len(predictor.object_ids) == 44
    assert [state.objects[0] for state in predictor._views[0].states] == [10, 10, 10, 10, 4]
    after = predictor.step(frames[1][1].image)
    assert set(np.unique(after)) <= {0, *predictor.object_ids}
