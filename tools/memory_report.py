"""One HTML page that shows what the memory did: ``infer.py --inspect`` writes the records that it reads.

    python infer.py ... --inspect --output OUT
    python -m tools.memory_report OUT --data ROOT --split val

For each video: when each remembered frame was held, presence of each object (predicted, and true where the data root
has masks), confidence, openness of DDMemory's gate, and pictures of the frames that were remembered.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.command import run
from common.errors import UserError, nearest
from common.files import check_output_file, write_text
from datasets.readers import read_image, read_labels
from datasets.records import Video, open_videos

WIDTH, LEFT, ROW = 960, 150, 14  # pixels of a timeline, of its labels, and of a line in it
PICTURES, THUMB = 24, 150  # most pictures a group, and their width
COLOURS = ("#4063d8", "#389826", "#cb3c33", "#9558b2", "#c5801f", "#1f9a9a", "#7a6a53", "#b03a72", "#55606b", "#8a9a1f")


@dataclass
class Held:
    """A frame in the memory: from the frame that wrote it to the one that dropped it (None: still there)."""

    frame: int
    first: int
    last: int | None = None
    reference: bool = False
    masses: list[tuple[int, float]] = field(default_factory=list)  # attention received, by the frame that asked


def main() -> None:
    arguments = parse()
    folder = Path(arguments.run) / "inspect"
    files = sorted(folder.glob("[!.]*.jsonl"))
    if not files:
        raise UserError(f"{folder}: no records of finished videos; run infer.py (again) with --inspect")
    output = Path(arguments.output) if arguments.output else Path(arguments.run) / "memory_report.html"
    check_output_file(output)
    if arguments.videos:
        known = {path.stem: path for path in files}
        for name in arguments.videos.split(","):
            if name not in known:
                raise UserError(f"--videos: no record of '{name}' in {folder}; {nearest(name, known)}")
        files = [known[name] for name in arguments.videos.split(",")]
    videos = {}
    if arguments.data:
        found = open_videos(arguments.data, arguments.split, videos=[path.stem for path in files])
        videos = {video.name: video for video in found.videos}
    sections = [section(read_records(path), path.stem, videos.get(path.stem), Path(arguments.run)) for path in files]
    write_text(output, page(sections))
    print(f"wrote {output}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.memory_report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the --output of infer.py --inspect")
    parser.add_argument("--data", help="data root, for pictures and true presence")
    parser.add_argument("--split", default="val", help="its split (default: val)")
    parser.add_argument("--videos", help="comma-separated names (default: all that were inspected)")
    parser.add_argument("--output", help="the page (default: RUN/memory_report.html)")
    return parser.parse_args()


# From records to what is drawn.


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of one video. Raises UserError for a line that is not such a record."""
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            record["number"], record["stem"], record["groups"][0]["stored"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{path}:{number}: no record of the memory; run infer.py with --inspect again") from error
        records.append(record)
    if not records:
        raise UserError(f"{path}: holds no records; run infer.py with --inspect again")
    try:
        for group in groups_of(records):
            held_frames(group)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its records do not fit together ({error!r}); run infer.py with --inspect again"
                        ) from error
    return records


