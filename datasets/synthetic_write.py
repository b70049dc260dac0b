"""Generated videos on disk: frames, masks and metas in the layout of LVOS, whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from common.errors import UserError
from common.files import check_output_folder, write_json, write_text
from common.progress import Progress
from datasets.meta import read_json
from datasets.readers import write_labels
from datasets.synthetic_options import SPLITS, Options
from datasets.synthetic_scene import Drawn

STEP = 5  # between frame numbers, as in LVOS
JPEG_QUALITY = 92
_VERSION = 2  # of the generator: other pictures, other number
_LETTERS = np.array(list("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"))


class Drawing(Protocol):
    """What a video needs to be written; a Scene is one."""

    size: tuple[int, int]
    attributes: list[str]

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def captions(self) -> dict[int, str]:
        """A phrase for each label."""
        ...

    def draw(self) -> Iterator[Drawn]:
        """Yield the frames in order."""
        ...


DrawingMaker = Callable[[np.random.Generator, Options, int, int, bool], Drawing]


def write_dataset(out: str | Path, chosen: Options, scene_of: DrawingMaker, **more: object) -> Path:
    """Write every split of a generated data set into ``out``, whole or not at all; see :func:`make`.

    ``scene_of(rng, options, split number, index, unseen)`` composes one video; ``more`` goes into ``dataset.json``.
    """
    out = Path(out)
    record = {"made_by": "tools.make_dataset", "version": _VERSION, **asdict(chosen), **more}
    if (out / "dataset.json").is_file() and read_json(out / "dataset.json") == _as_json(record):
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and was not made with these options by this version of the generator; choose "
                        "another folder or remove it")
    check_output_folder(out)
    place = out.absolute()
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        unseen: list[str] = []
        with Progress(sum(chosen.videos), f"generate {out}", unit="video") as progress:
            for number, split in enumerate(SPLITS):
                if chosen.videos[number]:
                    unseen += _write_split(part / split, split, number, chosen, scene_of, progress)
        write_text(part / "unseen_videos.txt", "".join(f"{name}\n" for name in unseen))
        write_json(part / "dataset.json", record)
        if place.is_dir():
            place.rmdir()
        place.parent.mkdir(parents=True, exist_ok=True)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _as_json(record: dict[str, object]) -> dict[str, object]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}


def _write_split(
    folder: Path, split: str, number: int, chosen: Options, scene_of: DrawingMaker, progress: Progress
) -> list[str]:
    """Write one split and return its unseen videos' names: every other video, of validation and test only."""
    metas, attributes, captions, unseen_names = {}, {}, {}, []
    for index in range(chosen.videos[number]):
        rng = np.random.default_rng([chosen.seed, number, index])
        unseen = split != "train" and index % 2 == 1
        name = "".join(rng.choice(_LETTERS, 8))
        scene = scene_of(rng, chosen, number, index, unseen)
        starts = _write_video(folder, name, scene, int(rng.choice((1, 1, 1, 16, 151))), split == "test")
        progress.advance()
        last = max((start for start, _ in starts.values()), default=0)
        metas[name] = {"objects": {str(label): {"frame_range": {"start": start, "end": start + STEP * count,
                                                                "frame_nums": count}}
                                   for label, (start, count) in sorted(starts.items())}}
        late = {"LO"} if last > min((start for start, _ in starts.values()), default=0) else set()
        attributes[name] = {"name": name, "set": split, "num_scribbles": 0, "image_size": list(scene.size),
                            "attributes": sorted({*scene.attributes} | late)}
        captions[name] = {"objects": {str(label): {"caption": phrase}
                                      for label, phrase in sorted(scene.captions.items()) if label in starts}}
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
    folder: Path, name: str, scene: Drawing, first_number: int, only_given: bool
) -> dict[int, tuple[int, int]]:
    """Write frames and masks; return label -> (number of its first frame, frames from there to the video's end).

    An object is annotated from the first frame in which at least 60 % of it is visible (or, failing that, from the
    video's middle on); before, it is background, as in data that people annotated. None begins in the last frame,
    where there is nothing to segment.
    """
    images, masks = folder / "JPEGImages" / name, folder / "Annotations" / name
    images.mkdir(parents=True)
    starts: dict[int, tuple[int, int]] = {}
    for frame, (picture, labels, visible) in enumerate(scene.draw()):
        number = first_number + STEP * frame
        threshold = 0.6 if frame < scene.frames // 2 else 0.1
        new = [label for label, share in visible.items() if label not in starts and share >= threshold
               and frame < scene.frames - 1]
        starts.update({label: (number, scene.frames - frame) for label in new})
        keep = np.zeros(256, np.uint8)
        keep[255] = 255  # void of real clips stays void
        keep[list(starts)] = list(starts)
        labels = keep[labels]
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        (images / f"{number:08d}.jpg").write_bytes(data.tobytes())
        if not only_given:
            write_labels(masks / f"{number:08d}.png", labels)
        elif new or frame == 0:
            write_labels(masks / f"{number:08d}.png", np.where(np.isin(labels, new), labels, 0).astype(np.uint8))
    return starts
