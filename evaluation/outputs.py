"""The files of an evaluation: ``scores.json``, the official CSV tables byte for byte, and tables of the analyses."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.files import write_json, write_text
from evaluation.aggregate import columns_of
from evaluation.analyses import TABLES
from evaluation.evaluator import Evaluation


def write(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write ``scores.json``, the two official CSV tables, ``frames.csv`` and the tables of the analyses
    (``analysis_*.csv``) into ``folder``; return their paths.

    Tables and a report that an earlier evaluation left there are removed: nothing stale stands beside new numbers.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stale: set[Path] = set()
    if (folder / "scores.json").is_file():
        for pattern in ("global_results-*.csv", "per-sequence_results-*.csv", "frames.csv", "analysis_*.csv",
                        "report.html"):
            stale |= set(folder.glob(pattern))
    name = evaluation.plan.set_name
    texts = {f"global_results-{name}.csv": global_csv(evaluation),
             f"per-sequence_results-{name}.csv": sequence_csv(evaluation),
             "frames.csv": frames_csv(evaluation)}
    analyses = evaluation.scores["analyses"]
    texts |= {f"analysis_{table}.csv": table_csv(analyses[table]) for table in (*TABLES, "objects") if analyses[table]}
    texts["analysis_summary.csv"] = summary_csv(evaluation)
    for file, text in texts.items():
        write_text(folder / file, text)
    write_json(folder / "scores.json", evaluation.scores)
    for file in stale - {folder / file for file in texts}:
        file.unlink()
    return [folder / "scores.json", *(folder / file for file in texts)]


def global_csv(evaluation: Evaluation) -> str:
    """The official table of the whole set: three decimals of the fraction, an empty field for NaN."""
    columns = columns_of(evaluation.plan.protocol)
    numbers = evaluation.scores["global"]
    return _csv([["J&F-Mean" if column == "J&F" else column for column in columns],
                 [_three(numbers[column]) for column in columns]])


def sequence_csv(evaluation: Evaluation) -> str:
    """The official table of objects; a row is named by the object's position in the meta, not by its id."""
    columns = ["J-Mean", "F-Mean"] + ([] if evaluation.plan.protocol == "davis2017" else ["V-Mean"])
    rows = [[f"{item['video']}_{item['index']}", *(_three(item[column]) for column in columns)]
            for item in evaluation.scores["objects"]]
    return _csv([["Sequence", *columns], *rows])


def frames_csv(evaluation: Evaluation) -> str:
    """Every scored frame of every object, in order of time: J and F at full precision and both areas in pixels."""
    rows: list[Sequence[Any]] = [["video", "object", "frame", "J", "F", "true_area", "predicted_area"]]
    for entry in evaluation.entries:
        scored, row, track = entry.video.objects[entry.matched], entry.proposal - 1, entry.track
        rows += zip([entry.video.name] * len(scored.stems), [scored.key] * len(scored.stems), scored.stems,
                    track.J[row].tolist(), track.F[row].tolist(), track.area_true.tolist(),
                    track.area_predicted[row].tolist(), strict=True)
    return _csv(rows)


def table_csv(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the analyses: a column a key, full precision, an empty field for what there is not."""
    return _csv([list(rows[0]), *([None if _is_nan(value) else value for value in row.values()] for row in rows)])


def summary_csv(evaluation: Evaluation) -> str:
    """The analyses that are single numbers, one a line: analysis, measure, value."""
    analyses = evaluation.scores["analyses"]
    rows: list[Sequence[Any]] = [["analysis", "measure", "value"]]
    for name in ("drift", "false_alarms", "misses", "identity_switches"):
        rows += [[name, measure, value] for measure, value in analyses[name].items()]
    for column, found in analyses["confidence_95"].items():
        if isinstance(found, dict):
            rows += [["confidence_95", f"{column} {end}", None if _is_nan(found[end]) else found[end]] for end in found]
    return _csv(rows)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def summary(evaluation: Evaluation) -> str:
    """The headline as lines of text, percent with one decimal, the clean numbers beside where they differ."""
    numbers, clean = evaluation.scores["global"], evaluation.scores["clean"]
    columns = columns_of(evaluation.plan.protocol)
    differs = [column for column in columns if _three(numbers[column]) != _three(clean[column])]
    width = max(len(column) for column in columns)
    lines = [f"protocol {evaluation.plan.protocol}, task {evaluation.plan.task}, "
             f"{len(evaluation.scores['videos'])} videos, {len(evaluation.scores['objects'])} objects"]
    for column in columns:
        beside = f"   clean (no padding, no NaN): {_percent(clean[column])}" if column in differs else ""
        lines.append(f"{column:<{width}}  {_percent(numbers[column]):>6}{beside}")
    if (interval := evaluation.scores["analyses"]["confidence_95"]["J&F"]) and not _is_nan(interval["low"]):
        lines.append(f"J&F 95 %: {_percent(interval['low'])} to {_percent(interval['high'])} (bootstrap over videos)")
    return "\n".join(lines)


def audit_lines(evaluation: Evaluation, shown: int = 20) -> list[str]:
    """The audit as lines of text, mere notes last, ``shown`` of them at most; ``scores.json`` holds all."""
    found = sorted(evaluation.findings, key=lambda finding: finding.is_note)
    lines = [f"{'note' if finding.is_note else 'audit'}: {finding.line()}" for finding in found[:shown]]
    return lines + ([f"audit: and {len(found) - shown} more, all in scores.json"] if len(found) > shown else [])


def _percent(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{100 * value:.1f}"


def _three(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
