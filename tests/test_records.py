"""Records: every layout and every spelling of splits and metas seen in the wild, without opening an image."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError, UserErrors
from datasets.records import list_splits, name_order, open_videos


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def add_video(split: Path, name: str, frames=("00000001", "00000006"), masks=None) -> None:
    touch(*(split / "JPEGImages" / name / f"{stem}.jpg" for stem in frames))
    touch(*(split / "Annotations" / name / f"{stem}.png" for stem in (frames if masks is None else masks)))


def lvos_meta(**videos) -> str:
    """A meta text: video -> {key: (start, end, frame_nums)}."""
    return json.dumps({"videos": {
        name: {"objects": {key: {"frame_range": dict(zip(("start", "end", "frame_nums"), span, strict=True))}
                           for key, span in objects.items()}}
        for name, objects in videos.items()
    }})


def test_davis_list_gives_its_videos_in_its_order_and_the_first_mask_rule(tmp_path):
    for name in ("bear", "camel", "swan"):
        touch(tmp_path / "JPEGImages/480p" / name / "00000.jpg", tmp_path / "Annotations/480p" / name / "00000.png")
    touch(tmp_path / "ImageSets/2017/val.txt", tmp_path / "ImageSets/2016/val.txt")
    (tmp_path / "ImageSets/2017/val.txt").write_text("swan\n\nbear\n")
    (tmp_path / "ImageSets/2016/val.txt").write_text("/JPEGImages/480p/camel/0.jpg /Annotations/480p/camel/0.png")
    found = open_videos(tmp_path, "VAL")
    assert [video.name for video in found.videos] == ["swan", "bear"]
    assert (found.format, found.objects) == ("davis", "first")
    assert found.videos[0].mask_path("00000") == tmp_path / "Annotations/480p/swan/00000.png"
    old = open_videos(tmp_path, "2016/val")
    assert [(video.name, video.binary) for video in old.videos] == [("camel", True)]
    assert open_videos(tmp_path, "val", objects="late").objects == "late"


def test_a_split_that_no_list_names_is_looked_for_as_a_folder(tmp_path):
    touch(tmp_path / "ImageSets/2017/val.txt")
    add_video(tmp_path / "test", "a")
    assert open_videos(tmp_path, "test").split_name == "test"


@pytest.mark.parametrize("folder", ["val", "valid", "Valid", "VAL"])
@pytest.mark.parametrize("asked", ["val", "valid", "Val"])
def test_val_and_valid_are_one_split_in_any_case(tmp_path, folder, asked):
    add_video(tmp_path / folder, "a")
    found = open_videos(tmp_path, asked)
    assert (found.split_name, found.split, found.format, found.objects) == (folder, asked, "plain", "late")


def test_two_folders_for_one_split_are_refused_and_both_named(tmp_path):
    add_video(tmp_path / "val", "a")
    add_video(tmp_path / "valid", "a")
    with pytest.raises(UserError, match=r"'val'.*'valid'"):
        open_videos(tmp_path, "val")


@pytest.mark.parametrize("place", ["val/val_meta.json", "val/valid_meta.json", "val_meta.json", "valid_meta.json",
                                   "val/meta.json", "val/Valid_Meta.json", "val/train_meta.json",
                                   "val/meta_valid.json"])
def test_meta_under_every_spelling_inside_or_beside_the_split(tmp_path, place):
    add_video(tmp_path / "val", "a")
    (tmp_path / place).write_text(lvos_meta(a={"1": (1, 11, 2)}))
    found = open_videos(tmp_path, "val")
    assert (found.meta, found.format) == (tmp_path / place, "lvos")


def test_a_meta_inside_the_split_wins_over_one_beside_it_and_two_that_differ_are_refused(tmp_path):
    add_video(tmp_path / "val", "a")
    (tmp_path / "valid_meta.json").write_text(lvos_meta(a={"1": (6, 11, 1)}))
    (tmp_path / "val/val_meta.json").write_text(lvos_meta(a={"1": (1, 11, 2)}))
    assert open_videos(tmp_path, "val").videos[0].objects[0].range.start == 1
    (tmp_path / "val/valid_meta.json").write_text(lvos_meta(a={"1": (6, 11, 1)}))
    with pytest.raises(UserError, match=r"val_meta\.json"):
        open_videos(tmp_path, "val")


def test_the_meta_of_another_split_beside_this_one_is_not_used(tmp_path):
    add_video(tmp_path / "val", "a")
    (tmp_path / "train_meta.json").write_text(lvos_meta(b={"1": (1, 11, 2)}))
    found = open_videos(tmp_path, "val")
    assert found.meta is None and [video.name for video in found.videos] == ["a"]


def test_numbers_may_be_strings_and_the_order_and_keys_are_the_metas_own(tmp_path):
    add_video(tmp_path / "val", "a")
    (tmp_path / "val/val_meta.json").write_text(lvos_meta(a={"10": ("00000001", "11", "2"), "2": (6, 11, 1),
                                                            "0": (1, 11, 2), "255": (1, 11, 2)}))
    objects = open_videos(tmp_path, "val").videos[0].objects
    assert [record.key for record in objects] == ["10", "2", "0", "255"]
    assert (objects[0].id, objects[0].range.start, objects[0].range.end, objects[0].range.frame_nums) == (10, 1, 11, 2)


@pytest.mark.parametrize(("text", "named"), [
    ("{", "valid JSON"), ("[]", "videos"), ('{"videos": {"a": {}}}', "videos.a.objects"),
    (lvos_meta(a={"1": ("x", 2, 3)}), "videos.a.objects.1.frame_range.start"), (lvos_meta(a={"one": (1, 2, 3)}), "one"),
])
def test_a_broken_meta_is_an_error_that_names_file_and_key(tmp_path, text, named):
    add_video(tmp_path / "val", "a")
    (tmp_path / "val/val_meta.json").write_text(text)
    with pytest.raises(UserError, match=named) as caught:
        open_videos(tmp_path, "val")
    assert "val_meta.json" in str(caught.value)


def test_everything_wrong_in_a_meta_is_told_at_once(tmp_path):
    add_video(tmp_path / "val", "a")
    span = {"start": 1, "end": "11", "frame_nums": 2}
    (tmp_path / "val/val_meta.json").write_text(json.dumps({"videos": {
        "a": {"objects": {"one": {"frame_range": span | {"start": "x", "end": 1.5}}, "2": [], "3": {"frames": "00001"},
                          "4": {"frame_range": [1, 11]}, "5": {"frame_range": {"start": True, "end": float("inf")}},
                          "6": {"frame_range": span}}},
        "b": {"objects": []}, "c": 3, "d": {"objects": {}}}}))
    with pytest.raises(UserErrors) as caught:
        open_videos(tmp_path, "val")
    start = f"{tmp_path / 'val/val_meta.json'}: videos."
    assert all(line.startswith(start) and line.endswith("; repair the meta") for line in caught.value.problems)
    assert [line[len(start):-len("; repair the meta")] for line in caught.value.problems] == [
        "a.objects.one is 'one', not a whole number", "a.objects.one.frame_range.start is 'x', not a whole number",
        "a.objects.one.frame_range.end is 1.5, not a whole number", "a.objects.2 is no table",
        "a.objects.3.frames is no list", "a.objects.4.frame_range is no table",
        "a.objects.5.frame_range.start is True, not a whole number",
        "a.objects.5.frame_range.end is inf, not a whole number", "a.objects.5.frame_range.frame_nums is missing",
        "b.objects is missing or no table", "c.objects is missing or no table"]


def test_a_list_of_videos_that_is_no_text_is_an_error(tmp_path):
    add_video(tmp_path / "JPEGImages", "480p/a")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"val\.txt: not a readable list"):
        open_videos(tmp_path, "val")


def test_attributes_and_captions_come_from_files_beside_the_meta(tmp_path):
    add_video(tmp_path / "val", "a")
    (tmp_path / "val/val_meta.json").write_text(lvos_meta(a={"1": (1, 11, 2), "2": (1, 11, 2)}))
    about = {"set": "val", "attributes": ["OCC"], "num_scribbles": 3, "name": "a", "image_size": [720, 1280]}
    (tmp_path / "val/val_attributes.json").write_text(
        json.dumps({"sets": ["val"], "attributes": ["OCC", "OV"], "videos": {"a": about}}))
    (tmp_path / "val_expression_meta.json").write_text(json.dumps({"videos": {
        "a": {"objects": {"1": {"caption": "a black dog"}}}}}))
    found = open_videos(tmp_path, "val")
    assert found.meta.name == "val_meta.json"
    assert found.videos[0].attributes == ("OCC",)
    assert [record.caption for record in found.videos[0].objects] == ["a black dog", None]


def test_attributes_inside_the_meta_and_expressions_of_the_referring_kind(tmp_path):
    add_video(tmp_path / "test", "a")
    meta = json.loads(lvos_meta(a={"1": (1, 11, 2)}))
    meta["videos"]["a"]["attributes"] = ["LRA", "AC"]
    (tmp_path / "test/test_meta.json").write_text(json.dumps(meta))
    (tmp_path / "test/test_expression_meta.json").write_text(json.dumps({"videos": {
        "a": {"expressions": {"0": {"exp": "the cup", "obj_id": "1"}}}}}))
    video = open_videos(tmp_path, "test").videos[0]
    assert video.attributes == ("LRA", "AC") and video.objects[0].caption == "the cup"


def test_youtube_vos_meta_lists_frames_and_masks_may_be_sparse(tmp_path):
    frames = [f"{number:05d}" for number in range(0, 40, 5)]
    add_video(tmp_path / "valid", "a", frames, masks=["00000", "00010"])
    (tmp_path / "valid/meta.json").write_text(json.dumps({"videos": {"a": {"objects": {
        "1": {"category": "dog", "frames": frames}, "2": {"category": "cat", "frames": frames[2:]}}}}}))
    found = open_videos(tmp_path, "val")
    assert found.format == "youtube"
    assert (len(found.videos[0].frames), found.videos[0].masks) == (8, ("00000", "00010"))
    assert [record.start for record in found.videos[0].objects] == [0, 10]


def test_a_folder_that_is_one_split_by_itself_says_so(tmp_path):
    add_video(tmp_path, "a")
    found = open_videos(tmp_path, "val")
    assert len(found.notes) == 1 and "one split by itself" in found.notes[0]


def test_converted_annotations_are_used_where_there_are_no_others(tmp_path):
    touch(tmp_path / "val/JPEGImages/a/00000001.jpg", tmp_path / "val/Annotations_convert/a/00000001.png")
    assert open_videos(tmp_path, "val").videos[0].masks == ("00000001",)


def test_frames_sort_by_number_and_hidden_files_are_left_out(tmp_path):
    add_video(tmp_path / "val", "a", ("9", "10", "100"))
    add_video(tmp_path / "val", "b", ("frame_10", "frame_9"))
    touch(*(tmp_path / "val/JPEGImages" / hidden for hidden in ("a/.DS_Store", "a/._9.jpg", ".x")))
    found = open_videos(tmp_path, "val")
    assert [video.frames for video in found.videos] == [("9", "10", "100"), ("frame_9", "frame_10")]
    assert sorted(["00000011", "00000006"], key=name_order) == ["00000006", "00000011"]


def test_evaluation_needs_no_images_and_keeps_what_is_missing_or_more(tmp_path):
    touch(tmp_path / "val/Annotations/b/00000001.png", tmp_path / "val/Annotations/extra/00000001.png")
    (tmp_path / "val/valid_meta.json").write_text(lvos_meta(b={"1": (1, 11, 2)}, absent={"1": (1, 11, 2)}))
    found = open_videos(tmp_path, "val", need_images=False)
    assert [(video.name, len(video.objects), video.frames) for video in found.videos] == [
        ("absent", 1, ()), ("b", 1, ("00000001",)), ("extra", 0, ("00000001",))]
    with pytest.raises(UserError):
        open_videos(tmp_path, "val")


def test_videos_without_images_are_named_all_at_once(tmp_path):
    add_video(tmp_path / "val", "a")
    touch(tmp_path / "val/Annotations/b/1.png", tmp_path / "val/Annotations/c/1.png")
    with pytest.raises(UserErrors) as caught:
        open_videos(tmp_path, "val")
    assert len(caught.value.problems) == 2


def test_a_choice_of_videos_and_a_misspelt_one(tmp_path):
    for name in ("apple", "pear"):
        add_video(tmp_path / "val", name)
    assert [video.name for video in open_videos(tmp_path, "val", videos=["pear"]).videos] == ["pear"]
    with pytest.raises(UserError, match="did you mean 'apple'"):
        open_videos(tmp_path, "val", videos=["aple"])


def test_format_overrides_the_search_and_plain_takes_no_meta(tmp_path):
    add_video(tmp_path / "val", "a")
    (tmp_path / "val/val_meta.json").write_text(lvos_meta(a={"1": (1, 11, 2)}))
    assert open_videos(tmp_path, "val", format="plain").videos[0].objects == ()
    with pytest.raises(UserError, match="ImageSets"):
        open_videos(tmp_path, "val", format="davis")
    with pytest.raises(UserError, match="did you mean 'lvos'"):
        open_videos(tmp_path, "val", format="lvo")


def test_nothing_there_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_videos(tmp_path / "nowhere", "val")
    add_video(tmp_path / "train", "a")
    with pytest.raises(UserError, match=r"val.*train"):
        open_videos(tmp_path, "val")


def test_the_splits_of_a_root_are_listed(tmp_path):
    for split in ("train", "valid"):
        add_video(tmp_path / split, "a")
    touch(tmp_path / "ImageSets/2017/val.txt", tmp_path / "docs/readme.txt")
    assert list_splits(tmp_path) == ["val", "train", "valid"]
    assert list_splits(tmp_path / "train") == [""]
    touch(*(tmp_path / "ImageSets" / name for name in ("2016/val.txt", "2016/trainval.txt", "2017/._val.txt")))
    assert list_splits(tmp_path) == ["val", "trainval", "2016/val", "train", "valid"]


def test_hidden_files_are_no_metas_and_what_cannot_be_read_is_named(tmp_path):
    add_video(tmp_path / "val", "a")
    (tmp_path / "val" / "._val_meta.json").write_bytes(b"\0\5\26\7")
    assert open_videos(tmp_path, "val").meta is None
    (tmp_path / "val" / "val_meta.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"val_meta\.json: cannot be read"):
        open_videos(tmp_path, "val")


def test_images_of_two_kinds_in_one_video_are_refused(tmp_path):
    add_video(tmp_path / "val", "a")
    add_video(tmp_path / "val", "b")
    touch(tmp_path / "val/JPEGImages/a/00000011.png", tmp_path / "val/JPEGImages/b/00000011.JPG")
    with pytest.raises(UserErrors, match=r"images of several kinds \(\.jpg, \.png\)") as told:
        open_videos(tmp_path, "val")
    assert len(told.value.problems) == 2


def test_masks_in_capital_letters_are_named(tmp_path):
    add_video(tmp_path / "val", "a", masks=("00000001",))
    touch(tmp_path / "val/Annotations/a/00000006.PNG")
    with pytest.raises(UserError, match=r"00000006\.PNG .* masks end in \.png"):
        open_videos(tmp_path, "val")


def test_golden_evaluation_roots_open_without_images(shared):
    for case in sorted((shared / "golden/evaluation").glob("p*")):
        found = open_videos(case / "gt", "val", need_images=False)
        assert found.videos and all(video.masks for video in found.videos)
        assert found.format == ("davis" if "davis" in case.name else "lvos")


def test_records_and_readers_import_without_torch():
    code = "import sys, datasets.records, datasets.readers, datasets.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
