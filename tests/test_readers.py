"""Readers: label maps of every kind of PNG, damaged files, and the labels that inference may see."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

import datasets.readers as readers
from common.errors import UserError
from datasets.readers import DAVIS_PALETTE, given_labels, read_image, read_labels, write_labels
from datasets.records import open_videos

SIZE = (12, 16)


def label_map(**places) -> np.ndarray:
    """A label map with a 3x3 square for each id; places: id_<n>=(row, column)."""
    labels = np.zeros(SIZE, np.uint8)
    for name, (y, x) in places.items():
        labels[y : y + 3, x : x + 3] = int(name.removeprefix("id_"))
    return labels


def make_video(root, maps, meta=None, frames=None):
    """A one-video LVOS split; maps: stem -> label map."""
    for stem in frames or maps:
        path = root / "val/JPEGImages/a" / f"{stem}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((*SIZE, 3), 90, np.uint8))
    for stem, labels in maps.items():
        write_labels(root / "val/Annotations/a" / f"{stem}.png", labels)
    if meta:
        objects = {key: {"frame_range": {"start": start, "end": 9999, "frame_nums": 5}} for key, start in meta.items()}
        (root / "val/val_meta.json").write_text(json.dumps({"videos": {"a": {"objects": objects}}}))
    return open_videos(root, "val").videos[0]


def stems(count, step=5):
    return [f"{1 + step * index:08d}" for index in range(count)]


def test_grey_with_alpha_is_read_where_masks_are_binary_and_refused_elsewhere(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[2:4, 3:7] = 255
    Image.merge("LA", [Image.fromarray(labels), Image.new("L", (8, 6), 255)]).save(tmp_path / "mask.png")
    assert (read_labels(tmp_path / "mask.png", binary=True) == (labels > 0)).all()
    with pytest.raises(UserError, match="LA colours instead of a palette"):
        read_labels(tmp_path / "mask.png")


def test_labels_survive_writing_with_the_davis_palette(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_labels(tmp_path / "new" / "a.png", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "new" / "a.png"), labels)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.mode == "P" and image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    assert list(DAVIS_PALETTE[255 * 3 :]) == [224, 224, 192]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize(("mode", "value"), [("L", 7), ("P", 7), ("1", 1), ("I;16", 7)])
def test_every_kind_of_single_channel_png_gives_its_values(tmp_path, mode, value):
    labels = np.zeros(SIZE, np.uint16 if mode == "I;16" else np.uint8)
    labels[2:5, 2:5] = value
    image = Image.fromarray(labels * 255 if mode == "1" else labels)
    if mode == "P":
        image.putpalette(bytes(768))
    (image.convert("1") if mode == "1" else image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png"), labels.astype(np.uint8))


def test_masks_that_hold_no_ids_are_refused_by_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "rgba.png")
    Image.new("L", (4, 4)).save(tmp_path / "lossy.jpg")
    (tmp_path / "lossy.jpg").rename(tmp_path / "lossy.png")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "large.png")
    write_labels(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    for name in ("rgb", "rgba", "lossy", "large", "cut", "empty", "absent"):
        with pytest.raises(UserError, match=f"{name}.png"):
            read_labels(tmp_path / f"{name}.png")


def test_images_are_rgb_and_damaged_ones_are_errors(tmp_path):
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[..., 0] = 200  # red
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    assert read_image(tmp_path / "a.jpg")[..., 0].mean() > 190 > 20 > read_image(tmp_path / "a.jpg")[..., 2].mean()
    for name in ("a.jpg", "b.png"):
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-30])
    (tmp_path / "c.jpg").write_bytes(b"no image")
    (tmp_path / "d.jpg").touch()
    for name in ("a.jpg", "b.png", "c.jpg", "d.jpg", "absent.jpg"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)


# ---- what inference may see


def test_each_object_is_given_once_where_it_first_appears(tmp_path):
    names = stems(4)
    video = make_video(tmp_path, {
        names[0]: label_map(id_1=(1, 1)),
        names[1]: label_map(id_1=(2, 2), id_3=(6, 6)),
        names[2]: label_map(id_3=(6, 7)),
        names[3]: label_map(id_1=(3, 3), id_2=(8, 10)),
    })
    given = given_labels(video)
    assert list(given) == [names[0], names[1], names[3]]
    np.testing.assert_array_equal(given[names[1]], label_map(id_3=(6, 6)))
    np.testing.assert_array_equal(given[names[3]], label_map(id_2=(8, 10)))
    assert given.warnings == []


def test_full_and_converted_annotations_give_the_same(tmp_path):
    names = stems(5)
    full = {name: label_map(id_1=(index, 1)) for index, name in enumerate(names)}
    full[names[3]] = label_map(id_1=(3, 1), id_2=(7, 7))
    lvos_api = {names[0]: label_map(id_1=(0, 1)), names[3]: label_map(id_2=(7, 7))}
    results = [given_labels(make_video(tmp_path / name, maps, frames=names))
               for name, maps in (("full", full), ("converted", lvos_api))]
    assert list(results[0]) == list(results[1]) == [names[0], names[3]]
    for stem in results[0]:
        np.testing.assert_array_equal(results[0][stem], results[1][stem])


def test_a_late_start_after_empty_frames_and_an_empty_first_file(tmp_path):
    names = stems(4)
    maps = {names[0]: label_map(), names[1]: label_map(id_255=(0, 0)), names[2]: label_map(id_4=(2, 2))}
    assert list(given_labels(make_video(tmp_path, maps, frames=names))) == [names[2]]  # LVOS-api writes an empty first
    maps = {names[2]: label_map(id_4=(2, 2))}
    assert list(given_labels(make_video(tmp_path / "cutie", maps, frames=names))) == [names[2]]  # Cutie does not


def test_255_is_ignored_and_never_an_object(tmp_path):
    video = make_video(tmp_path, {"00000001": label_map(id_1=(1, 1), id_255=(6, 6))})
    np.testing.assert_array_equal(given_labels(video)["00000001"], label_map(id_1=(1, 1)))


def test_a_mask_without_an_image_is_not_used_and_a_line_says_so(tmp_path):
    names = stems(3)
    maps = {names[0]: label_map(id_1=(1, 1)), names[1]: label_map(id_2=(5, 5))}
    given = given_labels(make_video(tmp_path, maps, frames=[names[0], names[2]]))
    assert list(given) == [names[0]] and len(given.warnings) == 1


def test_the_davis_rule_gives_the_first_mask_only(tmp_path):
    names = stems(2)
    video = make_video(tmp_path, {names[0]: label_map(id_1=(1, 1)), names[1]: label_map(id_2=(5, 5))})
    assert list(given_labels(video, "first")) == [names[0]]


def test_davis_2016_masks_are_one_object(tmp_path):
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (tmp_path / folder / "480p" / "a").mkdir(parents=True)
        if suffix == "jpg":
            cv2.imwrite(str(tmp_path / folder / "480p/a/00000.jpg"), np.zeros((*SIZE, 3), np.uint8))
    Image.fromarray(label_map(id_255=(1, 1), id_2=(6, 6))).save(tmp_path / "Annotations/480p/a/00000.png")
    (tmp_path / "ImageSets/2016").mkdir(parents=True)
    (tmp_path / "ImageSets/2016/val.txt").write_text("a\n")
    found = open_videos(tmp_path, "val")
    np.testing.assert_array_equal(given_labels(found.videos[0], found.objects)["00000"],
                                  label_map(id_1=(1, 1)) | label_map(id_1=(6, 6)))


def long_video(tmp_path, meta):
    names = stems(60)
    maps = {name: label_map(id_1=(index % 9, 1)) for index, name in enumerate(names)}
    for index in range(40, 60):
        maps[names[index]] = label_map(id_1=(index % 9, 1), id_2=(2, 9))
    return names, make_video(tmp_path, maps, meta=meta)


def counted(monkeypatch):
    seen = []
    real = readers.read_labels
    monkeypatch.setattr(readers, "read_labels", lambda path, *rest: seen.append(path) or real(path, *rest))
    return seen


def test_a_right_meta_spares_the_reading_of_a_long_videos_masks(tmp_path, monkeypatch):
    names, video = long_video(tmp_path, {"1": 1, "2": 201})
    seen = counted(monkeypatch)
    given = given_labels(video)
    assert list(given) == [names[0], names[40]] and len(seen) <= 4 and given.warnings == []


@pytest.mark.parametrize("meta", [{"1": 1, "2": 226}, {"1": 1, "2": 101}, {"1": 1}, {"1": 1, "2": 201, "7": 201}])
def test_where_meta_and_masks_disagree_the_masks_are_right_and_a_line_says_so(tmp_path, meta):
    names, video = long_video(tmp_path, meta)
    given = given_labels(video)
    if meta == {"1": 1}:  # nothing in the meta points to the frames of object 2: they are not read
        assert list(given) == [names[0]]
    else:
        assert list(given) == [names[0], names[40]]
        assert len(given.warnings) == 1


def test_an_object_that_the_meta_lacks_is_given_where_it_first_appears(tmp_path):
    names = stems(50)
    maps = {name: label_map(id_1=(1, 1), **({"id_5": (6, 6)} if index >= 7 else {}),
                            **({"id_2": (8, 10)} if index >= 40 else {})) for index, name in enumerate(names)}
    given = given_labels(make_video(tmp_path, maps, {"1": 1, "2": 201}))
    assert list(given) == [names[0], names[7], names[40]]
    np.testing.assert_array_equal(given[names[7]], label_map(id_5=(6, 6)))


def test_no_object_at_all_is_an_empty_answer_with_a_warning(tmp_path):
    given = given_labels(make_video(tmp_path, {"00000001": label_map()}))
    assert not given and given.warnings


def test_only_the_given_pixels_matter(tmp_path):
    """Whatever else is in the annotations, inference sees the same."""
    names = stems(6)
    maps = {name: label_map(id_1=(index, 1)) for index, name in enumerate(names)}
    maps[names[2]] |= label_map(id_2=(6, 9))
    before = given_labels(make_video(tmp_path / "before", maps))
    rng = np.random.default_rng(0)
    changed, seen = {}, [0]
    for name, labels in maps.items():
        anything = rng.choice(seen, SIZE).astype(np.uint8)  # ids given before, at random
        changed[name] = np.where(before[name] > 0, labels, anything) if name in before else anything
        seen = sorted({*seen, *np.unique(labels).tolist()})
    after = given_labels(make_video(tmp_path / "after", changed))
    assert list(before) == list(after)
    for stem in before:
        np.testing.assert_array_equal(before[stem], after[stem])


def test_a_png_is_never_turned(tmp_path):
    """Versions of OpenCV differ in whether its EXIF turns it; a mask, a PNG too, never is."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 10)).save(tmp_path / "frame.png", exif=exif)
    assert read_image(tmp_path / "frame.png").shape == (10, 20, 3)
