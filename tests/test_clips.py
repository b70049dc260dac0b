"""Clips: samples depend on (seed, step, sample) alone; videos, photographs in three layouts, mixtures, mistakes."""

import json
import shutil

import cv2
import numpy as np
import pytest

from common.errors import UserError
from configs.schema import SourceConfig
from datasets.clips import VideoClips, _absences, _read_frame, _reflected
from datasets.mixture import Mixture, batches
from datasets.readers import read_labels, write_labels
from datasets.static import StaticClips, _decompressed, _run_lengths, find_pictures, without_grades
from tests.training_helper import small_data, tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (root / "JPEGImages").mkdir()
    for index in range(3):
        cv2.imwrite(str(root / "JPEGImages" / f"{index}.jpg"), rng.integers(0, 255, (80, 100, 3)).astype(np.uint8))
        labels = np.zeros((80, 100), np.uint8)
        labels[10:40, 10:50], labels[45:75, 40:90] = 1, 2
        write_labels(root / "Annotations" / f"{index}.png", labels)
    return root


def equal(one, other) -> bool:
    return np.array_equal(one.frames, other.frames) and np.array_equal(one.masks, other.masks) \
        and (one.objects, one.seed) == (other.objects, other.seed) and np.array_equal(one.slots, other.slots)


def test_a_sample_depends_on_seed_and_number_alone(data):
    config = tiny(data)
    forwards = [Mixture(config)[number] for number in range(6)]
    mixture = Mixture(config)
    for number in reversed(range(6)):
        assert equal(mixture[number], forwards[number])
    assert len({sample.seed for sample in forwards}) == 6, "steps repeat each other's numbers"
    config.seed = 1
    assert not any(equal(Mixture(config)[number], forwards[number]) for number in range(6))


def test_ranks_and_micro_batches_cut_the_same_batch(data):
    config = tiny(data, "train.batch=4")
    whole = next(batches(Mixture(config), 2, 3))
    assert whole.frames.shape == (3, 4, 3, 65, 65) and whole.masks.shape == (3, 4, 65, 65)
    config.train.accumulate = 2
    parts = [part for rank in (0, 1) for part in batches(Mixture(config), 2, 3, rank, 2)]
    assert [seed for part in parts for seed in part.seeds] == whole.seeds
    for index, part in enumerate(parts):
        assert (part.frames[:, 0] == whole.frames[:, index]).all()


def test_an_epoch_shows_every_video_as_often_as_its_weight(data, photos):
    config = tiny(data, f"data.sources=[{{root: '', repeat: 2}}, {{root: {photos}, kind: static}}]")
    mixture = Mixture(config)
    shown = [tuple(mixture._entry(number)) for number in range(len(mixture.entries))]
    assert sorted(shown) == sorted([(0, place) for place in range(3)] * 2 + [(1, place) for place in range(3)])
    assert shown != [tuple(entry) for entry in mixture.entries]


def test_the_epochs_of_a_fraction_show_a_source_in_turn(data, photos):
    config = tiny(data, f"data.sources=[{{root: '', repeat: 1.34}}, {{root: {photos}, kind: static, repeat: 0.34}}]")
    mixture = Mixture(config)
    assert len(mixture.entries) == 5
    shown = [mixture._entry(number) for number in range(15)]
    assert sorted(shown) == sorted([(0, place) for place in range(3)] * 4 + [(1, place) for place in range(3)])


def test_every_object_of_a_clip_is_in_its_first_frame(data):
    mixture = Mixture(tiny(data, "train.merge=1", "train.merge_more=0.8"))
    for number in range(12):
        sample = mixture[number]
        ids = set(np.unique(sample.masks)) - {0, 255}
        first = set(np.unique(sample.masks[0])) - {0, 255}
        assert ids <= first == set(range(1, sample.objects + 1)) and 1 <= sample.objects <= 10


def test_a_sample_names_what_it_is_made_of(data, photos):
    mixture = Mixture(tiny(data, f"data.sources=[{{root: ''}}, {{root: {photos}, kind: static}}]", "train.merge=1",
                           "train.merge_more=1"))
    known = {video.name for video, _ in mixture.sources[0].videos} | {path.name for path, _ in
                                                                     mixture.sources[1].pictures}
    for number in range(3):
        first, *pasted = mixture[number].name.split(" + ")
        source, place = mixture._entry(number)
        assert first == mixture.sources[source].name(place)
        assert len(pasted) == 20 and set(pasted) <= known


