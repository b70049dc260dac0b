"""Names of frames and splits: how they sort, and which mean the same."""

from __future__ import annotations

import re
from collections.abc import Iterable


def sorted_stems(stems: Iterable[str]) -> list[str]:
    """Sort frame names by the numbers in them: ``9`` before ``10``, ``00000006`` before ``00000011``."""
    return sorted(stems, key=lambda stem: ([(0, int(part), "") if part.isdigit() else (1, 0, part)
                                            for part in re.findall(r"[0-9]+|[^0-9]+", stem)], stem))


def same_split(name: str, split: str) -> bool:
    """Whether two names mean the same split: case does not count, ``valid`` and ``validation`` are ``val``."""
    return _canonical(name) == _canonical(split)


def _canonical(split: str) -> str:
    split = split.lower()
    return "val" if split in ("val", "valid", "validation") else split
