"""Every golden case of the official tools by the path of the command: all numbers ==, CSV files by the byte."""

import json

import pytest

from evaluation import evaluate
from evaluation.outputs import write

CASES = ("p1_basic", "p2_late_ranges", "p3_padding", "p4_empty_absent", "p5_one_frame_nan", "p6_all_seen_nan",
         "p7_unsup_multiple", "p8_unsup_single", "p9_v1_2022", "p10_davis2017", "p11_davis2017_long", "p12_png_modes",
         "p13_odd_shapes")


@pytest.mark.parametrize("name", CASES)
def test_case(shared, tmp_path, name):
    case = shared / "golden/evaluation" / name
    about, expected, frames = (json.loads((case / f"{file}.json").read_text())
                               for file in ("case", "expected", "frames"))
    evaluation = evaluate(case / "gt", case / "pred", about["split"], protocol=about["protocol"], task=about["task"])
    write(evaluation, tmp_path)
    written = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert subset(written, expected) == expected
    official = list((case / "official_csv").iterdir())
    assert len(official) == 2
    for file in official:
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    for entry, official_frames in zip(evaluation.entries, frames["objects"], strict=True):
        assert entry.J.tolist() == official_frames["J"]
        assert entry.F.tolist() == official_frames["F"]


def subset(value, like):
    """``value`` without the keys that ``like`` does not have: further keys are free."""
    if isinstance(like, dict):
        return {key: subset(value[key], item) for key, item in like.items()}
    if isinstance(like, list):
        return [subset(one, other) for one, other in zip(value, like, strict=True)]
    return value


def test_workers_change_no_number(shared):
    case = shared / "golden/evaluation/p1_basic"
    one, three = (evaluate(case / "gt", case / "pred", workers=workers).scores for workers in (1, 3))
    assert one == three
