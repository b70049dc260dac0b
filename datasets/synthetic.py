"""A miniature LVOS, generated: the data that the project runs on with no download, and its long benchmark.

Deterministic: a video depends on (seed, split, its number, the options) alone, and its files are equal bit for bit.
Nothing here resembles a real video beyond what makes them hard: objects move, turn, change size and colour, hide
behind others, leave and come back, and look alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError, nearest
from common.files import write_json, write_text
from common.progress import Progress
from datasets.meta import read_json
from datasets.readers import write_labels
from datasets.synthetic_concepts import draw_concept, make_background, make_sprite
from datasets.synthetic_scene import Actor, Pan, Scene, Track, draw, swing, wander

SPLITS = ("train", "val", "test")
STEP = 5  # between frame numbers, as in LVOS
JPEG_QUALITY = 92
_VERSION = 1  # of the generator: other pictures, other number
_LETTERS = np.array(list("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"))


@dataclass(frozen=True)
class Options:
    """What is generated. ``videos`` and ``frames`` are for train, val, test; ``size`` is (height, width)."""

    preset: str
    seed: int
    videos: tuple[int, int, int]
    frames: tuple[int, int, int]
    size: tuple[int, int]
    difficulty: str


PRESETS = {
    "demo": Options("demo", 0, (24, 4, 2), (40, 60, 60), (128, 224), "normal"),
    "long": Options("long", 0, (24, 20, 2), (160, 600, 600), (128, 224), "normal"),
}


@dataclass(frozen=True)
class Difficulty:
    """Numbers behind ``--difficulty``: pixels a frame at height 128, hue distance of look-alikes, how much changes."""

    speed: float
    hue_gap: float
    change: float
    saturation: float  # of the background; objects have 0.65 to 1
    extras: int  # most distractors that look like nothing annotated


DIFFICULTIES = {
    "easy": Difficulty(2.0, 0.22, 0.6, 0.1, 1),
    "normal": Difficulty(3.0, 0.14, 1.0, 0.2, 1),
    "hard": Difficulty(5.0, 0.06, 1.5, 0.4, 3),
}

SceneMaker = Callable[[np.random.Generator, Options, int, int, bool], Scene]


def make(
    out: str | Path,
    preset: str = "demo",
    seed: int = 0,
    videos: int | tuple[int, int, int] | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    difficulty: str | None = None,
) -> Path:
    """Generate a data root in the layout of LVOS and return it.

    Args:
        out: the root; must not exist, or hold what the same options made (then nothing is done).
        preset: ``demo`` (short videos) or ``long`` (600 frames, absences of 100 and more, look-alikes meanwhile).
        seed: of everything.
        videos: number of validation videos, or numbers for train, val and test; None: the preset's.
        frames: of each video of val and test, and at most so many in train; None: the preset's.
        size: (height, width) in pixels; None: the preset's.
        difficulty: ``easy``, ``normal`` or ``hard``; None: the preset's.

    Raises:
        UserError: unknown names, numbers out of range, ``out`` exists and was made otherwise.
    """
    return write_dataset(out, options(preset, seed, videos, frames, size, difficulty), textured_scene)


def options(
    preset: str = "demo",
    seed: int = 0,
    videos: int | tuple[int, int, int] | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    difficulty: str | None = None,
) -> Options:
    """Check the options of :func:`make` and fill them in from the preset."""
    if preset not in PRESETS:
        raise UserError(f"--preset: '{preset}' is unknown; {nearest(preset, PRESETS)}")
    base = PRESETS[preset]
    if difficulty is not None and difficulty not in DIFFICULTIES:
        raise UserError(f"--difficulty: '{difficulty}' is unknown; {nearest(difficulty, DIFFICULTIES)}")
    counts = base.videos if videos is None else (base.videos[0], videos, base.videos[2]) if isinstance(videos, int) \
        else videos
    lengths = base.frames if frames is None else (min(base.frames[0], frames), frames, frames)
    height, width = size or base.size
    if min(counts) < 0 or not any(counts):
        raise UserError(f"--videos: {counts} makes no video; give positive numbers")
    shortest = 400 if preset == "long" else 8
    if lengths[1] < shortest:
        raise UserError(f"--frames: {lengths[1]} is too few for preset {preset}; give at least {shortest}")
    if min(height, width) < 48:
        raise UserError(f"--size: {height}x{width} is too small; give at least 48x48")
    return replace(base, seed=seed, videos=counts, frames=lengths, size=(height, width),
                   difficulty=difficulty or base.difficulty)


# One video.


def textured_scene(rng: np.random.Generator, chosen: Options, split: int, index: int, unseen: bool) -> Scene:
    """A scene of textured objects over a textured background."""
    level = DIFFICULTIES[chosen.difficulty]
    height = chosen.size[0]
    frames = chosen.frames[split]
    long = chosen.preset == "long"
    unit = height / 128
    speed = level.speed * unit
    targets = int(rng.integers(1, 3)) if long else 1 + index % 3
    hues = rng.uniform() + np.arange(targets) / targets * 0.9 + rng.uniform(-0.04, 0.04, targets)
    actors, attributes = [], {"LRA"} if long else set()
    for label in range(1, targets + 1):
        small = rng.uniform() < 0.12
        radius = rng.uniform(13, 16) * unit if small else rng.uniform(21, 33) * unit
        absences = _absences(rng, frames, long, split, index, label)
        concept = draw_concept(rng, unseen, float(hues[label - 1]))
        drift = 0.002 * level.change
        actors.append(Actor(make_sprite(rng, concept, drift),
                            _track(rng, chosen, frames, radius, speed, absences, level.change, long), label,
                            concept.caption()))
        attributes |= {name for name, there in (("LR", small), ("OV", bool(absences)), ("LO", label > 1)) if there}
        # Look-alikes: of long videos' targets always, and they stay while the target is away.
        if long or rng.uniform() < 0.4:
            shift = level.hue_gap * rng.uniform(1, 1.4) * rng.choice((-1, 1))
            twin = replace(concept, hue=(concept.hue + shift) % 1)
            away = [] if long else _absences(rng, frames, long, split, index, label + 1)
            actors.append(Actor(make_sprite(rng, twin, drift),
                                _track(rng, chosen, frames, radius * rng.uniform(0.8, 1.2), speed, away,
                                       level.change, False)))
            attributes.add("BC")
    for _ in range(int(rng.integers(0, level.extras + 1))):
        concept = draw_concept(rng, unseen, float(rng.uniform()))
        # Far in colour from every target, or it would be a look-alike.
        gaps = [abs((concept.hue - hue + 0.5) % 1 - 0.5) for hue in hues]
        if min(gaps) >= 0.12:
            radius = rng.uniform(10, 20) * unit
            actors.append(Actor(make_sprite(rng, concept, 0.0),
                                _track(rng, chosen, frames, radius, speed, [], level.change, False)))
    order = rng.permutation(len(actors))
    actors = [actors[place] for place in order]
    if rng.uniform() < 0.6:
        actors.append(_occluder(rng, chosen, frames))
        attributes.add("OCC")
    if level.change >= 1:
        attributes |= {"SV", "DEF"}
    return Scene(chosen.size, frames, _pan(rng, chosen, frames, level.saturation), actors, sorted(attributes))


def _absences(
    rng: np.random.Generator, frames: int, long: bool, split: int, index: int, label: int
) -> list[tuple[int, int]]:
    if long:
        # Training clips leave for a part of their frames, the benchmark's for 100 to 180, twice if there is room.
        span = (100, 180) if frames >= 400 else (frames // 4, frames // 2)
        absences, moment = [], int(rng.integers(frames // 12, frames // 5))
        while True:
            length = int(rng.integers(*span)) + 4
            if moment + length > frames * 0.93 or len(absences) == 2:
                return absences
            absences.append((moment, moment + length))
            moment += length + int(rng.integers(frames // 12, frames // 4))
    late = label > 1 and rng.uniform() < 0.5
    if split == 1 and index == 0 and label == 1:
        late = True  # one video whose first frames show no object, as LVOS has them
    if late:
        return [(0, int(rng.integers(frames // 10, frames // 3)))]
    if rng.uniform() < 0.7:
        first = int(rng.integers(frames // 5, frames // 2))
        return [(first, first + int(rng.integers(frames // 6, frames // 3)))]
    return []


def _track(
    rng: np.random.Generator, chosen: Options, frames: int, radius: float, speed: float,
    absences: list[tuple[int, int]], change: float, drift: bool,
) -> Track:
    size = np.exp(0.22 * change * swing(rng, frames, 70)[:, 0]) * radius
    position, present = wander(rng, frames, chosen.size, float(size.max()), speed, absences)
    gain = 1 + 0.08 * change * swing(rng, frames, 80, 3)
    if drift:  # the appearance moves away from the first mask's, and never comes back
        end = rng.uniform(0.55, 1.3, 3)
        gain = gain * (1 + (end - 1) * np.linspace(0, 1, frames)[:, None])
    angle = rng.uniform(0, 2 * np.pi) + 1.2 * change * swing(rng, frames, 60)[:, 0]
    return Track(position, size, angle, gain, present)


def _occluder(rng: np.random.Generator, chosen: Options, frames: int) -> Actor:
    """A pillar of background stuff in front of everything, that drifts sideways."""
    height, width = chosen.size
    canvas = make_background(rng, height * 2, height, 0.1)
    x = width * (0.5 + 0.45 * swing(rng, frames, 150)[:, 0])
    position = np.stack([x, np.full(frames, height / 2)], axis=1)
    still = np.ones(frames)
    track = Track(position, still * height, still * rng.uniform(-0.2, 0.2), np.ones((frames, 3)), still > 0)
    return Actor(_Pillar(canvas, rng.uniform(0.06, 0.1)), track)


@dataclass
class _Pillar:
    canvas: np.ndarray
    half: float

    def sample(self, u: np.ndarray, v: np.ndarray, frame: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.canvas.shape[:2]
        x, y = (u * 0.5 * width).astype(np.float32), (v * 0.5 * height).astype(np.float32)
        colour = cv2.remap(self.canvas, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return colour * 0.8, np.clip((self.half - np.abs(u)) * radius + 0.5, 0, 1).astype(np.float32)


def _pan(rng: np.random.Generator, chosen: Options, frames: int, saturation: float) -> Pan:
    height, width = chosen.size
    canvas = make_background(rng, height * 2, width * 2, saturation)
    offset = np.array([width, height]) * (0.4 + 0.35 * swing(rng, frames, 130, 2))
    return Pan(canvas, chosen.size, offset, 1.05 + 0.15 * swing(rng, frames, 110)[:, 0])


# The data root.


def write_dataset(out: str | Path, chosen: Options, scene_of: SceneMaker, **more: object) -> Path:
    """Write every split of a generated data set into ``out``, whole or not at all; see :func:`make`.

    ``scene_of(rng, options, split number, index, unseen)`` composes one video; ``more`` goes into ``dataset.json``.
    """
    out = Path(out)
    record = {"made_by": "tools.make_dataset", "version": _VERSION, **asdict(chosen), **more}
    if (out / "dataset.json").is_file() and read_json(out / "dataset.json") == _as_json(record):
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and was not made with these options; choose another folder or remove it")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        unseen: list[str] = []
        total = sum(count * length for count, length in zip(chosen.videos, chosen.frames, strict=True))
        with Progress(total, f"generate {out}") as progress:
            for number, split in enumerate(SPLITS):
                if chosen.videos[number]:
                    unseen += _write_split(part / split, split, number, chosen, scene_of, progress)
        write_text(part / "unseen_videos.txt", "".join(f"{name}\n" for name in unseen))
        write_json(part / "dataset.json", record)
        if out.is_dir():
            out.rmdir()
        out.parent.mkdir(parents=True, exist_ok=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _as_json(record: dict[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}


def _write_split(
    folder: Path, split: str, number: int, chosen: Options, scene_of: SceneMaker, progress: Progress
) -> list[str]:
    """Write one split and return its unseen videos' names: every other video, of validation and test only."""
    metas, attributes, captions, unseen_names = {}, {}, {}, []
    for index in range(chosen.videos[number]):
        rng = np.random.default_rng([chosen.seed, number, index])
        unseen = split != "train" and index % 2 == 1
        name = "".join(rng.choice(_LETTERS, 8))
        scene = scene_of(rng, chosen, number, index, unseen)
        starts = _write_video(folder, name, scene, int(rng.choice((1, 1, 1, 16, 151))), split == "test", progress)
        last = max((start for start, _ in starts.values()), default=0)
        metas[name] = {"objects": {str(label): {"frame_range": {"start": start, "end": start + STEP * count,
                                                                "frame_nums": count}}
                                   for label, (start, count) in sorted(starts.items())}}
        late = last > min((start for start, _ in starts.values()), default=0)
        attributes[name] = {"name": name, "set": split, "num_scribbles": 0, "image_size": list(scene.size),
                            "attributes": sorted({*scene.attributes} - (set() if late else {"LO"}))}
        captions[name] = {"objects": {str(actor.label): {"caption": actor.caption}
                                      for actor in sorted(scene.actors, key=lambda actor: actor.label)
                                      if actor.label in starts}}
        unseen_names += [name] if unseen else []
    write_json(folder / f"{split}_meta.json", {"videos": metas})
    write_json(folder / f"{split}_attribute_meta.json", {
        "sets": [split],
        "attributes": sorted({name for video in attributes.values() for name in video["attributes"]}),
        "videos": attributes,
    })
    write_json(folder / f"{split}_expression_meta.json", {"videos": captions})
    return unseen_names