def test_what_is_pasted_leaves_and_so_does_the_scene(photos):
    def samples(*settings: str) -> list:
        mixture = Mixture(tiny(photos, f"data.sources=[{{root: {photos}, kind: static}}]", "train.frames=5", *settings))
        return [mixture[number] for number in range(12)]

    scenes = samples("train.merge=0", "train.leave=1")
    assert {sample.name.count(" + ") for sample in scenes} == {0, 1}
    for sample in scenes:  # never by its own picture, in which the objects would be in sight, unlabelled
        names = sample.name.split(" + ")
        assert len(set(names)) == len(names) and sample.masks[0].any()
        assert all(frame.any() for frame in sample.masks) == (len(names) == 1)

    def partly(found: list) -> int:  # frames that show some objects of the first and lack others
        return sum(0 < len(np.unique(frame)) - 1 < sample.objects for sample in found for frame in sample.masks)

    assert partly(samples("train.merge=1", "train.leave=1")) > 2 * partly(samples("train.merge=1"))


def test_few_identities_are_shuffled_among_themselves(data):
    config = tiny(data, "train.merge=0.7", "train.few_identities=true")
    few = [Mixture(config)[number] for number in range(30)]
    assert {sample.objects for sample in few} >= {1, 2}
    for sample in few:
        assert sorted(sample.slots[:sample.objects]) == list(range(sample.objects))
        assert (sample.slots[sample.objects:] == np.arange(sample.objects, 10)).all()
    assert len({tuple(sample.slots) for sample in few if sample.objects == 2}) == 2
    config.train.few_identities = False
    every = [Mixture(config)[number] for number in range(10)]
    assert len({int(sample.slots[0]) for sample in every}) > 3 and all(sorted(s.slots) == [*range(10)] for s in every)


def test_a_camera_moves_frames_and_masks_together(data):
    config = tiny(data, "train.merge=0", "train.augmentation=v1")
    still = [Mixture(config)[number] for number in range(8)]
    config.train.camera = 1.0
    seen = [Mixture(config)[number] for number in range(8)]
    for before, after in zip(still, seen, strict=True):
        assert before.name == after.name and not np.array_equal(before.masks, after.masks)

    def contrast(sample) -> float:  # an object's colour stays apart from what lies around it
        frame, labels = sample.frames[1].astype(float), sample.masks[1]
        ring = (cv2.dilate((labels == 1).astype(np.uint8), np.ones((9, 9))) > 0) & (labels == 0)
        return float(np.abs(frame[labels == 1].mean(0) - frame[ring].mean(0)).sum()) if (labels == 1).any() else np.nan

    assert np.nanmean([contrast(one) for one in seen]) > 0.8 * np.nanmean([contrast(one) for one in still])


def test_reflection_and_absences():
    assert [_reflected(place, 4) for place in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert _absences(np.array([0, 1, 0, 0, 1, 1, 0, 1, 0], bool)) == [(2, 4), (6, 7)]


def test_returns_gives_clips_in_which_an_object_leaves_and_comes_back(tmp_path):
    video = "wanderer"
    for index in range(12):
        labels = np.zeros((64, 96), np.uint8)
        if not 4 <= index < 9:
            labels[10:50, 20:70] = 1
        labels[55:60, 80:90] = 2  # small, always there
        write_labels(tmp_path / "train" / "Annotations" / video / f"{index:05d}.png", labels)
        path = tmp_path / "train" / "JPEGImages" / video / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((64, 96, 3), 90, np.uint8))
    config = tiny(tmp_path, "train.returns=1", "train.frames=4", "train.merge=0", "train.scales=[1, 1]")
    clips = VideoClips(SourceConfig(root=str(tmp_path)), config.train)
    for seed in range(8):
        chosen, labels = clips._with_return(0, np.random.default_rng(seed))
        present = [(frame == 1).any() for frame in labels]
        assert present[0] and present[-1] and not all(present) and chosen == sorted(chosen)


def test_newcomers_are_avoided_or_background(tmp_path):
    for index in range(16):  # an object on the left; another on the right from the second half on
        labels, frame = np.zeros((64, 96), np.uint8), np.zeros((64, 96, 3), np.uint8)
        labels[10:50, 5:35] = 1
        if index >= 8:
            labels[10:50, 60:90], frame[10:50, 60:90] = 2, 255
        write_labels(tmp_path / "train" / "Annotations" / "v" / f"{index:05d}.png", labels)
        path = tmp_path / "train" / "JPEGImages" / "v" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), frame)

    def met(newcomers: bool) -> int:  # clips in which the other appears and is no object
        config = tiny(tmp_path, f"train.newcomers={newcomers}", "train.scales=[1, 1]", "train.augmentation=v1",
                      "train.short_edge=64")
        clips = VideoClips(SourceConfig(root=str(tmp_path), max_gap=4), config.train)
        count = 0
        for seed in range(40):
            clip, _ = clips.clip(0, np.random.default_rng(seed))
            first, white = set(np.unique(clip.labels[0])), [(frame > 200).all(2) for frame in clip.frames]
            assert all(set(np.unique(labels)) <= first for labels in clip.labels)
            count += not white[0].any() and any((labels[seen] == 0).sum() > 200
                                                for labels, seen in zip(clip.labels, white, strict=True))
        return count

    assert met(True) > 5 and met(False) <= 1


