"""Plots of the report, as SVG text that stands inside the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

BLUE, RED, GREY = "#2b6cb0", "#c05621", "#888888"


def bars(labels: Sequence[str], values: Sequence[float | None], title: str) -> str:
    """Horizontal bars of scores (fractions, shown in percent), the first label on top; None is an empty row."""
    figure, axes = _figure(title, height=max(1.6, 0.9 + 0.24 * len(labels)))
    places = np.arange(len(labels))
    axes.barh(places, [100 * (value or 0) for value in values], color=BLUE)
    axes.set_yticks(places, [label.replace("$", r"\$") for label in labels])  # no formula
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("J&F, percent")
    for place, value in zip(places, values, strict=True):
        shown = "-" if value is None else f"{100 * value:.1f}"
        axes.text(1 + 100 * (value or 0), place, shown, va="center", fontsize=8)
    return _svg(figure)


def curve(xs: Sequence[float], ys: Sequence[float], counts: Sequence[int], end: float, title: str, xlabel: str) -> str:
    """A curve of scores (fractions, shown in percent) over how many objects each is the mean of, as pale bars.

    Needs two points or more; from three on with the least-squares line. The axis goes from 0 to ``end``.
    """
    figure, axes = _figure(title)
    percent = 100 * np.array(ys)
    behind = axes.twinx()
    behind.bar(xs, counts, width=0.9 * float(np.min(np.diff(xs))), color=GREY, alpha=0.25, label="objects (right)")
    behind.set_ylim(0, 3 * max(counts))  # low, under the curve
    behind.set_yticks([0, max(counts)])
    behind.set_ylabel("objects", fontsize=8)
    behind.tick_params(labelsize=8)
    behind.spines[["top", "left"]].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(xs, percent, color=BLUE, marker="o", markersize=3, label="mean over objects")
    if len(xs) > 2:
        slope, offset = np.polyfit(xs, percent, 1)
        axes.plot(xs, slope * np.array(xs) + offset, color=RED, linewidth=1, linestyle="--", label="straight line")
    axes.set_xlim(0, end)
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(xlabel)
    axes.set_ylabel("J&F, percent")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return _svg(figure)


def histogram(values: Sequence[float], title: str, xlabel: str) -> str:
    """How many objects have which score (fractions, shown in percent)."""
    figure, axes = _figure(title)
    axes.hist(100 * np.array(values), bins=np.linspace(0, 100, 21), color=BLUE, edgecolor="white")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("objects")
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_locator(_whole_numbers())
    return _svg(figure)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True, min_n_ticks=1)


def _figure(title: str, height: float = 2.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # heavy, and the report's alone

    figure = Figure(figsize=(5.6, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color=GREY, alpha=0.2)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    # Ids come from a hash with this salt and no date is written: the same scores give the same page.
    with matplotlib.rc_context({"svg.hashsalt": "evaluation", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg"):]
