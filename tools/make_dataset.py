"""Generate a miniature LVOS: ``python -m tools.make_dataset OUT``.

Textured objects over textured backgrounds, or (--cutouts) objects of photographs and clips over others; train, val
and test with metas, attributes, captions and unseen_videos.txt (for evaluate.py --unseen). Deterministic by seed.
"""

from __future__ import annotations

import argparse

from common.command import run
from common.errors import UserError
from datasets.synthetic import DIFFICULTIES, PRESETS, make, make_long_cuts


def main() -> None:
    """Parse, generate, say where."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_dataset", description=__doc__)
    parser.add_argument("out", help="the data root to write; must not exist yet")
    parser.add_argument("--preset", default="demo", help=f"one of: {', '.join(PRESETS)} (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.add_argument("--videos", metavar="N | TRAIN,VAL,TEST", help="number of videos of val, or of each split")
    parser.add_argument("--frames", type=int, help="frames of each video of val and test (train: at most so many)")
    parser.add_argument("--size", metavar="HxW", help="pixels, such as 128x224")
    parser.add_argument("--difficulty", help=f"one of: {', '.join(DIFFICULTIES)} (turning: hard, and objects "
                                              "turn their other side; default: the preset's)")
    parser.add_argument("--cutouts", metavar="FOLDER", action="append", default=[],
                        help="JPEGImages and Annotations of photographs or clips to cut objects out of; repeatable")
    parser.add_argument("--long-cuts", metavar="FOLDER", action="append", default=[],
                        help="instead: each clip of FOLDER, 100 and more frames of others, the clip again (backwards); "
                             "split val only; repeatable")
    given = parser.parse_args()
    count, size = _videos(given.videos), _size(given.size)
    if given.long_cuts:
        if given.cutouts or given.frames or given.difficulty or given.preset != "demo" or isinstance(count, tuple):
            raise UserError("--long-cuts: goes with --seed, --size and --videos N alone; leave the others out")
        root = make_long_cuts(given.out, given.long_cuts, given.seed, count, size)
    else:
        root = make(given.out, given.preset, given.seed, count, given.frames, size, given.difficulty, given.cutouts)
    for split in ("train", "val", "test"):
        if (root / split).is_dir():
            print(f"{root / split}: {len(list((root / split / 'JPEGImages').iterdir()))} videos")


def _videos(text: str | None) -> int | tuple[int, int, int] | None:
    match _numbers("--videos", text, ","):
        case None:
            return None
        case [count]:
            return count
        case [train, val, test]:
            return train, val, test
    raise UserError(f"--videos: '{text}' is not understood; give N or TRAIN,VAL,TEST")


def _size(text: str | None) -> tuple[int, int] | None:
    match _numbers("--size", text, "x"):
        case None:
            return None
        case [height, width]:
            return height, width
    raise UserError(f"--size: '{text}' is not understood; give HEIGHTxWIDTH, such as 128x224")


def _numbers(key: str, text: str | None, separator: str) -> list[int] | None:
    if text is None:
        return None
    parts = text.lower().split(separator)
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{key}: '{text}' holds something other than numbers; see --help for its form")
    return [int(part) for part in parts]


if __name__ == "__main__":
    run(main)