def test_photographs_move_and_their_objects_are_numbered(photos):
    config = tiny(photos)
    clip, objects = StaticClips(SourceConfig(root=str(photos), kind="static"), config.train).clip(
        0, np.random.default_rng(0))
    assert len(clip.frames) == 3 and clip.frames[0].shape == (65, 65, 3) and objects == 2
    assert not np.array_equal(clip.labels[0], clip.labels[1])


def test_coco_polygons_and_run_lengths(photos, tmp_path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    mask = np.zeros((20, 30), bool)
    mask[2:8, 15:25] = True
    changes = np.flatnonzero(np.diff(np.concatenate([[False], mask.T.ravel(), [False]]).astype(int)))
    counts = np.diff(np.concatenate([[0], changes, [600]])).tolist()
    annotations = [{"image_id": 5, "area": 60, "segmentation": {"size": [20, 30], "counts": counts}},
                   {"image_id": 5, "area": 100, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}]
    (tmp_path / "instances.json").write_text(json.dumps(
        {"images": [{"id": 5, "file_name": "a.jpg"}], "annotations": annotations}))
    (path, labels_of), = find_pictures(tmp_path, "auto", [])
    labels = labels_of((20, 30))
    assert path.name == "a.jpg" and (labels[mask] == 2).all() and labels[5, 5] == 1 and labels[15, 15] == 0


@pytest.mark.parametrize(("segmentation", "message"), [
    ([[1, 1, 9, 1, 9, 9, 1]], "not a COCO instance file"),
    ({"size": [20, 30], "counts": "3`"}, "not a COCO instance file"),
    ({"size": [20, 30], "counts": None}, "not a COCO instance file"),
    ({"size": [20, 30], "counts": [-3, 603]}, "a run length is below 0"),
    ([[1, 1, 9, 1, 9, float("nan")]], "no place in a picture"),
    ([[1, 1, 9, 1, 9, 2**31]], "no place in a picture"),
    ({"size": [30, 20], "counts": [600]}, "run lengths of an instance of a.jpg"),
    ({"size": [20, 30], "counts": [3, 4]}, "run lengths of an instance of a.jpg"),
])
def test_a_broken_instance_is_named_with_its_file(tmp_path, segmentation, message):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "instances.json").write_text(json.dumps({
        "images": [{"id": 5, "file_name": "a.jpg"}], "annotations": [{"image_id": 5, "segmentation": segmentation}]}))
    with pytest.raises(UserError, match=message) as told:
        for _, labels_of in find_pictures(tmp_path, "auto", []):
            labels_of((20, 30))
    assert str(tmp_path / "instances.json") in str(told.value)


def test_what_is_left_out_of_a_folder_of_pictures_is_said(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "Annotations" / "1.png").unlink()
    notes: list[str] = []
    assert len(find_pictures(tmp_path / "photos", "auto", notes)) == 2
    assert "1 of 3 pictures have no mask" in notes[0]

    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    triangle = [[1, 1, 9, 1, 9, 9]]
    shapes = [("a.jpg", triangle), ("a.jpg", [[]]), ("a.jpg", [[1, 1, 2, 2]]), ("gone.jpg", triangle)]
    (tmp_path / "instances.json").write_text(json.dumps({
        "images": [{"id": 0, "file_name": "a.jpg"}, {"id": 3, "file_name": "gone.jpg"}],
        "annotations": [{"image_id": 3 * (name == "gone.jpg"), "segmentation": one} for name, one in shapes]}))
    notes.clear()
    (_, labels_of), = find_pictures(tmp_path, "coco", notes)
    assert set(np.unique(labels_of((20, 30)))) == {0, 1}
    assert "1 of its pictures" in notes[0] and "2 instances" in notes[1]


def test_a_white_mask_is_one_object(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    for path in (tmp_path / "photos" / "Annotations").iterdir():
        write_labels(path, np.where(read_labels(path) > 0, 255, 0).astype(np.uint8))
    clips = StaticClips(SourceConfig(root=str(tmp_path / "photos"), kind="static"), tiny(photos).train)
    clip, objects = clips.clip(0, np.random.default_rng(0))
    assert objects == 1 and set(np.unique(clip.labels[0])) == {0, 1}


def test_a_white_mask_with_soft_edges_or_grades_is_one_object():
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 20, 255, -1, cv2.LINE_AA)
    assert np.array_equal(without_grades(disc), np.where(disc >= 128, 255, 0)) and len(np.unique(disc)) > 5
    void = np.array([[0, 1, 2, 255]], np.uint8)  # objects and a border
    assert np.array_equal(without_grades(void), void)
    many = np.arange(200, dtype=np.uint8)[None]  # instances
    assert np.array_equal(without_grades(many), many)


