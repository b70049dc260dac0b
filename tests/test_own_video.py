"""One's own video: films and folders, where masks go, and what is refused before the first frame."""

import cv2
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError, UserErrors
from datasets.own_video import OwnVideo, object_mask
from datasets.readers import write_labels

SIZE = (48, 64)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "my.film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    for index in range(6):
        writer.write(np.full((*SIZE, 3), (0, 0, 40 * index), np.uint8))  # BGR: ever more red
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path):
    for stem in ("9", "10", "11"):
        (tmp_path / "clip").mkdir(exist_ok=True)
        Image.new("RGB", SIZE[::-1], (int(stem) * 10, 0, 0)).save(tmp_path / "clip" / f"{stem}.png")
    return tmp_path / "clip"


def mask(path, *ids, size=SIZE):
    labels = np.zeros(size, np.uint8)
    for index, value in enumerate(ids):
        labels[4:10, 4 + 10 * index : 10 + 10 * index] = value
    write_labels(path, labels)
    return path


def test_a_film_streams_rgb_frames_numbered_from_0_with_8_digits(film, tmp_path):
    video = OwnVideo(film, [mask(tmp_path / "m.png", 3)])
    frames = list(video)
    assert (video.name, len(video)) == ("my.film", 6)
    assert [frame.stem for frame in frames] == [f"{index:08d}" for index in range(6)]
    assert frames[5].image[..., 0].mean() > 180 > 20 > frames[5].image[..., 2].mean()
    assert [frame.given is not None for frame in frames] == [True] + [False] * 5
    assert set(np.unique(frames[0].given)) == {0, 3}
    assert str(film) in frames[2].where


def test_later_masks_of_a_film_name_an_index(film, tmp_path):
    later = mask(tmp_path / "later.png", 2)
    frames = list(OwnVideo(film, [mask(tmp_path / "m.png", 1), f"4:{later}"]))
    assert [frame.stem for frame in frames if frame.given is not None] == ["00000000", "00000004"]


def test_a_folder_keeps_its_stems_in_numeric_order(folder, tmp_path):
    video = OwnVideo(folder, [mask(tmp_path / "m.png", 1), f"11:{mask(tmp_path / 'late.png', 2)}"])
    frames = list(video)
    assert (video.name, len(video), [frame.stem for frame in frames]) == ("clip", 3, ["9", "10", "11"])
    assert [frame.given is not None for frame in frames] == [True, False, True]
    assert frames[0].image[0, 0].tolist() == [90, 0, 0]


def test_a_later_mask_without_a_new_object_is_told_of(folder, tmp_path):
    white, again, second = (mask(tmp_path / f"{name}.png", *ids) for name, ids in (
        ("white", (255,)), ("again", (0, 255)), ("second", (0, 2))))
    video = OwnVideo(folder, [white, f"10:{again}", f"11:{second}"])
    (note,) = video.notes
    assert "frame 10 gives no new object, it corrects [1]" in note and "id of its own" in note


def test_a_mask_of_0_and_255_is_object_1_and_otherwise_255_is_ignored(folder, tmp_path):
    binary = next(iter(OwnVideo(folder, [mask(tmp_path / "m.png", 255)]))).given
    assert set(np.unique(binary)) == {0, 1}
    several = next(iter(OwnVideo(folder, [mask(tmp_path / "n.png", 2, 255, 7)]))).given
    assert set(np.unique(several)) == {0, 2, 7}


def test_a_white_mask_with_soft_edges_is_refused(folder, tmp_path):
    soft = cv2.GaussianBlur(cv2.rectangle(np.zeros(SIZE, np.uint8), (10, 10), (50, 40), 255, -1), (5, 5), 0)
    assert len(np.unique(soft)) > 5
    write_labels(tmp_path / "soft.png", soft)
    with pytest.raises(UserError, match=r"soft\.png: most of what is painted is 255"):
        OwnVideo(folder, [tmp_path / "soft.png"])


