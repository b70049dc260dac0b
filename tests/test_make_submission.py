"""Submissions: what is packed passes its own check, byte for byte the same each time, and nothing wrong gets in."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError, UserErrors
from datasets.readers import write_labels
from datasets.records import open_videos
from tools.make_submission import check_zip, make_submission, needed, pack

STEMS = [f"{number:08d}" for number in (1, 6, 11)]


@pytest.fixture
def data(tmp_path):
    """A test split of two videos with images and the first masks only, and right masks for it in ``pred``."""
    for name in ("b", "a"):
        for stem in STEMS:
            image = tmp_path / "root/test/JPEGImages" / name / f"{stem}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8)).save(image)
            write_labels(tmp_path / "pred" / name / f"{stem}.png", labels())
        write_labels(tmp_path / "root/test/Annotations" / name / f"{STEMS[0]}.png", labels())
    span = {"frame_range": {"start": 1, "end": 16, "frame_nums": 3}}
    meta = {"videos": {name: {"objects": {"1": span, "2": span}} for name in ("b", "a")}}
    (tmp_path / "root/test/test_meta.json").write_text(json.dumps(meta))
    return tmp_path


def labels():
    image = np.zeros((8, 12), np.uint8)
    image[2:4, 2:4], image[5:7, 6:9] = 1, 2
    return image


def wanted(data):
    return needed(open_videos(data / "root", "test", need_images=False))


def test_a_zip_is_right_and_the_same_each_time(data):
    for name in ("one.zip", "two.zip"):
        assert pack(data / "pred", data / name, wanted(data)) == []
        assert check_zip(data / name, wanted(data)) == []
    assert (data / "one.zip").read_bytes() == (data / "two.zip").read_bytes()
    with zipfile.ZipFile(data / "one.zip") as archive:
        assert archive.namelist() == [f"Annotations/{name}/{stem}.png" for name in ("a", "b") for stem in STEMS]


def test_frames_without_an_image_and_how_the_set_was_found_are_said(data):
    for name in ("a", "b"):
        (data / "root/test/JPEGImages" / name / f"{STEMS[2]}.jpg").unlink()
    _, notes = make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert [note[:8] for note in notes if f"first {STEMS[2]}" in note and "may ask for it" in note] == ["note: a:",
                                                                                                       "note: b:"]
    _, notes = make_submission(data / "pred", data / "root/test", "val", data / "out.zip")
    assert any("one split by itself" in note for note in notes)


@pytest.mark.parametrize("end", [11, 12, 16])
def test_without_images_the_ranges_say_which_frames_there_are(data, end):
    shutil.rmtree(data / "root/test/JPEGImages")
    span = {"frame_range": {"start": 1, "end": end, "frame_nums": 3}}
    meta = {"videos": {name: {"objects": {"1": span, "2": span}} for name in ("b", "a")}}
    (data / "root/test/test_meta.json").write_text(json.dumps(meta))
    assert [video.stems for video in wanted(data)] == [tuple(STEMS)] * 2


def test_what_the_zip_must_be_called_and_which_objects_no_mask_shows_is_said(data):
    with pytest.raises(UserError, match=r"must end in \.zip"):
        make_submission(data / "pred", data / "root", "test", data / "out.tar")
    for stem in STEMS:
        write_labels(data / "pred/a" / f"{stem}.png", np.minimum(labels(), 1))
        write_labels(data / "pred/b" / f"{stem}.png", labels()[:4])
    with pytest.raises(UserErrors, match="12x4 pixels, the frames are 12x8"):
        make_submission(data / "pred", data / "root", "test", data / "out.zip")
    for stem in STEMS:
        write_labels(data / "pred/b" / f"{stem}.png", labels())
    _, notes = make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert notes == ["note: a: object 2 of the data set is in no mask"]


def test_the_meta_says_which_videos_and_ids_there_are(data):
    span = {"frame_range": {"start": 1, "end": 16, "frame_nums": 3}}
    (data / "root/test/test_meta.json").write_text(json.dumps({"videos": {"a": {"objects": {"1": span}}}}))
    make_submission(data / "pred", data / "root", "test", data / "out.zip")  # 2 is given: it is segmented, not scored
    write_labels(data / "root/test/Annotations/a" / f"{STEMS[0]}.png", np.minimum(labels(), 1))
    with pytest.raises(UserErrors, match=r"pred/a/00000001\.png: holds 2"):
        make_submission(data / "pred", data / "root", "test", data / "out.zip")
    span = {"1": span, "2": span}
    (data / "root/test/test_meta.json").write_text(json.dumps({"videos": {"a": {"objects": span}}}))
    packed, _ = make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert [video.video for video in packed] == ["a"], "the other is not in the meta"


def test_what_nothing_says_is_said(data):
    (data / "root/test/test_meta.json").unlink()
    shutil.rmtree(data / "root/test/JPEGImages/a")
    _, notes = make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert any(note.startswith("note: a: has no images, so its frames are") for note in notes)
    shutil.rmtree(data / "root/test/Annotations/b")
    _, notes = make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert any(note.startswith("note: b: neither a meta nor a given mask says its ids") for note in notes)


def test_frames_may_have_any_number_of_digits(data):
    for path in sorted(data.rglob("0000*.*")):
        path.rename(path.with_name(path.name[3:]))
    _, notes = make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert notes == []


@pytest.mark.parametrize("harm", ["twice", "damaged"])
def test_a_zip_that_others_made_is_looked_into(data, harm):
    make_submission(data / "pred", data / "root", "test", data / "out.zip")
    if harm == "twice":
        with zipfile.ZipFile(data / "out.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("Annotations/a/00000001.png", b"")
    else:
        content = bytearray((data / "out.zip").read_bytes())
        content[100] ^= 255
        (data / "out.zip").write_bytes(content)
    with pytest.raises(UserErrors, match="in the zip twice" if harm == "twice" else "the zip is damaged"):
        check_zip(data / "out.zip", wanted(data))


def test_a_zip_goes_where_it_can(data):
    for place, said in (("root/out.zip", "only read"), ("pred/a/00000001.png/out.zip", "is a file")):
        with pytest.raises(UserError, match=said):
            make_submission(data / "pred", data / "root", "test", data / place)
    (data / "folder.zip").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        make_submission(data / "pred", data / "root", "test", data / "folder.zip")


def test_turned_photographs_have_the_size_of_their_masks(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (data / "root/test/JPEGImages").rglob("*.jpg"):
        Image.new("RGB", (8, 12)).save(path, exif=exif)
    make_submission(data / "pred", data / "root", "test", data / "out.zip")


def test_everything_wrong_is_listed_at_once_and_nothing_is_written(data):
    pred = data / "pred"
    (pred / "a" / f"{STEMS[1]}.png").unlink()
    write_labels(pred / "a" / f"{STEMS[2]}.png", np.zeros((9, 12), np.uint8))
    write_labels(pred / "b" / f"{STEMS[0]}.png", labels() * 100)
    Image.fromarray(labels()).save(pred / "b" / f"{STEMS[1]}.png")
    (pred / "b" / f"{STEMS[2]}.png").write_bytes(b"\xff\xd8 a JPEG")
    with pytest.raises(UserErrors) as error:
        pack(pred, data / "out.zip", wanted(data))
    text = "\n".join(error.value.problems)
    assert len(error.value.problems) == 5
    for part in ("missing", "12x9 pixels, the frames are 12x8", "holds 100, 200", "no 8-bit palette", "JPEG data"):
        assert part in text
    assert not (data / "out.zip").exists()


def test_the_check_refuses_strangers_and_other_folders(data):
    pack(data / "pred", data / "out.zip", wanted(data))
    with zipfile.ZipFile(data / "out.zip", "a") as archive:
        archive.writestr("__MACOSX/x", b"")
    with pytest.raises(UserErrors, match="__MACOSX/x: not part of a submission"):
        check_zip(data / "out.zip", wanted(data))
    with zipfile.ZipFile(data / "bare.zip", "w") as archive:
        archive.writestr(f"a/{STEMS[0]}.png", (data / "pred/a" / f"{STEMS[0]}.png").read_bytes())
    with pytest.raises(UserErrors, match="a: all 3 masks are missing"):
        check_zip(data / "bare.zip", wanted(data))
    (data / "no.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="not a readable zip"):
        check_zip(data / "no.zip", wanted(data))


def test_a_missing_video_is_one_line(data):
    for path in (data / "pred/a").iterdir():
        path.unlink()
    (data / "pred/a").rmdir()
    with pytest.raises(UserErrors) as error:
        pack(data / "pred", data / "out.zip", wanted(data))
    assert error.value.problems == [f"{data / 'pred'}/a: all 3 masks are missing; segment this video too"]


def test_without_a_meta_the_given_masks_say_which_ids_exist(data):
    (data / "root/test/test_meta.json").unlink()
    assert make_submission(data / "pred", data / "root", "test", data / "good.zip")[1] == []
    foreign = labels()
    foreign[0, 0] = 77
    write_labels(data / "pred/a" / f"{STEMS[1]}.png", foreign)
    with pytest.raises(UserErrors, match="holds 77, but the data set has no such object"):
        make_submission(data / "pred", data / "root", "test", data / "out.zip")
    assert not (data / "out.zip").exists()