def test_a_grey_mask_with_soft_edges_is_read_as_one_object(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    for path in (tmp_path / "photos" / "Annotations").iterdir():
        soft = cv2.circle(np.zeros(read_labels(path).shape, np.uint8), (20, 20), 12, 255, -1, cv2.LINE_AA)
        cv2.imwrite(str(path), soft)
    (_, labels_of), *_ = find_pictures(tmp_path / "photos", "auto", [])
    assert set(np.unique(labels_of((0, 0)))) == {0, 255}


def test_broken_pictures_are_all_named_before_work(photos, tmp_path):
    root = tmp_path / "photos"
    shutil.copytree(photos, root)
    picture = root / "JPEGImages" / "1.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    write_labels(root / "Annotations" / "2.png", np.ones((5, 5), np.uint8))
    with pytest.raises(UserError) as told:
        find_pictures(root, "auto", [])
    assert "1.jpg: the file is cut short" in str(told.value) and "2.jpg: the picture is" in str(told.value)


def test_a_video_that_training_cannot_use_is_said(data, tmp_path):
    shutil.copytree(data, tmp_path / "set")
    folder = min((tmp_path / "set" / "train" / "Annotations").iterdir())
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    clips = VideoClips(SourceConfig(root=str(tmp_path / "set"), format="plain"), tiny(data).train)
    assert len(clips) == 2 and any("1 videos of split 'train' have fewer than two" in note for note in clips.notes)


def test_coco_pictures_of_one_name_are_told_apart_by_their_folders(tmp_path):
    def coco(*names: str):
        (tmp_path / "instances.json").write_text(json.dumps({
            "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
            "annotations": [{"image_id": number, "segmentation": [[1, 1, 9, 1, 9, 9]]}
                            for number, _ in enumerate(names)]}))
        return [str(path.relative_to(tmp_path)) for path, _ in find_pictures(tmp_path, "auto", [])]

    for folder in "ab":
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "1.jpg"), np.zeros((20, 30, 3), np.uint8))
    assert coco("./a/1.jpg", "b/1.jpg", "c/2.jpg") == ["a/1.jpg", "b/1.jpg"]
    with pytest.raises(UserError, match=r"several pictures are called 1\.jpg"):
        coco("1.jpg")


@pytest.mark.parametrize(("suffix", "reduced"), [(".png", 1), (".jpg", 4)])
def test_frames_of_any_size_are_read_at_any_scale(suffix, reduced, tmp_path):
    path = tmp_path / f"frame{suffix}"
    cv2.imwrite(str(path), np.zeros((113, 246, 3), np.uint8))
    frame, by = _read_frame(path, (113, 246), 0.2)
    assert by == reduced and frame.shape[:2] == (-(-113 // by), -(-246 // by))


def test_compressed_run_lengths():
    # One character a number below 16: its code less 48. A larger or negative one takes more groups of five bits.
    assert _decompressed("34") == [3, 4]
    assert _decompressed("P1") == [32]  # 0 + 1 * 32, the first with the bit that says more (32 + 0 + 48)
    assert _decompressed("345O") == [3, 4, 5, 3]  # the fourth is -1 beside the second
    assert _run_lengths({"size": [2, 4], "counts": [3, 4, 1]}).astype(int).tolist() == [[0, 0, 1, 1], [0, 1, 1, 0]]


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda root: (root / "JPEGImages" / "1.jpg").write_bytes(b"no"), "1.jpg"),
    (lambda root: write_labels(root / "Annotations" / "1.png", np.ones((5, 5), np.uint8)), "make them equal"),
])
def test_a_broken_file_is_named_even_by_a_worker(photos, tmp_path, break_it, message):
    root = tmp_path / "broken"
    shutil.copytree(photos, root)
    break_it(root)
    config = tiny(root, f"data.sources=[{{root: {root}, kind: static}}]", "data.workers=1", "train.batch=4")
    with pytest.raises(UserError, match=message):
        list(batches(Mixture(config), 0, 4))


def test_folders_without_pictures_are_named(tmp_path):
    with pytest.raises(UserError, match="no pictures with masks"):
        find_pictures(tmp_path, "auto", [])
    with pytest.raises(UserError, match="no such folder"):
        find_pictures(tmp_path / "nowhere", "auto", [])