def groups_of(records: list[dict[str, Any]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """For each group of objects its (frame number, record) pairs."""
    for index in range(max(len(record["groups"]) for record in records)):
        yield [(record["number"], record["groups"][index]) for record in records if len(record["groups"]) > index]


def held_frames(group: list[tuple[int, dict[str, Any]]]) -> list[Held]:
    """Every frame that the group's long-term bank ever held, by the frame that wrote it."""
    inside: dict[int, Held] = {}
    everything: list[Held] = []
    for number, record in group:
        for frame, mass in record.get("mass", {}).items():
            if int(frame) in inside:
                inside[int(frame)].masses.append((number, mass))
        for frame in record["dropped"]:
            inside.pop(frame).last = number
        for frame in record["written"]:
            inside[frame] = Held(frame, number)
            everything.append(inside[frame])
        for frame in record["references"]:
            inside[frame].reference = True
    return everything


def shown(frames: list[Held]) -> list[Held]:
    """The references, and of the others as many as fit, spread evenly over time."""
    references = [one for one in frames if one.reference]
    others = [one for one in frames if not one.reference]
    room = max(PICTURES - len(references), 1)
    if len(others) > room:
        others = [others[place] for place in np.linspace(0, len(others) - 1, room).round().astype(int)]
    return sorted(references + others, key=lambda one: one.frame)


# Drawing.


def timeline(group: list[tuple[int, dict[str, Any]]], frames: list[Held], truth: dict[int, list[bool]],
             end: int) -> str:
    """An SVG with one line for each fact over time. truth: true presence of each object by frame number."""
    lines: list[tuple[str, str]] = []  # label, shapes at y = 0
    scale = (WIDTH - LEFT) / (end + 1)

    def bar(start: float, stop: float, colour: str, opacity: float = 1.0, height: float = ROW - 4) -> str:
        return f'<rect x="{LEFT + start * scale:.1f}" y="{ROW - 2 - height:.1f}" height="{height:.1f}" ' \
               f'width="{max((stop - start) * scale, 1):.1f}" fill="{colour}" opacity="{opacity:.2f}"/>'

    def strip(values: list[tuple[int, float]], colour: str) -> str:
        ends = [number for number, _ in values[1:]] + [end + 1]
        return "".join(bar(number, until, colour, height=max(value, 0.02) * (ROW - 3))
                       for (number, value), until in zip(values, ends, strict=True))

    ids = sorted({int(name) for _, record in group for name in record.get("objects", {})})
    for place, name in enumerate(ids):
        colour = COLOURS[place % len(COLOURS)]
        seen = [(number, record["objects"][str(name)]) for number, record in group
                if str(name) in record.get("objects", {})]
        if name in truth:
            present = "".join(bar(start, stop, "#888") for start, stop in runs(truth[name]))
            lines.append((f"object {name}: true presence", present))
        lines.append((f"object {name}: predicted", "".join(
            bar(number, number + 1, colour) for number, score in seen if score["presence"] > 0)))
        lines.append((f"object {name}: confidence", strip([(number, score["confidence"]) for number, score in seen],
                                                          colour)))
    gate = [(number, record["global"]) for number, record in group if "global" in record]
    for key, label in (("openness", "global: gate openness"), ("confidence", "global: confidence"),
                       ("share", "global: share of the read")):
        if told := [(number, value[key]) for number, value in gate if key in value]:
            lines.append((label, strip(told, "#b8860b")))
    for one in frames:
        until = end + 1 if one.last is None else one.last
        shapes = bar(one.first, until, "#222" if one.reference else "#999", 0.35)
        asked = [number for number, _ in one.masses] + [until]
        shapes += "".join(bar(number, stop, "#4063d8", min(1.0, mass * 2))
                          for (number, mass), stop in zip(one.masses, asked[1:], strict=True))
        lines.append((f"{'reference' if one.reference else 'memory'}: frame {one.frame}", shapes))
    rows = "".join(f'<g transform="translate(0 {ROW * place})"><text x="0" y="{ROW - 4}">{label}</text>{shapes}</g>'
                   for place, (label, shapes) in enumerate(lines))
    height = ROW * (len(lines) + 1)
    ticks = "".join(f'<text x="{LEFT + end * share / 10 * scale:.0f}" y="{height - 2}">{end * share // 10}</text>'
                    for share in range(0, 10, 2))
    return f'<svg width="{WIDTH}" height="{height}" role="img">{rows}{ticks}</svg>'


def runs(present: list[bool]) -> list[tuple[int, int]]:
    """(start, past the end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(present, np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def thumbnail(run_folder: Path, name: str, stem: str, video: Video | None) -> str | None:
    """A frame with its predicted objects outlined, as a data URI; None where there is neither picture nor mask."""
    mask_path = run_folder / "masks" / name / f"{stem}.png"
    labels = read_labels(mask_path) if mask_path.is_file() else None
    if video is not None:
        picture = read_image(video.image_path(stem))
    elif labels is not None:
        picture = np.full((*labels.shape, 3), 255, np.uint8)
    else:
        return None
    size = (THUMB, max(1, round(THUMB * picture.shape[0] / picture.shape[1])))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if labels is not None:
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        for place, value in enumerate(value for value in np.unique(labels) if value):
            outlines, _ = cv2.findContours((labels == value).astype(np.uint8), cv2.RETR_EXTERNAL,
                                           cv2.CHAIN_APPROX_NONE)
            colour = COLOURS[place % len(COLOURS)]
            cv2.drawContours(picture, outlines, -1, tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 1)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def true_presence(video: Video | None, stems: dict[int, str]) -> dict[int, list[bool]]:
    """For each object whether it is there, by frame number; {} without masks of every frame."""
    if video is None or not set(stems.values()) <= set(video.masks):
        return {}
    seen = [set(np.unique(read_labels(video.mask_path(stem))).tolist()) for _, stem in sorted(stems.items())]
    return {value: [value in one for one in seen] for value in sorted(set().union(*seen) - {0, 255})}


def section(records: list[dict[str, Any]], name: str, video: Video | None, run_folder: Path) -> dict[str, Any]:
    """All that the page says of one video."""
    stems = {record["number"]: record["stem"] for record in records}
    truth, end, groups = true_presence(video, stems), records[-1]["number"], []
    for group in groups_of(records):
        frames = held_frames(group)
        kept = shown(frames)
        pictures = [(one, thumbnail(run_folder, name, stems[one.frame], video)) for one in kept]
        groups.append({
            "svg": timeline(group, kept, truth, end), "pictures": [(one, uri) for one, uri in pictures if uri],
            "offered": sum(record["offered"] for _, record in group), "held": len(frames), "shown": len(kept),
            "bytes": group[-1][1]["bytes"]})
    return {"name": name, "frames": len(records), "groups": groups}


def page(sections: list[dict[str, Any]]) -> str:
    """The HTML page."""
    from jinja2 import Environment

    return Environment(autoescape=True).from_string(TEMPLATE).render(sections=sections)


TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Memory</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 2em; max-width: 1000px; }
svg text { font: 10px sans-serif; fill: #333; }
figure { display: inline-block; margin: 4px; font-size: 11px; } figure.reference { outline: 2px solid #222; }
p { color: #444; }
</style>
<h1>Memory</h1>
<p>Grey bars: when a frame was held in the long-term memory (dark: references); blue over them: attention that it
received from the frames offered meanwhile. Heights of confidence, openness and share run from 0 to 1.</p>
{% for video in sections %}
<h2>{{ video.name }} ({{ video.frames }} frames)</h2>
{% for group in video.groups %}
<p>{% if video.groups | length > 1 %}Group {{ loop.index }}: {% endif %}{{ group.offered }} frames offered,
{{ group.held }} held at some time ({{ group.shown }} shown), {{ "%.2f" | format(group.bytes / 1e6) }} MB at the end.
</p>
{{ group.svg | safe }}
<div>{% for one, uri in group.pictures %}<figure class="{{ 'reference' if one.reference }}">
<img src="{{ uri }}" alt="">
<figcaption>frame {{ one.frame }}, {{ one.first }}–{{ one.last if one.last is not none else "end" }}</figcaption>
</figure>
{% endfor %}</div>
{% endfor %}{% endfor %}
</html>
"""


if __name__ == "__main__":
    run(main)
