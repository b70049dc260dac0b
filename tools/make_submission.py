"""Pack masks for the LVOS test server, or verify a zip: every frame, size and object id is checked first.

    python -m tools.make_submission PRED --data ROOT --split test OUT.zip
    python -m tools.make_submission --check OUT.zip --data ROOT --split test

The zip holds one top folder, Annotations, with <video>/<frame>.png: what the official CodaLab script unpacks.
"""

from __future__ import annotations

import argparse
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.command import run
from common.errors import UserError, UserErrors
from common.files import check_output_file, file_hash, written_whole
from common.progress import Progress
from datasets.headers import image_size
from datasets.readers import given_labels
from datasets.records import Video, VideoSet, open_videos
from evaluation.evaluator import prediction_folder
from evaluation.png import NotALabelMap, decode_labels
from evaluation.protocols import STEP

TOP = "Annotations"
DATE = (1980, 1, 1, 0, 0, 0)  # the same masks make the same zip, byte for byte
PALETTE_8_BIT = b"\x08\x03"  # bit depth and colour type in a PNG's header
Read = Callable[[str, str], bytes | None]  # (video, stem) -> the file's bytes, None where it is missing


@dataclass(frozen=True)
class Wanted:
    """What the server needs of one video: ``stems``, at ``size`` (width, height; None: unknown), with ``ids`` only."""

    video: str
    stems: tuple[str, ...]
    size: tuple[int, int] | None
    ids: frozenset[int] | None  # of the meta, else of the given masks; None: neither says which


def main() -> None:
    """Check, then pack; or check a zip."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_submission", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="PRED OUT.zip",
                        help="folder of masks <video>/<frame>.png or an OUT of infer.py, and the zip to write")
    parser.add_argument("--data", required=True, help="data root: its meta and frames say what is needed")
    parser.add_argument("--split", default="test", help="name of the split (default: test)")
    parser.add_argument("--check", metavar="ZIP", help="verify this zip instead of writing one")
    arguments = parser.parse_intermixed_args()
    if len(arguments.paths) != (0 if arguments.check else 2):
        parser.error("give PRED and OUT.zip, or --check ZIP alone")
    if arguments.check:
        found = open_videos(arguments.data, arguments.split, need_images=False)
        wanted = needed(found)
        notes = [*doubts(found, wanted), *check_zip(Path(arguments.check), wanted)]
        print(*notes, f"{arguments.check}: right: {count(wanted)}", sep="\n")
        return
    pred, out = arguments.paths
    wanted, notes = make_submission(pred, arguments.data, arguments.split, out)
    print(*notes, f"wrote {out}: {count(wanted)}, SHA-256 {file_hash(out)}", sep="\n")


def make_submission(
    pred: str | Path, data: str | Path, split: str, zip_path: str | Path
) -> tuple[list[Wanted], list[str]]:
    """Check the masks of ``pred`` (or of its ``masks``) and write the zip; returns what is in it, and notes.

    UserErrors lists everything that is wrong with the masks; then nothing is written.
    """
    if Path(zip_path).suffix != ".zip":
        raise UserError(f"{zip_path}: the submission's name must end in .zip")
    check_output_file(zip_path, [data])
    found = open_videos(data, split, need_images=False)
    wanted = needed(found)
    return wanted, [*doubts(found, wanted), *pack(prediction_folder(pred, found), Path(zip_path), wanted)]


def count(wanted: list[Wanted]) -> str:
    """How much there is, in words."""
    return f"{len(wanted)} videos, {sum(len(video.stems) for video in wanted)} masks"


def needed(found: VideoSet) -> list[Wanted]:
    """Every frame of every video of the meta (of every video, where there is no meta).

    Raises UserErrors where neither images nor the meta say which frames a video has.
    """
    wanted, problems = [], []
    for video in found.videos:
        if found.meta is not None and not video.objects:
            continue  # the server asks for the videos of the meta
        stems = video.frames if video.image_folder is not None else sorted({*_stems_of_ranges(video), *video.masks})
        if not stems:
            problems.append(f"{found.root}: video '{video.name}' has neither images nor frame ranges in a meta, so "
                            f"its frames are unknown; add {found.images}/{video.name}")
        wanted.append(Wanted(video.name, tuple(stems), _size(video), _ids(found, video)))
    if not wanted:
        problems.append(f"{found.root}: split '{found.split}' has no video to submit; check --data and --split")
    if problems:
        raise UserErrors(problems)
    return wanted


def doubts(found: VideoSet, wanted: list[Wanted]) -> list[str]:
    """Notes on the data set: how it was found, what nothing says, frames of the meta's ranges that have no image."""
    notes = [f"note: {line}" for line in found.notes]
    ids = {one.video: one.ids for one in wanted}
    for video in (video for video in found.videos if video.name in ids):
        if video.image_folder is None:
            notes.append(f"note: {video.name}: has no images, so its frames are those of the meta's ranges and of the "
                         "given masks; a frame before its first object may be missing")
        if ids[video.name] is None:
            notes.append(f"note: {video.name}: neither a meta nor a given mask says its ids; they were not checked")
        numbers = {int(stem) for stem in video.frames if stem.isdecimal()}
        missing = [stem for stem in _stems_of_ranges(video) if int(stem) not in numbers]
        if missing and video.image_folder is not None:
            notes.append(f"note: {video.name}: {len(missing)} frames of the meta's ranges have no image (first "
                         f"{missing[0]}): none of their masks is packed, though the server may ask for it")
    return notes


def _stems_of_ranges(video: Video) -> tuple[str, ...]:
    numbers = set()
    for span in (record.range for record in video.objects if record.range is not None):
        inside = range(span.start, span.end, STEP)
        numbers |= {*inside, *([span.end] if len(inside) == span.frame_nums - 1 else [])}  # `end` is read in two ways
    return tuple(f"{number:08d}" for number in sorted(numbers))