def _write_video(
    folder: Path, name: str, scene: Scene, first_number: int, only_given: bool, progress: Progress
) -> dict[int, tuple[int, int]]:
    """Write frames and masks; return label -> (number of its first frame, frames from there to the video's end).

    An object is annotated from the first frame in which at least 60 % of it is visible (or, failing that, from the
    video's middle on); before, it is background, as in data that people annotated.
    """
    images, masks = folder / "JPEGImages" / name, folder / "Annotations" / name
    images.mkdir(parents=True)
    starts: dict[int, tuple[int, int]] = {}
    for frame, (picture, labels, visible) in enumerate(draw(scene)):
        number = first_number + STEP * frame
        threshold = 0.6 if frame < scene.frames // 2 else 0.1
        new = [label for label, share in visible.items() if label not in starts and share >= threshold]
        starts.update({label: (number, scene.frames - frame) for label in new})
        keep = np.zeros(256, np.uint8)
        keep[list(starts)] = list(starts)
        labels = keep[labels]
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (images / f"{number:08d}.jpg").write_bytes(data.tobytes())
        if not only_given:
            write_labels(masks / f"{number:08d}.png", labels)
        elif new or frame == 0:
            write_labels(masks / f"{number:08d}.png", np.where(np.isin(labels, new), labels, 0).astype(np.uint8))
        progress.advance()
    return starts