def test_a_grey_mask_of_many_shades_is_refused(folder, tmp_path):
    disc = cv2.GaussianBlur(cv2.circle(np.zeros((48, 64), np.uint8), (32, 24), 16, 200, -1), (0, 0), 2)
    cv2.imwrite(str(tmp_path / "m.png"), disc)
    with pytest.raises(UserError, match="shades of grey, each of which would be an object"):
        OwnVideo(folder, [tmp_path / "m.png"])
    write_labels(tmp_path / "p.png", disc)  # a palette says what it means
    OwnVideo(folder, [tmp_path / "p.png"])


def test_a_mask_among_the_frames_is_no_frame(folder, tmp_path):
    Image.new("RGB", SIZE[::-1]).save(folder / "10.jpg")
    with pytest.raises(UserError, match=r"10\.jpg and 10\.png are one frame, twice"):
        OwnVideo(folder, [mask(tmp_path / "m.png", 1)])


def test_a_mask_file_with_a_colon_in_its_name_is_a_file(folder, tmp_path):
    video = OwnVideo(folder, [mask(tmp_path / "a:b.png", 1)])
    assert list(video.given) == ["9"]


def test_everything_wrong_is_said_at_once(folder, tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "rgb.png")
    with pytest.raises(UserErrors) as caught:
        OwnVideo(folder, [mask(tmp_path / "m.png", 1), f"12:{tmp_path / 'm.png'}", f"10:{mask(tmp_path / 'empty.png')}",
                          f"11:{mask(tmp_path / 'small.png', 1, size=(20, 30))}", f"10:{tmp_path / 'rgb.png'}",
                          f"10:{tmp_path / 'absent.png'}", tmp_path / "m.png"])
    words = ("no frame '12'", "empty.png: the mask is empty", "30x20", "rgb.png", "absent.png", "has a mask already")
    assert len(caught.value.problems) == len(words)
    for word in words:
        assert any(word in line for line in caught.value.problems), (word, caught.value.problems)


def test_missing_and_unreadable_videos_and_a_video_without_a_mask(folder, tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "nothing").mkdir()
    good = mask(tmp_path / "m.png", 1)
    for path, masks, word in ((tmp_path / "absent.mp4", [good], "no such"), (tmp_path / "text.mp4", [good], "decoded"),
                              (tmp_path / "nothing", [good], "no .jpg"), (folder, [], "--mask")):
        with pytest.raises(UserError, match=word):
            OwnVideo(path, masks)


def test_a_mask_past_the_end_of_a_film(film, tmp_path):
    with pytest.raises(UserError, match="6 frames"):
        OwnVideo(film, [f"17:{mask(tmp_path / 'm.png', 1)}"])
    with pytest.raises(UserError, match="frame 00000006 lies past the end"):  # announced lengths may be estimates
        list(OwnVideo(film, [mask(tmp_path / "m.png", 1), f"6:{mask(tmp_path / 'm.png', 1)}"]))
    with pytest.raises(UserError, match="counted from 0"):
        OwnVideo(film, [f"²:{tmp_path / 'm.png'}"])
    with pytest.raises(UserError, match="counted from 0"):
        OwnVideo(film, [f"start:{tmp_path / 'm.png'}"])


def test_broken_frames_are_named_before_the_first(folder, tmp_path):
    (folder / "10.png").write_bytes(b"")
    (folder / "11.png").write_bytes((folder / "11.png").read_bytes()[:-20])
    with pytest.raises(UserErrors) as caught:
        OwnVideo(folder, [mask(tmp_path / "m.png", 1)])
    assert ["10.png" in line or "11.png" in line for line in caught.value.problems] == [True, True]


def test_a_frame_that_breaks_meanwhile_is_named_when_its_turn_comes(folder, tmp_path):
    video = OwnVideo(folder, [mask(tmp_path / "m.png", 1)])
    (folder / "10.png").write_bytes(b"")
    frames = iter(video)
    assert next(frames).stem == "9"
    with pytest.raises(UserError, match=r"10\.png"):
        next(frames)


def test_a_mask_that_is_not_there_is_named_by_its_option(tmp_path):
    with pytest.raises(UserError, match=r"--mask .*nothere.png: the mask is missing; name a PNG"):
        object_mask(tmp_path / "nothere.png")
