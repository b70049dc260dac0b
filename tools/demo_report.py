"""The demo's page: one HTML file that opens from disk, with the table, the curves and a strip of frames a video."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Template

from common.files import write_text
from datasets.readers import read_image, read_labels
from datasets.records import Video, open_videos
from inference.writer import overlay
from tools.plot_run import PANELS, figure, read_metrics

SHOWN = 6  # frames a strip
PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Demo</title>
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
 table { border-collapse: collapse } td, th { padding: .3em 1em; text-align: right; border-bottom: 1px solid #ddd }
 td:first-child, th:first-child { text-align: left } img { max-width: 100%; display: block; margin: .2em 0 }
 .curves figure { display: inline-block; width: 48%; margin: 0 } svg { width: 100%; height: auto }
 p.row { margin: 0; color: #666; font-size: 14px }
</style>
<h1>Demo: a small network, trained from nothing on generated videos</h1>
<table><tr><th>on val</th><th>J&amp;F</th><th>J</th><th>F</th></tr>
{% for name, values in rows %}<tr><td>{{ name }}</td>
{% for key in ("J&F", "J", "F") %}<td>{{ "%.1f"|format(values[key]) }}</td>{% endfor %}</tr>{% endfor %}</table>
<p>J is region overlap, F contour accuracy, in per cent; scored by the LVOS protocol.
More: <a href="scores/report.html">the evaluator's report</a>.</p>
<h2>Training</h2>
<div class="curves">{{ curves|safe }}</div>
{% for split, videos in splits %}<h2>{{ split }}</h2>
{% for name, strips in videos %}<h3>{{ name }}</h3>
{% for label, picture in strips %}<p class="row">{{ label }}</p><img src="{{ picture }}" alt="{{ label }}">{% endfor %}
{% endfor %}{% endfor %}
</html>
""", autoescape=True)


def write_report(out: Path, scores: dict[str, dict[str, float]], data: Path) -> None:
    """Write OUT/report.html from what the demo left in OUT."""
    names = (("trained network", "trained"), ("first mask carried by optical flow", "flow"),
             ("first mask copied", "baseline"))
    splits = []
    for split in ("val", "test"):
        masks = out / f"masks_{split}" / "masks"
        splits.append((split, [(video.name, strips(video, masks, truth=split == "val"))
                               for video in open_videos(data, split).videos]))
    series = read_metrics(out / "train")
    curves = "".join(figure(title, {"train": series[key]}, logarithmic) for title, key, logarithmic in PANELS
                     if key in series)
    write_text(out / "report.html", PAGE.render(rows=[(name, scores[key]) for name, key in names], splits=splits,
                                                curves=curves))


def strips(video: Video, masks: Path, truth: bool) -> list[tuple[str, str]]:
    """Rows of pictures as data URIs: the network's masks, and the true ones where they are known."""
    stems = [video.frames[index] for index in np.linspace(0, len(video.frames) - 1, SHOWN).round().astype(int)]
    images = [read_image(video.image_path(stem)) for stem in stems]
    rows = [("network", [masks / video.name / f"{stem}.png" for stem in stems])]
    if truth:
        rows.append(("truth", [video.mask_path(stem) for stem in stems]))
    found = []
    for label, paths in rows:
        pictures = []
        for image, path in zip(images, paths, strict=True):
            labels = read_labels(path)
            pictures.append(overlay(image, np.where(labels == 255, 0, labels)))
        found.append((label, jpeg(np.concatenate(pictures, 1))))
    return found


def jpeg(picture: np.ndarray) -> str:
    """An RGB picture as a JPEG data URI."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
