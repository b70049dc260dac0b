"""Check a data root before it is used: python -m tools.check_dataset ROOT [--split S] [--deep]

Lists all that is missing, unreadable, mis-sized, in colour instead of a palette, or not in the meta.
Exit status 0: nothing found; 2: something is wrong.
"""

from __future__ import annotations

import argparse
import time

from common.command import run
from common.errors import UserError, UserErrors
from common.progress import Progress
from datasets.check import Problems, check_videos
from datasets.records import FORMATS, list_splits, open_videos


def main() -> None:
    """Parse the command line, check, print."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_dataset", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the data set's root folder; it is only read")
    parser.add_argument("--split", help="one split (default: every split that is there)")
    parser.add_argument("--format", choices=FORMATS, help="instead of the first layout that fits")
    parser.add_argument("--deep", action="store_true", help="decode every image and mask (slow)")
    options = parser.parse_args()

    splits = [options.split] if options.split else list_splits(options.root)
    if not splits:
        raise UserError(f"{options.root}: no split is there; expected ImageSets/2017/*.txt, SPLIT/JPEGImages or "
                        "JPEGImages")
    problems = 0
    for split in splits:
        problems += check_split(options.root, split, options.format, options.deep)
    if problems:
        raise UserError(f"{options.root}: {problems} problem{'s' if problems > 1 else ''} found, listed above")


def check_split(root: str, split: str, format: str | None, deep: bool) -> int:
    """Check one split and print what was found; returns the number of problems."""
    started = time.monotonic()
    counted = ""
    try:
        found = open_videos(root, split, format=format, need_images=False)
    except UserError as error:
        problems = Problems()
        problems += error.problems if isinstance(error, UserErrors) else [str(error)]
    else:
        frames = sum(len(video.frames) for video in found.videos)
        with Progress(frames, f"check {split or root}") as progress:
            problems = check_videos(found, deep=deep, advance=progress.advance)
        masks = sum(len(video.masks) for video in found.videos)
        objects = sum(len(video.objects) for video in found.videos)
        counted = (f"; {len(found.videos)} videos, {frames} frames, {masks} masks"
                   + (f", {objects} objects in {found.meta.name}" if found.meta else "")
                   + f" ({found.format}, {time.monotonic() - started:.1f} s)")
    for kind, lines in (("error", problems), ("warning", problems.warnings), ("note", problems.notes)):
        for line in lines:
            print(f"{kind}: {line}")
    count = len(problems) + len(problems.warnings)
    print(f"{split or root}: {f'{count} problems' if count else 'nothing wrong'}{counted}")
    return count


if __name__ == "__main__":
    run(main)
