"""The check of data before work: everything wrong is listed at once, by file name, and the exit status says it."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from datasets.check import check_videos
from datasets.first_annotations import write_first_annotations
from datasets.headers import cut_short, image_size, read_header
from datasets.readers import read_image, write_labels
from datasets.records import open_videos

SIZE = (20, 32)
STEMS = [f"{1 + 5 * index:08d}" for index in range(6)]


@pytest.fixture
def root(tmp_path) -> Path:
    """A sound LVOS split of two videos: object 1 from the start, object 2 from the third frame."""
    rng = np.random.default_rng(0)
    objects = {}
    for name in ("a", "b"):
        for index, stem in enumerate(STEMS):
            labels = np.zeros(SIZE, np.uint8)
            labels[3:9, 3:9] = 1
            if index >= 2:
                labels[10:15, 12:20] = 2
            labels[0, 0] = 255
            write_labels(tmp_path / "val/Annotations" / name / f"{stem}.png", labels)
            path = tmp_path / "val/JPEGImages" / name / f"{stem}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8)).save(path)
        objects[name] = {"objects": {
            "1": {"frame_range": {"start": 1, "end": 31, "frame_nums": 6}},
            "2": {"frame_range": {"start": "11", "end": "26", "frame_nums": "4"}},  # end: the last frame itself
        }}
    (tmp_path / "val/val_meta.json").write_text(json.dumps({"videos": objects}))
    return tmp_path


def check(root: Path, deep: bool = False):
    return check_videos(open_videos(root, "val", need_images=False), deep=deep)


def change_meta(root: Path, change) -> None:
    path = root / "val/val_meta.json"
    meta = json.loads(path.read_text())
    change(meta["videos"])
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize("deep", [False, True])
def test_sound_data_has_no_problem_in_either_reading_of_the_ranges_end(root, deep):
    problems = check(root, deep)
    assert (problems, problems.warnings, problems.notes) == ([], [], [])


def test_all_damage_is_listed_at_once_by_file(root):
    images, masks = root / "val/JPEGImages", root / "val/Annotations"
    data = (images / "a" / f"{STEMS[0]}.jpg").read_bytes()
    (images / "a" / f"{STEMS[0]}.jpg").write_bytes(data[: len(data) // 2])
    (images / "a" / f"{STEMS[1]}.jpg").write_bytes(b"")
    (images / "a" / f"{STEMS[2]}.jpg").unlink()
    Image.new("RGB", (30, 20)).save(images / "a" / f"{STEMS[3]}.jpg")
    Image.new("RGB", SIZE[::-1]).save(masks / "b" / f"{STEMS[1]}.png")
    Image.new("L", SIZE[::-1]).save(masks / "b" / "x.jpg")
    (masks / "b" / "x.jpg").rename(masks / "b" / f"{STEMS[3]}.png")
    write_labels(masks / "b" / f"{STEMS[4]}.png", np.ones((10, 32), np.uint8))
    data = (masks / "b" / f"{STEMS[5]}.png").read_bytes()
    (masks / "b" / f"{STEMS[5]}.png").write_bytes(data[:-20])
    (masks / "b" / f"{STEMS[0]}.png").unlink()
    problems = check(root)
    expected = [("a", STEMS[0], "cut short"), ("a", STEMS[1], "empty"), ("a", STEMS[2], "image is missing"),
                ("a", STEMS[3], "30x20"), ("b", STEMS[1], "RGB"), ("b", STEMS[3], "JPEG"), ("b", STEMS[4], "32x10"),
                ("b", STEMS[5], "cut short"), ("b", STEMS[0], "mask is missing")]
    for video, stem, what in expected:
        assert any(f"{video}/{stem}" in line and what in line for line in problems), (video, stem, what, problems)
    assert len(problems) == len(expected)


def test_a_missing_mask_in_the_middle_is_a_warning_and_sparse_masks_are_none(root):
    (root / "val/Annotations/a" / f"{STEMS[4]}.png").unlink()
    problems = check(root)
    assert not problems and len(problems.warnings) == 1 and STEMS[4] in problems.warnings[0]
    for stem in (STEMS[1], STEMS[3], STEMS[5]):
        (root / "val/Annotations/a" / f"{stem}.png").unlink()
    problems = check(root)
    assert (problems, problems.warnings) == ([], [])


def test_meta_and_files_that_disagree_are_warnings(root):
    def change(videos):
        videos["a"]["objects"]["1"]["frame_range"]["frame_nums"] = 9
        videos["a"]["objects"]["2"]["frame_range"]["frame_nums"] = 2
        videos["b"]["objects"]["2"]["frame_range"]["start"] = 12
        videos["b"]["objects"]["7"] = videos["b"]["objects"]["1"]
        del videos["b"]["objects"]["1"]

    change_meta(root, change)
    problems = check(root)
    assert not problems
    for words in ("frame_nums is 9", "frame_nums is 2", "starts at frame 12", "id 1 is not in the meta",
                  "object 7 of video b is in no mask"):
        assert sum(words in line for line in problems.warnings) == 1, (words, problems.warnings)


def test_videos_that_only_the_meta_or_only_the_disk_has(root):
    def change(videos):
        videos["ghost"] = videos["a"]
        del videos["b"]

    change_meta(root, change)
    problems = check(root)
    assert len(problems) == 1 and "ghost" in problems[0]
    assert len(problems.warnings) == 1 and "video b" in problems.warnings[0]


def test_a_video_without_any_object_is_a_problem(root):
    for stem in STEMS:
        write_labels(root / "val/Annotations/a" / f"{stem}.png", np.full(SIZE, 255, np.uint8))
    assert any("no mask shows an object" in line for line in check(root))


def test_only_the_deep_form_decodes_images(root):
    path = root / "val/JPEGImages/a" / f"{STEMS[0]}.jpg"
    data = bytearray(path.read_bytes())
    header = data.index(b"\xff\xc4")  # the Huffman tables: header, size and end stay sound
    data[header + 4 : header + 40] = b"\x00" * 36
    path.write_bytes(bytes(data))
    assert check(root) == []
    assert any(path.name in line for line in check(root, deep=True))


def test_davis_2016_masks_of_0_and_255_are_sound(tmp_path):
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder / "480p/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "JPEGImages/480p/a/00000.jpg")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "Annotations/480p/a/00000.png")
    (tmp_path / "ImageSets/2016").mkdir(parents=True)
    (tmp_path / "ImageSets/2016/val.txt").write_text("a\n")
    assert check(tmp_path) == []


def test_the_fast_check_decodes_the_masks_at_which_objects_start(root, monkeypatch):
    monkeypatch.setattr("datasets.check._FEW_MASKS", 0)
    assert check(root).warnings == []
    write_labels(root / "val/Annotations/a" / f"{STEMS[2]}.png", np.full(SIZE, 3, np.uint8))
    assert any("id 3 is not in the meta" in line for line in check(root).warnings)


def test_first_annotations_keep_captions_link_only_their_videos_and_are_whole_or_absent(root, tmp_path, monkeypatch):
    change_meta(root, lambda videos: videos["a"]["objects"]["1"].update({"caption": "a red bird"}))
    found = open_videos(root, "val", videos=["a"])
    out = tmp_path.with_name(f"{tmp_path.name}_first")
    write_first_annotations(found, out)
    objects = json.loads((out / "meta.json").read_text())["videos"]["a"]["objects"]
    assert objects["1"]["category"] == "a red bird" and objects["2"]["category"] == "object"
    assert check_videos(open_videos(out, "val")) == []
    assert [path.name for path in (out / "JPEGImages").iterdir()] == ["a"]
    monkeypatch.setattr("datasets.first_annotations.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_first_annotations(found, out.with_name("half_written"))
    assert not [path for path in out.parent.iterdir() if "half_written" in path.name]


def test_many_objects_unknown_frames_and_empty_splits_are_said(root):
    write_labels(root / "val/Annotations/a" / f"{STEMS[3]}.png", np.full(SIZE, 11, np.uint8))
    change_meta(root, lambda videos: videos["b"]["objects"].update({"2": {"frames": [STEMS[2], "00000099"]}}))
    found = check(root)
    assert any("segmented in groups" in line for line in found.notes)
    assert any("frame 00000099 (1 such), which has no image" in line for line in found)
    (root / "empty/JPEGImages").mkdir(parents=True)
    assert "no video folders" in check_videos(open_videos(root, "empty", need_images=False))[0]


def test_objects_that_no_evaluator_takes_are_doubted(root):
    def change(videos):
        videos["a"]["objects"]["300"] = videos["a"]["objects"].pop("1")
        videos["b"]["objects"]["1"]["frame_range"] |= {"end": 0}
        videos["b"]["objects"]["2"]["frame_range"] |= {"frame_nums": 1}

    change_meta(root, change)
    said = "\n".join(check(root).warnings)
    assert "the id 300, which no mask can hold" in said and "end 0" in said and "frame_nums 1:" in said


def test_headers_are_read_through_long_preambles_and_trailing_bytes(tmp_path):
    image = Image.new("RGB", (33, 21))
    image.save(tmp_path / "a.jpg", progressive=True, comment=b"x" * 5000)
    assert (read_header(tmp_path / "a.jpg").width, read_header(tmp_path / "a.jpg").height) == (33, 21)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 100)
    assert not cut_short(tmp_path / "a.jpg")
    image.convert("RGBA").save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").mode == "RGBA"
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (33, 21)


@pytest.mark.parametrize(("orientation", "size"), [(3, (33, 21)), (6, (21, 33)), (8, (21, 33))])
def test_a_turned_photograph_has_the_size_that_it_is_read_with(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (33, 21)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == size == read_image(tmp_path / "a.jpg").shape[1::-1]


def test_an_exif_that_nobody_can_read_turns_nothing(tmp_path):
    Image.new("RGB", (33, 21)).save(tmp_path / "a.jpg", exif=b"Exif\0\0no TIFF at all")
    assert image_size(tmp_path / "a.jpg") == (33, 21) == read_image(tmp_path / "a.jpg").shape[1::-1]


def run_tool(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent)


def test_the_command_lists_every_split_and_its_exit_status_says_what_it_found(root):
    done = run_tool("tools.check_dataset", root)
    assert done.returncode == 0 and "val: nothing wrong; 2 videos, 12 frames, 12 masks" in done.stdout
    (root / "val/Annotations/a" / f"{STEMS[0]}.png").write_bytes(b"")
    broken = run_tool("tools.check_dataset", root, "--split", "valid")
    assert broken.returncode == 2 and f"a/{STEMS[0]}.png" in broken.stdout and "Traceback" not in broken.stderr
    assert run_tool("tools.check_dataset", root / "nowhere").returncode == 2


def test_first_annotations_writes_a_youtube_vos_folder_that_reads_the_same(root, tmp_path):
    from datasets.readers import given_labels

    assert run_tool("tools.first_annotations", root, root / "inside").returncode == 2
    output = tmp_path.with_name(f"{tmp_path.name}_converted")
    done = run_tool("tools.first_annotations", root, output, "--split", "val")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (output / "Annotations/a").iterdir()) == [f"{STEMS[0]}.png", f"{STEMS[2]}.png"]
    meta = json.loads((output / "meta.json").read_text())
    assert meta["videos"]["a"]["objects"]["2"]["frames"] == STEMS[2:]
    before, after = open_videos(root, "val"), open_videos(output, "val")
    assert after.format == "youtube"
    for old, new in zip(before.videos, after.videos, strict=True):
        assert old.frames == new.frames
        given, again = given_labels(old), given_labels(new)
        assert list(given) == list(again)
        for stem in given:
            np.testing.assert_array_equal(given[stem], again[stem])
    assert run_tool("tools.first_annotations", root, output).returncode == 2
