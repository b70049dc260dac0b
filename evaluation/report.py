"""One self-contained HTML page of an evaluation: headline, audit, analyses with plots, and the worst frames."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from common.files import write_text
from evaluation import plots
from evaluation.aggregate import columns_of
from evaluation.analyses import BINS, MINUTES, RATES
from evaluation.bootstrap import FEW
from evaluation.evaluator import Evaluation
from evaluation.pictures import gallery

TEMPLATES = Path(__file__).parent / "templates"
AUDIT_SHOWN = 200


def write_report(evaluation: Evaluation, path: str | Path) -> Path:
    """Write the page, which needs no other file and no network; returns its path."""
    scores = evaluation.scores
    columns = columns_of(evaluation.plan.protocol)
    drawn, left_out = _plots(scores)
    write_text(path, render(
        "report.html", scores=scores, analyses=scores["analyses"], columns=columns, findings=evaluation.findings,
        audit_shown=AUDIT_SHOWN, worst=gallery(evaluation.entries), plots=drawn,
        left_out=left_out, few=FEW,
        differs=any(percent(scores["global"][name]) != percent(scores["clean"][name]) for name in columns)))
    return Path(path)


def render(template: str, **values: Any) -> str:
    """Fill one of the templates; text in it is escaped, ``percent`` and ``number`` are filters."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # the report's alone

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number}
    return environment.get_template(template).render(**values)


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash for nothing, NaN for NaN."""
    return number(None if value is None else 100 * value, 1)


def number(value: float | None, decimals: int = 2) -> str:
    """A number with so many decimals; a dash for nothing, NaN for NaN."""
    return "–" if value is None else "NaN" if math.isnan(value) else f"{value:.{decimals}f}"


def _plots(scores: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The plots by name, and why a plot that one would look for is not there."""
    analyses, found, left_out = scores["analyses"], {}, []
    relative, absolute = analyses["relative_time"], analyses["absolute_time"]
    if len(relative) > 1:
        found["relative"] = _curve(relative, [50 * (row["from"] + row["to"]) for row in relative], 100,
                                   "J&F of visible frames over relative time",
                                   f"percent of the object's scored frames ({BINS} bins)")
    else:
        left_out.append("No curve over relative time: no object is visible in two scored frames that lie apart")
    if len(absolute) > 1:
        found["absolute"] = _curve(absolute, [(row["from_minute"] + row["to_minute"]) / 2 for row in absolute],
                                   absolute[-1]["to_minute"], "J&F of visible frames over minutes",
                                   f"minutes at {RATES[scores['protocol']]:g} source frames a second")
    else:
        left_out.append("No curve over minutes: every visible frame lies in the same "
                        f"{60 * MINUTES:g} seconds of its video")
    if rows := analyses["attributes"]:
        found["attributes"] = plots.bars([row["attribute"] for row in rows], [row["J&F"] for row in rows],
                                         "J&F by attribute")
    means = [(item["J-Mean"] + item["F-Mean"]) / 2 for item in scores["objects"]]
    if means := [value for value in means if not math.isnan(value)]:
        found["objects"] = plots.histogram(means, "Objects by J&F", "J&F, percent")
    return found, left_out


def _curve(rows: list[dict[str, Any]], centres: list[float], end: float, title: str, xlabel: str) -> str:
    return plots.curve(centres, [row["J&F"] for row in rows], [row["objects"] for row in rows], end, title, xlabel)
