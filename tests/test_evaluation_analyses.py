"""The analyses on courses made by hand, where every number can be told without a computer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation import bootstrap, events, plots
from evaluation.aggregate import DAVIS_COLUMNS, LVOS_COLUMNS, entries_of, headline
from evaluation.analyses import analyse
from evaluation.attributes import from_masks
from evaluation.protocols import Plan, ScoredObject, ScoredVideo
from evaluation.scoring import AllScores, Track, VideoScores


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
    assert events.switches(np.empty(0, int), own=0) == {"switches": 0, "share": None}


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
    assert from_masks([track([*[None] * 20, still])]) == ()
    assert from_masks([track([*[None] * 20, still])], appeared=True) == ("LRA",)
    assert from_masks([track([None])]) == ()


@given(arrays(bool, st.integers(0, 30)))
def test_runs_are_the_flags(flags):
    built = np.zeros(len(flags), bool)
    for start, end in events.runs(flags):
        assert flags[start:end].all() and not built[max(0, start - 1):end].any()
        built[start:end] = True
    assert (built == flags).all()


def objects(scores, unseen=()):
    return [{"video": video, "object": "1", "unseen": video in unseen, "J-Mean": score, "F-Mean": score, "V-Mean": 0.1}
            for video, score in scores.items()]


def intervals(items):
    return bootstrap.intervals(items, LVOS_COLUMNS)


def test_bootstrap_intervals_hold_the_mean_and_keep_the_groups():
    scores = {"a": 0.2, "b": 0.4, "c": 0.9}
    found = intervals(objects(scores, unseen="c"))  # seen 0.2 to 0.4, unseen always 0.9
    assert found["J&F"]["low"] == pytest.approx(0.55) and found["J&F"]["high"] == pytest.approx(0.65)
    assert found["J-seen-Mean"] == {"low": pytest.approx(0.2), "high": pytest.approx(0.4)}
    assert found["V-Mean"] == {"low": pytest.approx(0.1), "high": pytest.approx(0.1)}
    assert np.isnan(found["F-unseen-Mean"]["low"])  # one video says nothing of how videos differ
    assert np.isnan(intervals([])["J&F"]["low"]) and np.isnan(intervals(objects({"a": 0.2}))["J&F"]["low"])


def test_bootstrap_intervals_are_those_of_the_definition_and_the_same_each_time():
    scores = dict(zip("abcdefghijklmnop", np.sqrt(np.linspace(0.1, 0.9, 16)), strict=True))
    found = intervals(objects(scores))
    assert found == intervals(objects(scores)) and found["videos"] == 16 and found["draws"] == 10_000
    random = np.random.default_rng(7)
    means = [random.choice(list(scores.values()), 16).mean() for _ in range(10_000)]
    assert found["J&F"]["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.01)
    assert found["J&F"]["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.01)
    both = [item | {"J-Recall": 0.5, "J-Decay": 0.1, "F-Recall": 1.0, "F-Decay": 0.0} for item in objects(scores)]
    assert bootstrap.intervals(both, DAVIS_COLUMNS)["F-Recall"] == {"low": 1.0, "high": 1.0}


def test_paired_difference():
    scores = {str(place): value for place, value in enumerate(np.linspace(0.1, 0.8, 12))}
    better = {video: value + 0.1 for video, value in scores.items()}

    def paired(other):
        return bootstrap.paired(objects(scores), objects(other), LVOS_COLUMNS)["J&F"]

    found = paired(better)
    assert found["low"] == pytest.approx(0.1) and found["high"] == pytest.approx(0.1) and found["p"] < 0.001
    assert paired(scores)["p"] == 1
    # A difference of 0.1 up and down in turn is none; one that rests on one video is not sure.
    assert paired({video: value + (-1) ** int(video) * 0.1 for video, value in scores.items()})["p"] > 0.5
    alone = paired(scores | {"3": scores["3"] + 0.1})["p"]  # twice the share of draws without that video
    assert alone == pytest.approx(2 * (11 / 12) ** 12, abs=0.03)
    with pytest.raises(ValueError, match="same objects"):
        paired({"a": 1.0})


def analysed(*videos, protocol="lvos"):
    """The analyses of videos, each a list of (stems, track)."""
    planned, found = [], []
    for name, tracks in zip("abcdef", videos, strict=False):
        scored = tuple(ScoredObject(str(k), k, k, len(stems), tuple(stems), tuple(range(len(stems))))
                       for k, (stems, _) in enumerate(tracks, 1))
        planned.append(ScoredVideo(name, False, None, None, scored, tuple(tracks[0][0])))
        found.append(VideoScores([made for _, made in tracks]))
    plan, scores = Plan(protocol, "semi-supervised", "valid", tuple(planned), ()), AllScores(found, 0, "", "")
    entries = entries_of(plan, scores)
    return analyse(plan, scores, entries, headline(plan, entries)["objects"])


def scored_track(jf, visible=None, share=0.2):
    """A track with these J (= F) in frames of 10 x 100; where it is visible the object takes this share of them."""
    made = track([None] * len(jf), (10, 100))
    made.J[0], made.F[0] = jf, jf
    made.area_true[:] = np.where(np.ones(len(jf), bool) if visible is None else visible, round(1000 * share), 0)
    return made


def numbered(count, first=1):
    return [f"{first + 5 * place:08d}" for place in range(count)]


def test_relative_time_has_twenty_bins_of_visible_frames_and_weighs_objects_alike():
    long = np.repeat(np.linspace(1, 0.05, 20), 3)  # 60 frames: three a bin, the same score in each
    short = np.zeros(20)  # 20 frames: one a bin
    seen = np.ones(60, bool)
    seen[57:] = False  # the last bin belongs to the short object alone
    rows = analysed([(numbered(60), scored_track(long, seen)), (numbered(20), scored_track(short))])["relative_time"]
    assert [(row["from"], row["to"]) for row in rows] == [(place / 20, (place + 1) / 20) for place in range(20)]
    assert [row["objects"] for row in rows] == [2] * 19 + [1]
    assert [row["J&F"] for row in rows] == pytest.approx([*(np.linspace(1, 0.05, 20)[:19] / 2), 0])


def test_absolute_time_has_bins_of_half_a_minute_and_the_slope_is_in_points_a_minute():
    falling = 0.9 - np.arange(361) / 1000  # six frames a second: 36 points a minute
    stems = numbered(361, first=46)  # 60 seconds, both ends included; the video begins at its first scored frame
    found = analysed([(stems, scored_track(falling))])
    rows = found["absolute_time"]
    assert [(row["from_minute"], row["to_minute"], row["objects"]) for row in rows] == [
        (0, 0.5, 1), (0.5, 1, 1), (1, 1.5, 1)]
    assert [row["J&F"] for row in rows] == pytest.approx([falling[:180].mean(), falling[180:360].mean(), falling[360]])
    assert found["drift"]["slope_a_minute"] == pytest.approx(-36)
    assert found["drift"]["slope"] == pytest.approx(-10)  # a tenth of a point a frame
    assert found["seconds_a_frame"] == pytest.approx(1 / 6)
    late = analysed([(numbered(20), scored_track(np.ones(20))), (numbered(20, 901), scored_track(np.zeros(20)))])
    assert [(row["from_minute"], row["J&F"]) for row in late["absolute_time"]] == [(0, 1), (0.5, 0)]  # 30 s: next bin


@pytest.mark.parametrize(("share", "size"), [(0.009, "small"), (0.01, "medium"), (0.099, "medium"), (0.1, "large"),
                                             (1.0, "large")])
@pytest.mark.parametrize("frames", [1, 3, 10])
def test_sizes_at_their_borders(share, size, frames):
    rows = analysed([(numbered(frames), scored_track(np.full(frames, 0.5), share=share))])["sizes"]
    assert {row["size"]: row["objects"] for row in rows} == {"small": 0, "medium": 0, "large": 0} | {size: 1}


def test_a_size_is_that_of_the_visible_frames_and_kinds_of_video_are_told_apart():
    half = np.array([True, False] * 5)
    one, two = scored_track(np.full(10, 0.4), half, share=0.1), scored_track(np.full(10, 0.8), share=0.001)
    unseen = scored_track(np.zeros(10), ~np.ones(10, bool))
    found = analysed([(numbered(10), one), (numbered(10), unseen)], [(numbered(10), two)])
    assert {row["size"]: row["objects"] for row in found["sizes"]} == {"small": 1, "medium": 0, "large": 1}
    assert {row["kind"]: (row["videos"], row["objects"], row["J&F"]) for row in found["video_kinds"]} == {
        "single object": (1, 1, pytest.approx(0.8)), "several objects": (1, 2, pytest.approx(0.2))}


def test_an_object_whose_range_holds_no_frame_has_no_false_alarms():
    empty = np.zeros(0)
    found = events.false_alarms(empty, empty, np.zeros(0, bool), appeared=False)
    assert found == {"absent_frames": 0, "rate": None, "tolerant_rate": None, "area": None}


def test_a_plot_takes_any_name_and_says_how_many_objects_a_point_is_the_mean_of():
    assert "$x^{$" in plots.bars(["$x^{$", "b"], [None, 0.5], "J&F by attribute")
    svg = plots.curve([0.25, 0.75], [0.9, 0.8], [3, 1], 1.0, "J&F of visible frames", "minutes")
    for text in ("mean over objects", "objects (right)", "minutes", "J&amp;F, percent", "3"):
        assert f">{text}<" in svg
    assert ">straight line<" not in svg  # two points are one by themselves
