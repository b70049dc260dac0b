"""First-appearance annotations as a YouTube-VOS style folder, for other code that expects them on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import check_output_folder, write_json
from datasets.readers import given_labels, write_labels
from datasets.records import VideoSet


def write_first_annotations(
    found: VideoSet, output: str | Path, advance: Callable[[int], None] | None = None
) -> list[str]:
    """Write what inference may see of a split: ``Annotations/<video>/<frame>.png`` and ``meta.json``.

    A mask is written for each frame in which an object first appears, with the new objects only; 255 becomes 0. The
    meta lists, for each object, the frames from its first one on, as YouTube-VOS does. ``JPEGImages`` links to each
    video's original images. ``advance(1)`` is called after each video.

    Args:
        output: a folder that does not exist yet or is empty; it is whole or absent.

    Returns:
        lines about what meta and masks disagree on, and videos that show no object.

    Raises:
        UserError: ``output`` is in use or inside the data, or a mask cannot be read.
    """
    output = Path(output)
    check_output_folder(output, [found.root])
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: the folder is not empty; name a new one or remove it")
    place = output.absolute()
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    warnings: list[str] = []
    videos = {}
    try:
        for video in found.videos:
            given = given_labels(video, found.objects)
            warnings += given.warnings
            captions = {record.id: record.caption for record in video.objects}
            objects = {}
            for stem, labels in given.items():
                write_labels(beside / "Annotations" / video.name / f"{stem}.png", labels)
                frames = list(video.frames[video.frames.index(stem):])
                for label in np.unique(labels).tolist():
                    if label:
                        objects[str(label)] = {"category": captions.get(label) or "object", "frames": frames}
            videos[video.name] = {"objects": objects}
            if video.image_folder is None:
                warnings.append(f"{video.name}: has no images to link to")
            else:
                (beside / "JPEGImages").mkdir(parents=True, exist_ok=True)
                (beside / "JPEGImages" / video.name).symlink_to(video.image_folder.resolve(), target_is_directory=True)
            if advance:
                advance(1)
        write_json(beside / "meta.json", {"videos": videos})
        if place.exists():
            place.rmdir()
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return warnings
