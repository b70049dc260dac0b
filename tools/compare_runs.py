"""Results of evaluate.py side by side: headline, per video, per attribute, with paired bootstrap p-values.

    python -m tools.compare_runs SCORES_A SCORES_B [...] [--output FOLDER]

The first is the baseline of every difference. Prints a table; with --output also writes comparison.txt and
comparison.html, one page that opens from disk.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.command import run
from common.errors import UserError, UserErrors
from common.files import check_output_folder, write_text
from evaluation.aggregate import columns_of
from evaluation.bootstrap import DRAWS, FEW, paired
from evaluation.report import number, percent, render


@dataclass(frozen=True)
class Result:
    """One ``scores.json``, with None for NaN, under a short name."""

    name: str
    path: Path
    scores: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of a table: J&F of every result, and the differences to the first (none for the first itself)."""

    name: str
    objects: int
    values: list[float | None]
    differences: list[float | None]


def main() -> None:
    """Read, check, compare, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare_runs", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="SCORES", help="folders of evaluate.py, or scores.json files")
    parser.add_argument("--output", help="folder for comparison.txt and comparison.html")
    arguments = parser.parse_args()
    if len(arguments.results) < 2:
        parser.error("give at least two results")
    if arguments.output:
        check_output_folder(arguments.output)
    results = load(arguments.results)
    check_comparable(results)
    tables = compare(results)
    text = as_text(results, tables)
    print(text)
    if arguments.output:
        folder = Path(arguments.output)
        write_text(folder / "comparison.txt", text + "\n")
        write_text(folder / "comparison.html", as_html(results, tables))
        print(f"wrote {folder / 'comparison.txt'}\nwrote {folder / 'comparison.html'}")


def load(paths: Sequence[str | Path]) -> list[Result]:
    """Read the results; UserErrors for what is no result of evaluate.py."""
    results, problems = [], []
    names = _short_names([Path(path) for path in paths])
    for path, name in zip(map(Path, paths), names, strict=True):
        file = path / "scores.json" if path.is_dir() else path
        try:
            scores = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{file}: no scores to read ({error}); name a folder that evaluate.py wrote")
            continue
        wanted = ("protocol", "task", "global", "clean", "objects", "videos", "analyses", "provenance")
        if missing := [key for key in wanted if not isinstance(scores, dict) or key not in scores]:
            problems.append(f"{file}: lacks {', '.join(missing)}; run this project's evaluate.py")
            continue
        result = Result(name, file, scores)
        try:
            check_comparable([result, result])
            rows([result])
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            problems.append(f"{file}: is no whole result ({error!r}); run this project's evaluate.py again")
            continue
        results.append(result)
    if problems:
        raise UserErrors(problems)
    return results


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [(path.parent if path.name == "scores.json" else path).resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{paths[0]}: the same result is named twice; name different results")


def check_comparable(results: Sequence[Result]) -> None:
    """UserErrors where two results do not measure the same: protocol, task, ground truth, lists, objects."""
    first, problems = results[0], []
    for other in results[1:]:
        for what, key in (("protocol", "protocol"), ("task", "task")):
            if other.scores[key] != first.scores[key]:
                problems.append(f"{other.path}: {what} {other.scores[key]}, but {first.path} has {first.scores[key]}; "
                                "score both alike")
        one, two = (result.scores["provenance"] for result in (first, other))
        for what, key in (("ground truth", "ground_truth_sha256"), ("list of videos", "lists"), ("meta", "meta")):
            if _hash(one.get(key)) != _hash(two.get(key)):
                problems.append(f"{other.path}: another {what} than {first.path}; score both against the same data")
        mine, its = ([_pair(item) for item in result.scores["objects"]] for result in (first, other))
        if mine != its:
            apart = sorted({video for video, _ in set(mine) ^ set(its)})
            named = ", ".join(apart[:8]) + (f" and {len(apart) - 8} more" if len(apart) > 8 else "")
            problems.append(f"{other.path}: other objects than {first.path}"
                            f"{f' (in {named})' if apart else ', or another order'}; score both against the same data")
    if problems:
        raise UserErrors(problems)


def _hash(value: Any) -> Any:
    """Hashes of lists without the names that the lists had."""
    return list(value.values()) if isinstance(value, dict) else value


def _pair(item: dict[str, Any]) -> tuple[str, str]:
    return item["video"], item["object"]


def compare(results: Sequence[Result]) -> dict[str, Any]:
    """The tables of :func:`rows`, and ``tests`` (a list a result but the first: metric -> low, high, p)."""
    tests = [paired(results[0].scores["objects"], result.scores["objects"],
                    columns_of(result.scores["protocol"])) for result in results[1:]]
    return {**rows(results), "tests": tests}


def rows(results: Sequence[Result]) -> dict[str, list[Row]]:
    """``headline`` (by metric), ``videos`` and ``attributes`` (J&F, means over objects)."""
    headline = [_row(metric, _counted(results[0], metric), [result.scores["clean"][metric] for result in results])
                for metric in columns_of(results[0].scores["protocol"])]
    stated = results[0].scores["analyses"]["video_attributes"]
    attributes = [row["attribute"] for row in results[0].scores["analyses"]["attributes"]]
    videos = [item["video"] for item in results[0].scores["videos"]]
    return {
        "headline": headline,
        "videos": [_group(results, video, {video}) for video in videos],
        "attributes": [_group(results, name, {video for video in videos if name in stated[video]["attributes"]})
                       for name in attributes],
    }


def _counted(result: Result, column: str) -> int:
    """How many objects a headline number is made of: those of its group of videos that have a score."""
    group = {"seen": False, "unseen": True}.get(column.split("-")[1]) if "-" in column else None
    items = [item | item.get("clean", {}) for item in result.scores["objects"]]
    return sum(item["J-Mean"] is not None and (group is None or item["unseen"] is group) for item in items)


def _group(results: Sequence[Result], name: str, videos: set[str]) -> Row:
    """Mean J&F over the objects of some videos, clean."""
    values, count = [], 0
    for result in results:
        chosen = [item | item.get("clean", {}) for item in result.scores["objects"] if item["video"] in videos]
        means = [(item["J-Mean"] + item["F-Mean"]) / 2 for item in chosen if item["J-Mean"] is not None]
        values.append(float(np.mean(means)) if means else None)
        count = len(means)
    return _row(name, count, values)


def _row(name: str, objects: int, values: list[float | None]) -> Row:
    first = values[0]
    differences = [None if first is None or value is None else value - first for value in values[1:]]
    return Row(name, objects, values, differences)


def as_text(results: Sequence[Result], tables: dict[str, Any]) -> str:
    """The comparison as aligned text, percent."""
    lines = [f"{chr(65 + place)} = {result.name}" for place, result in enumerate(results)]
    letters = [chr(65 + place) for place in range(len(results))]
    heads = letters + [f"{letter}-A" for letter in letters[1:]]
    first = results[0].scores
    lines.append(f"protocol {first['protocol']}, task {first['task']}, {len(first['videos'])} videos, clean numbers")
    for title, key in (("", "headline"), ("attribute, J&F", "attributes"), ("video, J&F", "videos")):
        rows = tables[key]
        width = max([len(title), 12, *(len(row.name) for row in rows)])
        lines += ["", f"{title:<{width}} {'objects':>7} " + " ".join(f"{head:>7}" for head in heads)]
        for row in rows:
            numbers = [percent(value) for value in row.values] + [signed(value) for value in row.differences]
            lines.append(f"{row.name:<{width}} {row.objects:>7} " + " ".join(f"{shown:>7}" for shown in numbers))
    lines += ["", f"paired bootstrap over videos, {DRAWS} draws: difference to A, 95 % interval and p (two-sided)"]
    if len(first["videos"]) < FEW:
        lines.append(f"with fewer than {FEW} videos neither interval nor p is to be leant on")
    for letter, test in zip(letters[1:], tables["tests"], strict=True):
        for metric, one in test.items():
            found = f"{signed(one['low'])} to {signed(one['high'])}, p = {number(one['p'], 4)}"
            lines.append(f"{letter}-A {metric:<13} {found if one['p'] == one['p'] else 'fewer than two videos'}")
    return "\n".join(lines)


def as_html(results: Sequence[Result], tables: dict[str, Any]) -> str:
    """The comparison as one page that needs no other file."""
    columns = columns_of(results[0].scores["protocol"])
    return render("comparison.html", results=results, tables=tables, draws=DRAWS, metrics=columns,
                  few=FEW if len(results[0].scores["videos"]) < FEW else None,
                  lower_is_better=[column for column in columns if column.startswith("V-") or "Decay" in column])


def signed(value: float | None) -> str:
    """A difference of fractions in points with its sign."""
    return "–" if value is None or value != value else f"{100 * value:+.1f}"


if __name__ == "__main__":
    run(main)