def _ids(found: VideoSet, video: Video) -> frozenset[int] | None:
    """The ids that a video's masks may hold: those of the given masks, and the meta's; None where there are none.
    (A given id that the meta lacks is segmented, and the official tool takes no notice of it.)"""
    given = given_labels(video, found.objects)
    ids = {int(number) for labels in given.values() for number in np.unique(labels) if number}
    return frozenset(ids | {record.id for record in video.objects}) or None


def _size(video: Video) -> tuple[int, int] | None:
    """(width, height) of a video's frames, from the header of one image or given mask."""
    if video.image_folder is not None and video.frames:
        path = video.image_path(video.frames[0])
    elif video.masks:
        path = video.mask_path(video.masks[0])
    else:
        return None
    return image_size(path)


def pack(folder: Path, out: Path, wanted: list[Wanted]) -> list[str]:
    """Check all masks in ``folder``, then write the zip; returns notes. UserErrors: everything that is wrong."""

    def read(video: str, stem: str) -> bytes | None:
        path = folder / video / f"{stem}.png"
        return path.read_bytes() if path.is_file() else None

    problems, notes = check(read, wanted, str(folder))
    if problems:
        raise UserErrors(problems)
    with written_whole(out) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED) as archive:
        for video in sorted(wanted, key=lambda video: video.video):
            for stem in sorted(video.stems):
                info = zipfile.ZipInfo(f"{TOP}/{video.video}/{stem}.png", DATE)  # PNG is compressed already: stored
                info.external_attr = 0o644 << 16
                info.create_system = 3
                archive.writestr(info, (folder / video.video / f"{stem}.png").read_bytes())
    return notes


def check_zip(path: Path, wanted: list[Wanted]) -> list[str]:
    """Verify a zip; returns notes. UserErrors: everything that is wrong with it."""
    with _opened(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        allowed = {f"{TOP}/{video.video}/{stem}.png" for video in wanted for stem in video.stems}
        extra = [name for name in names if name not in allowed]
        problems = [f"{path}: {name}: not part of a submission (one top folder {TOP}/<video>/<frame>.png, nothing "
                    "else); pack again with this tool" for name in extra[:20]]
        if len(extra) > 20:
            problems.append(f"{path}: and {len(extra) - 20} more files that do not belong there")
        problems += [f"{path}: {name}: is in the zip twice; pack again" for name in sorted(
            {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ())]
        present = set(names)

        def read(video: str, stem: str) -> bytes | None:
            name = f"{TOP}/{video}/{stem}.png"
            return archive.read(name) if name in present else None

        try:
            found, notes = check(read, wanted, f"{path}: {TOP}")
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:  # damaged, or encrypted
            raise UserErrors([*problems, f"{path}: the zip is damaged ({error}); pack again"]) from None
    if problems + found:
        raise UserErrors(problems + found)
    return notes


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable zip ({error}); name one that make_submission wrote") from None
    with archive:
        yield archive


def check(read: Read, wanted: list[Wanted], where: str) -> tuple[list[str], list[str]]:
    """All problems of the masks that ``read`` gives, one line each, and notes about what is allowed but odd."""
    problems, notes = [], []
    with Progress(sum(len(video.stems) for video in wanted), "checking", "mask") as bar:
        for video in wanted:
            seen, missing, size = set[int](), [], video.size
            for stem in video.stems:
                data = read(video.video, stem)
                bar.advance()
                if data is None:
                    missing.append(stem)
                    continue
                wrong, labels = _check_mask(data, size, video.ids)
                problems += [f"{where}/{video.video}/{stem}.png: {line}" for line in wrong]
                if labels is not None:
                    size = size or labels.shape[::-1]  # without an image, all masks of a video must agree
                    seen |= set(np.flatnonzero(np.bincount(labels.ravel())).tolist())
            problems += _missing(where, video, missing)
            if never := sorted((video.ids or frozenset()) - seen):
                notes.append(f"note: {video.video}: object {', '.join(map(str, never))} of the data set is in no mask")
    if len(wanted) == 1:
        notes.append("note: only one video: the official script takes a folder with one entry for a wrong structure")
    return problems, notes


def _check_mask(data: bytes, size: tuple[int, int] | None, ids: frozenset[int] | None
                ) -> tuple[list[str], np.ndarray | None]:
    try:
        labels = decode_labels(data)
    except NotALabelMap as error:
        return [f"{error}; write palette PNG, the index being the object id"], None
    if data[24:26] != PALETTE_8_BIT:
        return ["no 8-bit palette PNG; write palette PNG, the index being the object id"], None
    problems = []
    if size is not None and labels.shape[::-1] != size:
        problems.append(f"{labels.shape[1]}x{labels.shape[0]} pixels, the frames are {size[0]}x{size[1]}; write masks "
                        "at the original size")
    foreign = [value for value in np.flatnonzero(np.bincount(labels.ravel())).tolist() if value]
    foreign = [value for value in foreign if ids is not None and value not in ids]
    if foreign:
        problems.append(f"holds {', '.join(map(str, foreign))}, but the data set has no such object; write its "
                        "ids, and 0 for background")
    return problems, labels


def _missing(where: str, video: Wanted, stems: list[str]) -> list[str]:
    if not stems:
        return []
    if len(stems) == len(video.stems):
        return [f"{where}/{video.video}: all {len(stems)} masks are missing; segment this video too"]
    return [f"{where}/{video.video}/{stem}.png: missing; a submission needs every frame" for stem in stems]


if __name__ == "__main__":
    run(main)
