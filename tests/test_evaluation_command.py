"""evaluate.py as a user meets it: bad input of every kind, the audit, --strict, the report, comparisons."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from common.errors import UserError, UserErrors
from datasets.readers import write_labels
from evaluation import evaluate
from evaluation.outputs import write
from evaluation.report import write_report
from tools.compare_runs import as_text, check_comparable, compare, load

STEMS = [f"{number:08d}" for number in range(1, 41, 5)]


@pytest.fixture
def root(tmp_path):
    """Two videos of eight frames and two objects; the predictions in ``pred`` are the truth, a pixel off."""
    for name in ("seen", "HMMe4u2P"):
        for place, stem in enumerate(STEMS):
            labels = np.zeros((40, 60), np.uint8)
            labels[5:15, 5 + place:20 + place], labels[20:35, 30:45] = 1, 2
            write_labels(tmp_path / "val/Annotations" / name / f"{stem}.png", labels)
            write_labels(tmp_path / "pred" / name / f"{stem}.png", np.roll(labels, 1, 1))
    write_meta(tmp_path, {"1": span(), "2": span()})
    (tmp_path / "unseen.txt").write_text("HMMe4u2P\n")
    return tmp_path


def span(start=1, end=41, frame_nums=8):
    return {"frame_range": {"start": start, "end": str(end), "frame_nums": frame_nums}}


def write_meta(root, objects):
    meta = {"videos": {name: {"objects": objects} for name in ("seen", "HMMe4u2P")}}
    (root / "val/valid_meta.json").write_text(json.dumps(meta))


def score(root, **settings):
    return evaluate(root, root / "pred", "val", unseen=root / "unseen.txt", **settings)


def problems(root, **settings):
    with pytest.raises(UserError) as error:
        score(root, **settings)
    return str(error.value).splitlines()


def png(mode, size=(60, 40)):
    data = io.BytesIO()
    Image.new(mode, size).save(data, "PNG")
    return data.getvalue()


BROKEN = {
    "empty": (b"", "the file is empty"),
    "truncated": (png("P")[:60], "corrupt or cut short"),
    "RGB": (png("RGB"), "a RGB image"),
    "RGBA": (png("RGBA"), "a RGBA image"),
    "JPEG": (b"\xff\xd8\xff\xe0 data", "JPEG data instead of a PNG file"),
    "size": (png("P", (61, 40)), "61x40 pixels, its ground truth 60x40"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("side", ["pred", "val/Annotations"])
def test_a_broken_file_stops_everything_and_is_named(root, kind, side):
    path = root / side / "seen" / f"{STEMS[3]}.png"
    path.write_bytes(BROKEN[kind][0])
    found = problems(root)
    assert len(found) == 1 and (kind == "size" or str(path) in found[0])
    assert (BROKEN[kind][1] if side == "pred" or kind != "size" else "its ground truth 61x40") in found[0]


def test_all_problems_are_told_at_once(root):
    shutil.rmtree(root / "pred/HMMe4u2P")
    (root / "pred/seen" / f"{STEMS[1]}.png").unlink()
    (root / "pred/seen" / f"{STEMS[2]}.png").rename(root / "pred/seen/00011.png")
    (root / "val/Annotations/seen" / f"{STEMS[4]}.png").write_bytes(b"PNG")
    write_meta(root, {"1": span(frame_nums=7), "2": span()})
    found = problems(root)
    assert len(found) == 6, found
    assert sum("frame_nums" in line for line in found) == 2
    assert any("HMMe4u2P: the folder with 6 predictions is missing; add it, or score a part" in line for line in found)
    assert any("(there is 00011.png" in line for line in found)


def test_a_video_that_cannot_be_scored_has_its_other_files_checked_all_the_same(root):
    write_meta(root, {"1": span(frame_nums=7)})  # the only object, and its range is wrong
    (root / "pred/seen" / f"{STEMS[2]}.png").unlink()
    found = problems(root)
    assert len(found) == 3 and sum("frame_nums" in line for line in found) == 2
    assert any(f"seen/{STEMS[2]}.png: the prediction is missing" in line for line in found)
    (root / "val/valid_meta.json").unlink()  # without a meta the objects come from the masks
    (root / "val/Annotations/seen" / f"{STEMS[4]}.png").write_bytes(b"")
    found = problems(root)
    assert len(found) == 2 and STEMS[2] in found[1] and str(root / "val/Annotations/seen" / STEMS[4]) in found[0]


def test_salient_masks_are_checked_beside_other_problems(root):
    (root / "val/Annotations/seen").rename(root / "val/Annotations/VjokbOOs")
    (root / "pred/seen").rename(root / "pred/VjokbOOs")
    objects = {"1": span(), "2": span()}
    meta = {"videos": {"VjokbOOs": {"objects": objects}, "8lxxCA5h": {"objects": {"1": span()}}}}
    (root / "val/valid_meta.json").write_text(json.dumps(meta))
    for stem in STEMS:
        Image.new("L", (60, 40), 3).save(root / "pred/VjokbOOs" / f"{stem}.png")
    found = problems(root, task="unsupervised_single")
    assert any("8lxxCA5h: the folder with 8 predictions is missing" in line for line in found)
    assert sum("no salient mask: its values are {3}" in line for line in found) == len(STEMS)


def test_frames_that_the_protocol_leaves_out_may_be_missing(root):
    whole = score(root).scores["global"]
    for side in ("pred", "val/Annotations"):
        for stem in (STEMS[0], STEMS[-1]):
            (root / side / "seen" / f"{stem}.png").unlink()
    assert score(root).scores["global"] == whole
    assert len(problems(root, protocol="v1-2022")) == 4


def findings(root, **settings):
    return {finding.kind for finding in score(root, **settings).findings}


def test_nothing_is_silent(root):
    assert findings(root) == set()
    write_meta(root, {"1": span(frame_nums=10), "2": span(), "9": span(start=36, end=41, frame_nums=2)})
    for stem in STEMS:
        labels = np.zeros((40, 60), np.uint8)
        labels[5:15, 5:20] = 255
        write_labels(root / "pred/seen" / f"{stem}.png", labels)
    assert findings(root) == {"padding", "no_scored_frame", "binary_map", "never_predicted"}
    lines = problems(root, strict=True)
    assert len(lines) > 3 and all(line.startswith("--strict: ") for line in lines)


def test_a_name_that_is_no_video_and_an_object_that_no_mask_shows_are_said(root):
    (root / "unseen.txt").write_text("HMMe4u2P\nHMMe4u2Q\n")
    write_meta(root, {"1": {"frames": STEMS}, "2": {"frames": STEMS}, "9": {"frames": STEMS}})
    found = {finding.kind: finding for finding in score(root).findings}
    assert "HMMe4u2Q" in found["unseen_unknown"].message and found["unseen_unknown"].is_note
    assert found["in_no_mask"].object == "9" and not found["in_no_mask"].is_note


def test_nothing_is_removed_where_no_evaluation_was(root):
    folder = root / "site"
    folder.mkdir()
    (folder / "report.html").write_text("mine")
    write(score(root), folder)
    assert (folder / "report.html").read_text() == "mine"
    write(score(root), folder)
    assert not (folder / "report.html").exists(), "beside scores.json it is an earlier evaluation's"


def test_padding_and_nan_have_a_clean_number_beside(root):
    clean = score(root).scores["global"]
    write_meta(root, {"1": span(frame_nums=10), "2": span(), "9": span(start=36, end=41, frame_nums=2)})
    scores = score(root).scores
    assert np.isnan(scores["global"]["J&F"])
    assert scores["clean"]["J&F"] == pytest.approx(clean["J&F"], abs=0.02)
    assert "clean" in scores["objects"][0] and "clean" not in scores["objects"][1]


def test_unknown_ids_are_audited_under_davis(root):
    for name in ("seen", "HMMe4u2P"):
        for side in ("Annotations", "JPEGImages"):
            (root / f"davis/{side}/480p").mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / "val/Annotations" / name, root / "davis/Annotations/480p" / name)
    (root / "davis/ImageSets/2017").mkdir(parents=True)
    (root / "davis/ImageSets/2017/val.txt").write_text("seen\nHMMe4u2P\n")
    labels = np.full((40, 60), 7, np.uint8)
    write_labels(root / "pred/seen" / f"{STEMS[2]}.png", labels)
    found = evaluate(root / "davis", root / "pred", protocol="davis2017")
    assert [finding.kind for finding in found.findings] == ["unknown_label_in_prediction"]
    with pytest.raises(UserErrors, match="7"):
        evaluate(root / "davis", root / "pred", protocol="davis2017", strict=True)


def test_provenance_knows_the_bytes(root):
    first = score(root).scores["provenance"]
    write_labels(root / "pred/seen" / f"{STEMS[2]}.png", np.ones((40, 60), np.uint8))
    second = score(root).scores["provenance"]
    assert first["ground_truth_sha256"] == second["ground_truth_sha256"]
    assert first["predictions_sha256"] != second["predictions_sha256"]
    assert first["files"] == {"ground_truth": 12, "predictions": 12} and list(first["lists"]) == ["unseen.txt"]


def as_is(root):
    pass


def strangers(root):
    """Videos, frames and files that nobody asked for, and old results."""
    (root / "pred/other").mkdir()
    (root / "pred/other" / f"{STEMS[0]}.png").write_bytes(b"junk")
    for name in ("seen/99999999.png", "seen/notes.txt", ".DS_Store", "global_results-valid.csv",
                 "per-sequence_results-valid.csv"):
        (root / "pred" / name).write_bytes(b"J&F-Mean\n1.0\n")


def renamed(root):
    for side in ("pred", "val/Annotations"):
        (root / side / "seen").rename(root / side / "ви део 視, 1")
    meta = json.loads((root / "val/valid_meta.json").read_text())["videos"]
    meta["ви део 視, 1"] = meta.pop("seen")
    (root / "val/valid_meta.json").write_text(json.dumps({"videos": meta}))


@pytest.mark.parametrize("change", [as_is, strangers, renamed])
def test_what_changes_no_number(root, change):
    change(root)
    found = score(root)
    assert found.findings == () and found.jf == (14 / 16 + 1) / 2  # objects 15 pixels wide, a pixel off


def add_video_without_objects(root):
    meta = json.loads((root / "val/valid_meta.json").read_text())
    meta["videos"]["empty"] = {"objects": {}}
    (root / "val/valid_meta.json").write_text(json.dumps(meta))


def draw(value):
    """Write this value into the first pixel of every prediction and, for void, of every true mask."""
    def change(root):
        for path in (root / ("val/Annotations" if value == 255 else "pred")).rglob("*.png"):
            labels = np.array(Image.open(path))
            labels[0, 0] = value
            write_labels(path, labels)
    return change


@pytest.mark.parametrize(("change", "kind", "strict_refuses"), [
    (add_video_without_objects, "no_objects", True),
    (lambda root: write_meta(root, {"1": span(), "2": span(), "9": span()}), "never_in_truth", True),
    (lambda root: write_meta(root, {"1": span(), "01": span(), "2": span()}), "same_id_twice", True),
    (lambda root: write_meta(root, {"1": span()}), "unknown_label_in_truth", True),
    (lambda root: write_meta(root, {"1": span(frame_nums=9), "2": span()}), "range_ends_early", False),
    (lambda root: (root / "val/valid_meta.json").unlink(), "no_meta", True),
    (lambda root: (root / "unseen.txt").write_text("\n"), "no_unseen_video", False),
    (draw(77), "unknown_label_in_prediction", True), (draw(255), "void", False)])
def test_what_the_audit_finds(root, change, kind, strict_refuses):
    change(root)
    assert kind in findings(root)
    if strict_refuses:
        assert any(line.startswith(f"--strict: {kind}: ") for line in problems(root, strict=True))
    else:
        score(root, strict=True)


@pytest.mark.parametrize(("task", "protocol", "needed"), [
    ("unsupervised_multiple", "lvos", True), ("semi-supervised", "v1-2022", True), ("semi-supervised", "lvos", False)])
def test_which_protocols_need_the_first_and_the_last_frame(root, task, protocol, needed):
    for stem in (STEMS[0], STEMS[-1]):
        (root / "pred/seen" / f"{stem}.png").unlink()
    if needed:
        assert len(problems(root, task=task, protocol=protocol)) == 2
    else:
        score(root, task=task, protocol=protocol)


@pytest.mark.parametrize(("objects", "wanted"), [
    ({"1": span(frame_nums=7)}, "more than frame_nums, 7"), ({"1": span(frame_nums=1)}, "at least 2"),
    ({"1": span(end=10**19)}, "more than frame_nums, 8"), ({"1": span(frame_nums=10**13)}, "no video"),
    ({"one": span()}, "objects.one is 'one', not a whole number"),
    ({"1": span(start=2, end=42)}, "00000007.png: the ground truth is missing"),
    ({}, "no video with objects to score")])
def test_metas_that_cannot_be_scored(root, objects, wanted):
    write_meta(root, objects)
    assert any(wanted in line for line in problems(root))


def test_files_under_other_names_are_missing_and_the_name_is_told(root):
    folder = root / "pred/seen"
    for stem in STEMS:
        (folder / f"{stem}.png").rename(folder / f"{stem}.jpg")
    found = problems(root)
    assert len(found) == 6 and all("(there is " in line and ".jpg; names must" in line for line in found)


def outside(root):
    return root.with_name(root.name + "_scores")


def command(root, *more):
    words = [sys.executable, "evaluate.py", "--data", root, "--pred", root / "pred", "--output", outside(root),
             "--unseen", root / "unseen.txt", "--workers", "1", *more]
    return subprocess.run(list(map(str, words)), cwd=REPOSITORY, capture_output=True, text=True)


def test_the_command_writes_everything_and_nothing_into_the_inputs(root):
    before = {path: path.read_bytes() for side in ("val", "pred") for path in (root / side).rglob("*.*")}
    done = command(root)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for side in ("val", "pred") for path in (root / side).rglob("*.*")} == before
    summary = (outside(root) / "analysis_summary.csv").read_text().splitlines()
    assert "identity_switches,switches,0" in summary and "misses,miss,0.0" in summary
    page = (outside(root) / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 4 and page.count("<svg") == 3
    assert "No curve over minutes: every visible frame lies in the same 30 seconds" in page
    for needed in ('src="http', "src='http", 'href="http', "<script", "@import"):
        assert needed not in page
    (root / "pred/seen" / f"{STEMS[1]}.png").unlink()
    failed = command(root)
    assert failed.returncode == 2 and failed.stdout == "" and "Traceback" not in failed.stderr
    assert len(failed.stderr.splitlines()) == 1 and STEMS[1] in failed.stderr


def test_a_test_split_is_told_in_one_line(root):
    for video in ("seen", "HMMe4u2P"):
        for stem in STEMS[1:]:
            (root / "val/Annotations" / video / f"{stem}.png").unlink()
    for protocol in ("lvos", "davis2017"):
        with pytest.raises(UserError, match="make_submission") as error:
            evaluate(root, root / "pred", "val", protocol=protocol)
        assert "\n" not in str(error.value)


def test_bad_names_are_one_line_each(root):
    for more, wanted in ((["--pred", root / "nowhere"], "the folder of predictions is missing"),
                         (["--unseen", root / "nowhere"], "not a readable list"),
                         (["--output", root / "val/scores"], "only read"),
                         (["--data", root / "val", "--output", root / "pred/scores"], "only read"),
                         (["--output", root / "unseen.txt"], "unseen.txt is a file"),
                         (["--output", root / "unseen.txt/below"], "unseen.txt is a file"),
                         (["--protocl", "lvos"], "unrecognized arguments"),
                         (["--split", "test"], "'test' not found")):
        failed = command(root, *more)
        assert failed.returncode == 2 and wanted in failed.stderr and "Traceback" not in failed.stderr, failed.stderr


@pytest.mark.parametrize("case", ["p4_empty_absent", "p7_unsup_multiple", "p8_unsup_single", "p10_davis2017",
                                  "p12_png_modes", "p13_odd_shapes"])
def test_every_kind_of_case_has_a_report(shared, tmp_path, case):
    folder = shared / "golden/evaluation" / case
    about = json.loads((folder / "case.json").read_text())
    found = evaluate(folder / "gt", folder / "pred", protocol=about["protocol"], task=about["task"])
    assert "</html>" in write_report(found, tmp_path / "report.html").read_text()


def test_comparison(root, tmp_path):
    write(score(root), tmp_path / "a")
    shutil.rmtree(root / "pred/seen")
    shutil.copytree(root / "val/Annotations/seen", root / "pred/seen")
    write(score(root), tmp_path / "b")
    results = load([tmp_path / "a", tmp_path / "b"])
    check_comparable(results)
    tables = compare(results)
    assert tables["headline"][0].differences[0] > 0
    same, better = tables["videos"]
    assert (same.name, same.differences) == ("HMMe4u2P", [0.0])
    assert better.name == "seen" and better.values[1] == 1 and better.differences[0] > 0
    assert "B-A J&F           fewer than two videos" in as_text(results, tables)  # of each group: nothing to draw
    write(score(root, protocol="v1-2022"), tmp_path / "c")
    with pytest.raises(UserErrors, match="protocol v1-2022"):
        check_comparable(load([tmp_path / "a", tmp_path / "c"]))


def test_real_predictions_of_davis(shared):
    clips = shared / "data/davis16"
    found = evaluate(clips, clips / "val_osvos", "val", protocol="davis2017")
    assert round(100 * found.jf, 1) == 81.2
    assert [(round(100 * item["J-Mean"], 1), round(100 * item["F-Mean"], 1)) for item in found.scores["objects"]] == [
        (94.3, 97.4), (92.8, 91.7), (77.4, 82.9), (62.3, 75.1), (67.1, 71.3)]


def test_a_part_of_a_split_is_scored_and_said_to_be_one(root, tmp_path_factory):
    """What `infer.py --videos` made."""
    scores = tmp_path_factory.mktemp("scores")
    shutil.rmtree(root / "pred" / "HMMe4u2P")
    command = [sys.executable, "evaluate.py", "--data", str(root), "--pred", str(root / "pred"), "--output",
               str(scores), "--workers", "1", "--no-report", "--videos", "seen"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "the numbers are those of 1 videos of the split" in done.stdout, done.stderr
    assert json.loads((scores / "scores.json").read_text())["provenance"]["part_of_videos"] == ["seen"]
