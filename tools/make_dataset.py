"""Generate a miniature LVOS: ``python -m tools.make_dataset OUT``.

Textured objects over textured backgrounds; deterministic by seed; train, val and test with metas, attributes,
captions and ``unseen_videos.txt`` (for ``evaluate.py --unseen``).
"""

from __future__ import annotations

import argparse

from common.command import run
from common.errors import UserError
from datasets.synthetic import DIFFICULTIES, PRESETS, make, options


def main() -> None:
    """Parse, generate, say where."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_dataset", description=__doc__)
    parser.add_argument("out", help="the data root to write; must not exist yet")
    parser.add_argument("--preset", default="demo", help=f"one of: {', '.join(PRESETS)} (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: 0)")
    parser.add_argument("--videos", metavar="N | TRAIN,VAL,TEST", help="number of videos of val, or of each split")
    parser.add_argument("--frames", type=int, help="frames of each video of val and test (train: at most so many)")
    parser.add_argument("--size", metavar="HxW", help="pixels, such as 128x224")
    parser.add_argument("--difficulty", help=f"one of: {', '.join(DIFFICULTIES)}")
    given = parser.parse_args()
    videos = _numbers("--videos", given.videos, ",", (1, 3))
    size = _numbers("--size", given.size, "x", (2,))
    wanted = {"preset": given.preset, "seed": given.seed, "frames": given.frames, "difficulty": given.difficulty,
              "videos": videos[0] if videos and len(videos) == 1 else videos, "size": size}
    chosen = options(**wanted)
    root = make(given.out, **wanted)
    print(f"{root}: {chosen.videos[0]} train, {chosen.videos[1]} val, {chosen.videos[2]} test videos of "
          f"{chosen.size[0]}x{chosen.size[1]}, seed {chosen.seed}")


def _numbers(key: str, text: str | None, separator: str, counts: tuple[int, ...]) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().split(separator)
    if len(parts) not in counts or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"{key}: '{text}' is not understood; see --help for its form")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    run(main)
