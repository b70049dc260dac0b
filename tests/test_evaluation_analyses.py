"""The analyses on courses made by hand, where every number can be told without a computer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation import bootstrap, events
from evaluation.attributes import from_masks
from evaluation.scoring import Track


def course(text):
    """J (= J&F) and visibility from a text: a digit is a visible frame's score in tenths, '.' and 'x' are frames
    without the object, scored 1 (nothing predicted) and 0 (a false alarm)."""
    visible = np.array([letter.isdigit() for letter in text])
    scores = np.array([int(letter) / 10 if letter.isdigit() else float(letter == ".") for letter in text])
    return scores, visible


def absences(text, appeared=True):
    scores, visible = course(text)
    return events.absences(scores, scores, visible, appeared)


def test_an_absence_and_its_return():
    (one,) = absences("99..xx2299988")
    assert (one.start, one.length, one.score) == (2, 4, 0.5)
    assert one.returned == pytest.approx((2 * 0.2 + 3 * 0.9 + 2 * 0.8) / 7)
    assert one.delay == 2


def test_short_gaps_are_none_and_recovery_ends_with_the_visible_run():
    assert absences("9..9") == []
    (one,) = absences("9...59.999")  # only two good frames before it goes again: censored
    assert one.delay is None and one.returned == pytest.approx(0.7)
    (last,) = absences("99xxx")
    assert last.returned is None and last.delay is None and last.score == 0


def test_before_the_first_appearance_nothing_is_absent():
    assert absences("xxx99", appeared=False) == []
    assert len(absences("xxx99", appeared=True)) == 1
    assert absences("xxxxx", appeared=True) == []  # never seen in the scored frames


def test_classes_of_length_count_each_absence_once():
    found = [absences("9" + "." * 5 + "999" + "x" * 25 + "999"), absences("99")]
    rows = {row["frames"]: row for row in events.by_length(found, seconds=1 / 6)}
    assert rows["3 or more"]["absences"] == 2 and rows["3 or more"]["objects"] == 1
    assert rows["3 or more"]["D"] == 0.5 and rows["20 or more"]["D"] == 0
    assert rows["3 to 9"]["recovered"] == 1 and rows["3 to 9"]["delay_frames"] == 0
    assert rows["10 to 19"]["D"] is None and rows["10 to 19"]["recovered"] is None


def test_drift_uses_visible_frames_only():
    scores, visible = course("9" * 5 + "....." + "4" * 5)
    found = events.drift(scores, visible)
    assert found["drop"] == pytest.approx(0.5)
    line = np.linspace(1, 0.5, 51)  # one hundredth of a point a frame: a point per 100 frames
    assert events.drift(line, np.ones(51, bool))["slope"] == pytest.approx(-100)
    assert events.drift(scores[:9], visible[:9]) == {"drop": None, "slope": None}


def test_false_alarms_and_misses():
    visible = np.array([False, True, True, False, False, True])
    area = np.array([5, 0, 5, 0, 500, 5])
    pixels = np.full(6, 10_000)
    late = events.false_alarms(area, pixels, visible, appeared=False)
    assert late == {"absent_frames": 2, "rate": 0.5, "tolerant_rate": 0.5, "area": 0.025}
    early = events.false_alarms(area, pixels, visible, appeared=True)
    assert early["absent_frames"] == 3 and early["rate"] == pytest.approx(2 / 3)
    found = events.misses(np.array([0, 0, 0.05, 0, 0, 0.8]), area, visible)
    assert found == {"miss": pytest.approx(1 / 3), "off_target": pytest.approx(1 / 3)}


def test_switches_count_departures_from_the_own_object():
    found = events.switches(np.array([0, -1, 1, 1, -1, 0, 2, 0]), own=0)
    assert found == {"switches": 2, "share": 3 / 8}
    assert events.switches(np.array([1, 1]), own=0)["switches"] == 1


def track(boxes, size=(100, 200)):
    """A track of the boxes (top, bottom, left, right) of a full rectangle; None where it is absent."""
    made = Track.empty(1, len(boxes))
    made.size[:] = size
    for place, box in enumerate(boxes):
        if box is not None:
            made.box[place] = box
            made.area_true[place] = (box[1] - box[0]) * (box[3] - box[2])
            made.centre[place] = (box[0] + box[1]) / 2, (box[2] + box[3]) / 2
    return made


def test_attributes_from_masks():
    still = (10, 60, 50, 150)
    assert from_masks([track([still] * 3)]) == ()
    assert from_masks([track([(10, 20, 50, 60)] * 3)]) == ("LR",)
    assert from_masks([track([still, (10, 60, 80, 180), still])]) == ("FM",)
    assert from_masks([track([still, (0, 100, 0, 200)])]) == ("SV",)
    assert from_masks([track([(10, 60, 100, 200), None, still])]) == ("OV",)
    assert from_masks([track([still, None, still])]) == ()
    assert from_masks([track([still, *[None] * 20, still])]) == ("LRA",)
    assert from_masks([track([None])]) == ()


@given(arrays(bool, st.integers(0, 30)))
def test_runs_are_the_flags(flags):
    built = np.zeros(len(flags), bool)
    for start, end in events.runs(flags):
        assert flags[start:end].all() and not built[max(0, start - 1):end].any()
        built[start:end] = True
    assert (built == flags).all()


def objects(scores, unseen=()):
    return [{"video": video, "object": "1", "unseen": video in unseen, "J-Mean": score, "F-Mean": score}
            for video, score in scores.items()]


def test_bootstrap_intervals_hold_the_mean_and_keep_the_groups():
    scores = {"a": 0.2, "b": 0.4, "c": 0.9}
    found = bootstrap.intervals(objects(scores, unseen="c"))["J&F"]  # seen 0.2 to 0.4, unseen always 0.9
    assert found["low"] == pytest.approx(0.55) and found["high"] == pytest.approx(0.65)
    assert np.isnan(bootstrap.intervals([])["J&F"]["low"])


def test_paired_difference():
    scores = {str(place): value for place, value in enumerate(np.linspace(0.1, 0.8, 12))}
    better = {video: value + 0.1 for video, value in scores.items()}
    found = bootstrap.paired(objects(scores), objects(better))["J&F"]
    assert found["low"] == pytest.approx(0.1) and found["high"] == pytest.approx(0.1) and found["p"] < 0.001
    assert bootstrap.paired(objects(scores), objects(scores))["J&F"]["p"] == 1
    with pytest.raises(ValueError, match="same objects"):
        bootstrap.paired(objects(scores), objects({"a": 1.0}))


def test_an_object_whose_range_holds_no_frame_has_no_false_alarms():
    empty = np.zeros(0)
    found = events.false_alarms(empty, empty, np.zeros(0, bool), appeared=False)
    assert found == {"absent_frames": 0, "rate": None, "tolerant_rate": None, "area": None}
