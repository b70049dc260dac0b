"""Generated videos: equal by seed, in the layout of LVOS, and hard in the ways that the project is about."""

import json
import shutil

import numpy as np
import pytest

from common.errors import UserError
from common.files import file_hash
from datasets.check import check_videos
from datasets.readers import DAVIS_PALETTE, given_labels, read_image, read_labels, write_labels
from datasets.records import open_videos
from datasets.synthetic import make, make_long_cuts
from datasets.synthetic_compose import TextureStock, compose
from datasets.synthetic_options import DIFFICULTIES, options
from datasets.synthetic_real import CutOutStock, cutout_stocks
from datasets.synthetic_scene import smooth, wander
from datasets.synthetic_sources import find_cutouts, find_sources, to_and_fro


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made") / "data", videos=(2, 4, 1), frames=16, size=(64, 96))


def contents(root):
    return {str(path.relative_to(root)): file_hash(path) for path in sorted(root.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes_and_another_seed_other_videos(small, tmp_path):
    again = make(tmp_path / "again", videos=(2, 4, 1), frames=16, size=(64, 96))
    assert contents(again) == contents(small)
    other = make(tmp_path / "other", seed=1, videos=(2, 4, 1), frames=16, size=(64, 96))
    assert not set(contents(other)) & {name for name in contents(small) if name.endswith(".jpg")}


def test_a_video_does_not_depend_on_how_many_there_are(small, tmp_path):
    fewer = contents(make(tmp_path / "fewer", videos=(1, 2, 0), frames=16, size=(64, 96)))
    whole = contents(small)
    pictures = {name for name in fewer if name.endswith((".jpg", ".png"))}
    assert pictures and all(fewer[name] == whole[name] for name in pictures)


def test_layout_is_that_of_lvos(small):
    for split, count in (("train", 2), ("valid", 4), ("test", 1)):
        found = open_videos(small, split)
        assert found.format == "lvos" and len(found.videos) == count
        for video in found.videos:
            numbers = [int(stem) for stem in video.frames]
            assert all(len(stem) == 8 for stem in video.frames) and set(np.diff(numbers)) == {5}
            assert read_image(video.image_path(video.frames[0])).shape == (64, 96, 3)
            assert video.attributes is not None and video.objects
            for record in video.objects:
                assert record.caption
                assert record.range is not None
                assert record.range.start + 5 * record.range.frame_nums == record.range.end == numbers[-1] + 5


def test_meta_starts_are_where_the_masks_start_and_the_check_finds_nothing(small):
    from datasets.check import check_videos

    for split in ("train", "val", "test"):
        found = open_videos(small, split)
        assert not check_videos(found, deep=True)
        for video in found.videos:
            given = given_labels(video)
            assert not given.warnings
            starts = {int(label): int(stem) for stem, labels in given.items() for label in np.unique(labels) if label}
            assert starts == {record.id: record.range.start for record in video.objects}


def test_train_and_val_have_every_mask_and_test_the_given_ones_only(small):
    for video in open_videos(small, "val").videos:
        assert video.masks == video.frames
    for video in open_videos(small, "test").videos:
        given = given_labels(video)
        assert set(video.masks) == set(given) | {video.frames[0]} and len(video.masks) < len(video.frames)
        for stem, labels in given.items():
            assert np.array_equal(read_labels(video.mask_path(stem)), labels)


def test_unseen_names_are_every_other_video_of_val_and_test(small):
    names = (small / "unseen_videos.txt").read_text().split()
    val = {video.name for video in open_videos(small, "val").videos}
    train = {video.name for video in open_videos(small, "train").videos}
    assert len(val & set(names)) == 2 and not train & set(names)


def test_one_validation_video_begins_without_an_object(small):
    starts = [min(record.range.start for record in video.objects) > int(video.frames[0])
              for video in open_videos(small, "val").videos]
    assert any(starts)


def test_masks_are_palette_files_with_the_davis_palette(small):
    from PIL import Image

    video = open_videos(small, "val").videos[0]
    with Image.open(video.mask_path(video.frames[-1])) as image:
        assert image.mode == "P" and image.getpalette() == DAVIS_PALETTE


def test_the_same_options_again_do_nothing_and_others_are_refused(small):
    before = contents(small)
    assert make(small, videos=(2, 4, 1), frames=16, size=(64, 96)) == small
    assert contents(small) == before
    with pytest.raises(UserError, match="not made with these options"):
        make(small, seed=5, videos=(2, 4, 1), frames=16, size=(64, 96))
    assert contents(small) == before


def test_cutouts_of_other_files_under_the_same_names_are_another_set(material, tmp_path):
    made = {"videos": (1, 1, 0), "frames": 8, "size": (48, 64)}
    make(tmp_path / "cut", **made, cutouts=[material])
    make(tmp_path / "cut", **made, cutouts=[material])
    shutil.copytree(material, tmp_path / "other")
    path = min((tmp_path / "other/JPEGImages").glob("*.jpg"))
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="not made with these options"):
        make(tmp_path / "cut", **made, cutouts=[tmp_path / "other"])
    for path in (tmp_path / "other/Annotations").glob("*.png"):
        write_labels(path, np.pad(read_labels(path), ((0, 1), (0, 0))))
    with pytest.raises(UserError, match=r"the mask is 90x61, its picture 90x60"):
        make(tmp_path / "another", videos=(8, 8, 0), frames=8, size=(48, 64), cutouts=[tmp_path / "other"])


def test_the_folder_that_one_is_in_will_do(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make(".", videos=(0, 1, 0), frames=8, size=(48, 64))
    assert (tmp_path / "here/val/val_meta.json").is_file()


def test_a_short_video_can_be_scored(tmp_path):
    for seed in range(6):
        root = make(tmp_path / str(seed), seed=seed, videos=(0, 3, 0), frames=8, size=(48, 64))
        assert not [line for line in check_videos(open_videos(root, "val")).warnings if "frame_nums" in line]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "frame")

    monkeypatch.setattr("datasets.synthetic_write.write_labels", fail)
    with pytest.raises(OSError):
        make(tmp_path / "data", videos=(1, 0, 0), frames=8, size=(48, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong, message", [
    ({"preset": "lnog"}, "did you mean 'long'"),
    ({"difficulty": "harder"}, "did you mean 'hard'"),
    ({"videos": (0, 0, 0)}, "--videos"),
    ({"frames": 3}, "at least 8"),
    ({"preset": "long", "frames": 100}, "at least 400"),
    ({"size": (20, 224)}, "--size"),
    ({"seed": -1}, "--seed: -1 is negative"),
])
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        options(**wrong)


def test_long_videos_have_absences_of_100_frames_with_a_look_alike_meanwhile():
    chosen = options("long")
    stock = TextureStock(DIFFICULTIES["normal"])
    for index in range(6):
        scene = compose(np.random.default_rng([0, 1, index]), chosen, 1, index, False, stock)
        targets = [actor for actor in scene.actors if actor.label]
        height, width = scene.size
        for target in targets:
            gone = np.flatnonzero(np.diff(np.pad(~target.track.present, 1).astype(int)))
            assert (gone[1::2] - gone[::2]).max() >= 100
            assert target.track.present[:30].all() and target.track.present[gone[1] :].any()
            drift = target.track.gain[-100:].mean(axis=0) / target.track.gain[:100].mean(axis=0)
            assert np.abs(drift - 1).max() > 0.05
        away = ~np.any([target.track.present for target in targets], axis=0)
        alike = [actor for actor in scene.actors if not actor.label and actor.track.present.all()]
        assert len(alike) >= len(targets)
        place = alike[0].track.position[away]
        assert ((place > 0) & (place < (width, height))).all(axis=1).mean() > 0.9


def test_turning_objects_show_another_side_and_turn_back():
    def colour(sprite, frame):
        v, u = np.mgrid[-1:1:40j, -1:1:40j]
        seen, cover = sprite.sample(u, v, frame, 20.0)
        return seen[cover > 0.5].mean(0)

    hard, turning = (TextureStock(DIFFICULTIES[name]) for name in ("hard", "turning"))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        model = turning.models(rng, 1, unseen=True)[0]
        for sprite in (turning.look(rng, model, 20.0)[0], turning.twin(rng, model, 20.0)):
            side = 1 / abs(sprite.drift[0])  # frames in which it turns from one side to the other
            assert abs(sprite.drift[1]) < 1e-9 and 50 <= side <= 100
            front, back, again = (colour(sprite, round(side * turns)) for turns in (0, 1, 2))
            assert np.abs(front - back).max() > 50 and np.abs(front - again).max() < 10
        other, _ = hard.look(rng, hard.models(rng, 1, unseen=True)[0], 20.0)
        assert max(np.abs(colour(other, 0) - colour(other, frame)).max() for frame in range(0, 600, 50)) < 40


def test_absent_actors_are_out_of_the_picture_and_come_back():
    rng = np.random.default_rng(3)
    position, present = wander(rng, 200, (128, 224), 20.0, 4.0, [(50, 120)])
    assert not present[50:120].any() and present[:50].all() and present[120:].all()
    touches = ((position > -20) & (position < (244, 148))).all(axis=1)  # a disc of radius 20 reaches the picture
    assert touches[:40].all() and touches[135:].all()
    assert not touches[50] and not touches[119]  # it left through an edge and comes back through one


def test_smoothing_keeps_length_and_constants():
    values = np.full((9, 2), 3.0)
    assert np.allclose(smooth(values, 5), values)


def test_films_play_to_and_fro():
    assert [to_and_fro(frame, 3) for frame in range(6)] == [0, 1, 2, 1, 0, 1]
    assert to_and_fro(7, 1) == 0


def test_first_mask_and_optical_flow_both_fail(tmp_path):
    """What the demo's margins stand on; thresholds with room above the measured 4-8 and 20-36."""
    from datasets.baselines import copy_first, flow
    from evaluation.metrics import region_similarity

    found = open_videos(make(tmp_path / "data", videos=(0, 4, 0)), "val")
    for method, most in ((copy_first, 0.25), (flow, 0.5)):
        method(found, tmp_path / method.__name__)
        scores = []
        for video in found.videos:
            truth = [read_labels(video.mask_path(stem)) for stem in video.frames]
            folder = tmp_path / method.__name__ / "masks" / video.name
            guess = [read_labels(folder / f"{stem}.png") for stem in video.frames]
            for record in video.objects:
                after = [place for place, stem in enumerate(video.frames[:-1]) if int(stem) > record.range.start]
                scores.append(np.mean([region_similarity(truth[place] == record.id, guess[place] == record.id)
                                       for place in after]))
        assert np.mean(scores) < most, method.__name__


@pytest.fixture(scope="module")
def material(small, tmp_path_factory):
    """A folder of photographs and clips with masks: the generator's own frames, with one large object each."""
    import cv2

    folder = tmp_path_factory.mktemp("material")
    rng = np.random.default_rng(0)
    for kind, count in (("photograph", 12), ("clip", 8)):
        for index in range(count):
            for frame in range(1 if kind == "photograph" else 6):
                image = rng.integers(0, 256, (60, 90, 3), np.uint8)
                labels = np.zeros((60, 90), np.uint8)
                labels[10:40, 20 + 3 * frame : 55 + 3 * frame] = 1
                stem = f"{kind}{index}" if kind == "photograph" else f"{kind}{index}/{frame:05d}"
                path = folder / "JPEGImages" / f"{stem}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), image)
                write_labels(folder / "Annotations" / f"{stem}.png", labels)
    return folder


def test_cutouts_come_from_sources_that_no_other_split_uses(material, tmp_path):
    root = make(tmp_path / "cut", videos=(2, 2, 0), frames=8, size=(48, 64), cutouts=[material])
    captions = {split: json.loads((root / split / f"{split}_expression_meta.json").read_text())["videos"]
                for split in ("train", "val")}
    stocks = cutout_stocks(find_sources([material], "--cutouts"), options(videos=(2, 2, 0)))
    names = [{source.name for source in stock.sources} for stock in stocks]
    assert len(names[0] | names[1]) == len(names[0]) + len(names[1]) == 20 and not names[2]
    sources = {split: {item["caption"].split(" of ")[1] for video in videos.values()
                       for item in video["objects"].values()} for split, videos in captions.items()}
    assert sources["train"] <= names[0] and sources["val"] <= names[1]
    again = make(tmp_path / "again", videos=(2, 2, 0), frames=8, size=(48, 64), cutouts=[material])
    assert contents(root) == contents(again)


def test_a_cutout_carries_its_own_pixels_and_no_background(material):
    sources = find_sources([material], "--cutouts")
    cutouts = find_cutouts(sources)
    assert len(cutouts) == len(sources) == 20
    look, _ = CutOutStock(cutouts, sources).look(np.random.default_rng(0), cutouts[0], 20.0)
    v, u = np.mgrid[-1.4:1.4:57j, -1.4:1.4:57j]
    _, cover = look.sample(u, v, 0, 20.0)
    assert cover[28, 28] == 1 and cover[0, 0] == 0
    assert 0.85 < (cover > 0.5).mean() / (30 * 35 / 39**2 * (look.extent / 1.4) ** 2) < 1.15


def test_material_that_is_named_twice_is_refused(material, tmp_path):
    shutil.copytree(material, tmp_path / "again")
    with pytest.raises(UserError, match="is the same picture as"):
        find_sources([material, tmp_path / "again"], "--cutouts")
    with pytest.raises(UserError, match="is named twice"):
        find_sources([material, material / "JPEGImages" / ".."], "--cutouts")


def test_too_little_material_is_said(material, tmp_path):
    with pytest.raises(UserError, match="needs JPEGImages and Annotations"):
        make(tmp_path / "x", cutouts=[tmp_path])
    few = tmp_path / "few"
    for kind in ("JPEGImages", "Annotations"):
        shutil.copytree(material / kind / "clip0", few / kind / "clip0")
    with pytest.raises(UserError, match="name more folders"):
        make(tmp_path / "x", cutouts=[few])
    with pytest.raises(UserError, match="no other side"):
        make(tmp_path / "x", preset="long", difficulty="turning", cutouts=[material])
    with pytest.raises(UserError, match="lower --videos"):
        make_long_cuts(tmp_path / "x", [few])
    for path in (few / "Annotations" / "clip0").iterdir():  # as in the original files of DAVIS-2016
        write_labels(path, 255 * (read_labels(path) > 0).astype(np.uint8))
    shutil.copytree(few / "JPEGImages" / "clip0", few / "JPEGImages" / "clip1")
    with pytest.raises(UserError, match="clip0: no mask shows an object"):
        make_long_cuts(tmp_path / "x", [few], videos=1)
    assert not (tmp_path / "x").exists()


def test_a_long_cut_shows_the_clip_others_and_the_clip_again(material, tmp_path):
    root = make_long_cuts(tmp_path / "long", [material], videos=2, size=(48, 64))
    found = open_videos(root, "val")
    assert [record.id for video in found.videos for record in video.objects] == [1, 1]
    for video in found.videos:
        shows = np.array([(read_labels(video.mask_path(stem)) == 1).any() for stem in video.frames])
        assert shows[:6].all() and shows[-6:].all() and not shows[6:-6].any() and len(shows) - 12 >= 100
        first, last = (read_labels(video.mask_path(stem)) for stem in (video.frames[0], video.frames[-1]))
        assert np.array_equal(first, last)  # the second time it runs backwards
