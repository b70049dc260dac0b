"""Draw the curves of one or several training runs into one HTML page: ``python -m tools.plot_run RUN [RUN …]``.

The page opens from disk and holds everything; it is written to RUN/curves.html unless --output says otherwise.
"""

from __future__ import annotations

import argparse
import html
import io
import json
from pathlib import Path

from common.command import run
from common.errors import UserError
from common.files import check_output_file, write_text

# Title, key of metrics.jsonl, logarithmic.
PANELS = (("Loss", "loss", True), ("Validation (J&F, per cent)", "J&F", False), ("Gradient norm", "gradient", True),
          ("Learning rate", "lr", False), ("Clips per second", "clips_per_second", False),
          ("Share of the time spent waiting for data", "waiting", False))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.plot_run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder with metrics.jsonl; stages are drawn too")
    parser.add_argument("--output", help="the page (default: curves.html in the first RUN)")
    arguments = parser.parse_args()
    output = Path(arguments.output or Path(arguments.runs[0]) / "curves.html")
    check_output_file(output)
    folders = [part for folder in arguments.runs for part in stages(Path(folder))]
    write_text(output, page({str(folder): read_metrics(folder) for folder in folders}))
    print(f"wrote {output}")


def stages(folder: Path) -> list[Path]:
    """The run, after its stages that have begun."""
    earlier = sorted(path.parent for path in folder.glob("stages/*/metrics.jsonl"))
    return [*earlier, folder] if (folder / "metrics.jsonl").is_file() or not earlier else earlier


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Series of a run: key -> (step, value) in order. Raises UserError where there is no metrics.jsonl."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{file}: no such file; RUN must be the folder that train.py wrote")
    series: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            step = row.pop("step")
            row.update(row.pop("validation", {}))
            if row.get("seconds"):
                row["waiting"] = row["data_seconds"] / row["seconds"]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{file}: line {number} is not a line of metrics; remove it") from error
        for key, value in row.items():
            if value is not None:  # it was not finite
                series.setdefault(key, []).append((step, value))
    return series


def page(runs: dict[str, dict[str, list[tuple[int, float]]]]) -> str:
    """The whole HTML text."""
    drawn = [figure(title, {name: series[key] for name, series in runs.items() if series.get(key)}, logarithmic)
             for title, key, logarithmic in PANELS]
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{last(series, 'loss'):.4f}</td>"
                   f"<td>{best(series)}</td><td>{hours(series):.2f}</td></tr>" for name, series in runs.items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Training curves</title>
<style>body {{ font: 15px sans-serif; margin: 2em auto; max-width: 1200px }}
td, th {{ padding: .2em 1em; text-align: left }}
figure {{ display: inline-block; width: 48%; margin: 0 }} svg {{ width: 100%; height: auto }}</style>
<h1>Training curves</h1>
<table><tr><th>run</th><th>last loss</th><th>validation J&amp;F: best, last</th><th>hours</th></tr>{rows}</table>
{"".join(drawn)}
</html>
"""


def figure(title: str, lines: dict[str, list[tuple[int, float]]], logarithmic: bool) -> str:
    """One panel as SVG; nothing where no run has the key."""
    if not lines:
        return ""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for name, points in lines.items():
        name = "\u200b" + name.replace("$", r"\$")  # neither formula nor, with "_" in front, hidden from the legend
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker="." if len(points) < 30 else None)
    axes.set(title=title, xlabel="step", yscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    stream = io.StringIO()
    drawing.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(drawing)
    text = stream.getvalue()
    return f"<figure>{text[text.index('<svg'):]}</figure>\n"


def last(series: dict[str, list[tuple[int, float]]], key: str) -> float:
    return series[key][-1][1] if series.get(key) else float("nan")


def best(series: dict[str, list[tuple[int, float]]]) -> str:
    values = [value for _, value in series.get("J&F", [])]
    return f"{max(values):.1f}, {values[-1]:.1f}" if values else "–"


def hours(series: dict[str, list[tuple[int, float]]]) -> float:
    """Time of the steps: the mean of each line times the steps that it stands for."""
    total, before = 0.0, 0
    for step, seconds in series.get("seconds", []):
        total, before = total + seconds * (step - before), step
    return total / 3600


if __name__ == "__main__":
    run(main)
