"""The page of the memory: what was held when, from records, without a network."""

import base64
import io
import json
import xml.etree.ElementTree as tree

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from datasets.readers import write_labels
from datasets.records import Video
from tools.memory_report import (
    PICTURES,
    Held,
    groups_of,
    held_frames,
    main,
    page,
    read_records,
    runs,
    section,
    shown,
    thumbnail,
    true_presence,
)


def record(number: int, written=(), dropped=(), stored=(0,), mass=None, **more) -> dict:
    group = {"stored": list(stored), "references": [0], "offered": mass is not None, "written": list(written),
             "dropped": list(dropped), "bytes": 1000, **({"mass": mass} if mass else {}), **more}
    return {"stem": f"{5 * number + 1:08d}", "number": number, "groups": [group]}


def story() -> list[dict]:
    """A bank of one place beside the reference: 2 is written, then 4 in its place."""
    seen = {"objects": {"7": {"presence": 0.1, "confidence": 0.8}}}
    return [record(0, written=[0]), record(1, **seen), record(2, [2], stored=(0, 2), mass={"0": 1.0}, **seen),
            record(3, stored=(0, 2)), record(4, [4], [2], (0, 4), {"0": 0.75, "2": 0.25}, **seen),
            record(5, stored=(0, 4), **{"global": {"openness": 0.2, "confidence": 0.9, "share": 0.5}})]


def test_held_frames_follow_writes_and_drops():
    (group,) = groups_of(story())
    reference, first, second = held_frames(group)
    assert (reference.frame, reference.last, reference.reference) == (0, None, True)
    assert (first.frame, first.first, first.last, first.masses) == (2, 2, 4, [(4, 0.25)])
    assert (second.frame, second.last) == (4, None)


def test_page_shows_every_fact_and_the_frames(tmp_path):
    for number in range(6):
        write_labels(tmp_path / "masks" / "bird" / f"{5 * number + 1:08d}.png", np.eye(40, 60, dtype=np.uint8) * 7)
    told = section(story(), "bird", None, tmp_path)
    drawing = tree.fromstring(told["groups"][0]["svg"])
    labels = [text.text for text in drawing.iter("text")]
    for label in ("object 7: predicted", "object 7: confidence", "global: gate openness", "reference: frame 0",
                  "memory: frame 2", "memory: frame 4"):
        assert label in labels
    html = page([told])
    assert html.count("data:image/jpeg") == 3 and "bird (6 frames)" in html and "http" not in html


def test_with_the_data_the_page_has_true_presence_and_the_frames_themselves(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    stems = [f"{5 * number + 1:08d}" for number in range(6)]
    for number, stem in enumerate(stems):
        Image.new("RGB", (60, 40), (0, 0, 40 * number)).save(tmp_path / "JPEGImages" / f"{stem}.jpg")
        write_labels(tmp_path / "Annotations" / f"{stem}.png", np.full((40, 60), 7 if 1 < number < 4 else 0, np.uint8))
    video = Video("bird", tuple(stems), tmp_path / "JPEGImages", tmp_path / "Annotations", tuple(stems))
    assert true_presence(video, dict(enumerate(stems))) == {7: [False, False, True, True, False, False]}
    uri = thumbnail(tmp_path, "bird", stems[4], video)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert picture[..., 2].mean() > 130 > 20 > picture[..., 0].mean()
    labels = [text.text for text in tree.fromstring(section(story(), "bird", video, tmp_path)["groups"][0]["svg"]
                                                    ).iter("text")]
    assert "object 7: true presence" in labels


def test_a_long_video_shows_its_references_and_a_choice_of_the_others():
    frames = [Held(number, number, reference=number == 0) for number in range(100)]
    chosen = shown(frames)
    assert len(chosen) == PICTURES and chosen[0].reference and chosen[-1].frame == 99


def test_a_bar_ends_where_its_frame_left(tmp_path):
    drawing = tree.fromstring(section(story(), "bird", None, tmp_path)["groups"][0]["svg"])
    rows = {row[0].text: row for row in drawing if row.tag.endswith("g")}
    widths = {name: float(rows[name][1].get("width")) for name in ("reference: frame 0", "memory: frame 2")}
    assert widths["memory: frame 2"] == pytest.approx(widths["reference: frame 0"] * 2 / 6, rel=0.02)
    assert len(rows["object 7: predicted"]) == 1 + 3, "a bar for each frame in which it was predicted"


def test_a_name_from_a_file_is_never_markup(tmp_path):
    assert "<b>" not in page([section(story(), "<b>bird</b>", None, tmp_path)])


def test_what_a_killed_run_left_is_no_record(tmp_path, monkeypatch):
    (tmp_path / "inspect").mkdir()
    (tmp_path / "inspect" / ".a.77.part.jsonl").write_text("")
    monkeypatch.setattr("sys.argv", ["memory_report", str(tmp_path)])
    with pytest.raises(UserError, match=r"no records of finished videos"):
        main()


def test_damaged_records_name_file_and_line(tmp_path):
    path = tmp_path / "bird.jsonl"
    path.write_text(json.dumps(story()[0]) + "\n{\"number\": 1")
    with pytest.raises(UserError, match=r"bird\.jsonl:2"):
        read_records(path)
    path.write_text(json.dumps(record(0)) + "\n")  # a reference that was never written
    with pytest.raises(UserError, match=r"bird\.jsonl: its records do not fit together"):
        read_records(path)
    path.write_text("")
    with pytest.raises(UserError, match="no records"):
        read_records(path)


def test_runs():
    assert runs([True, True, False, True]) == [(0, 2), (3, 4)]
    assert runs([]) == []
