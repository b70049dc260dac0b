"""compare_runs as a user meets it: text and page, p-values that mean something, results that it must not compare."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from common.errors import UserErrors
from evaluation.aggregate import columns_of, global_numbers
from tools.compare_runs import as_html, check_comparable, compare, load, rows

VIDEOS = [f"video_{place:02d}" for place in range(16)]


def save(folder, scores, protocol="lvos", **provenance):
    """A result of evaluate.py with one object a video: ``scores`` are its J and its F; every fourth is unseen."""
    objects = [{"video": name, "object": "1", "index": 1, "unseen": place % 4 == 3, "frames": 9,
                **{f"{metric}-{kind}": score for metric in "JF" for kind in ("Mean", "Recall")},
                "J-Decay": 0.0, "F-Decay": 0.0, "V-Mean": 0.2 - score / 10}
               for place, (name, score) in enumerate(scores.items())]
    numbers = global_numbers(objects, [item["unseen"] for item in objects], protocol)
    found = {"protocol": protocol, "task": "semi-supervised", "global": numbers, "clean": numbers, "objects": objects,
             "videos": [{"video": name, "objects": 1} for name in scores],
             "analyses": {"attributes": [{"attribute": "FM"}, {"attribute": "LRA"}],
                          "video_attributes": {name: {"attributes": ["FM"] if place < 4 else ["LRA"]}
                                               for place, name in enumerate(scores)}},
             "provenance": {"ground_truth_sha256": "truth", "lists": {"list.txt": "hash"}, "meta": "meta",
                            "predictions_sha256": "a <b> & c"} | provenance}
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(found))
    return folder


def base(change=lambda place: 0.0):
    return {name: 0.3 + 0.02 * place + change(place) for place, name in enumerate(VIDEOS)}


def command(*words):
    return subprocess.run([sys.executable, "-m", "tools.compare_runs", *map(str, words)], cwd=REPOSITORY,
                          capture_output=True, text=True)


def p_values(text):
    return {tuple(line.split()[:2]): float(line.rsplit("= ", 1)[1]) for line in text.splitlines() if ", p = " in line}


def test_text_and_page_of_three_results(tmp_path):
    a, b = save(tmp_path / "a", base()), save(tmp_path / "same", base())
    c = save(tmp_path / "better", base(lambda place: 0.1 + 0.02 * (place % 2)))
    done = command(a, b, c / "scores.json", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out/comparison.txt").read_text()
    assert done.stdout.startswith(text)
    assert text.startswith("A = a\nB = same\nC = better\nprotocol lvos, task semi-supervised, 16 videos, clean numbers")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line and " = " not in line}
    assert rows["video_04"] == ["1", "38.0", "38.0", "48.0", "+0.0", "+10.0"]
    assert rows["FM"] == ["4", "33.0", "33.0", "44.0", "+0.0", "+11.0"]
    assert rows["J-unseen-Mean"][0] == "4" and rows["J-seen-Mean"][0] == "12" and rows["V-Mean"][0] == "16"
    p = p_values(text)
    assert {metric for _, metric in p} == set(columns_of("lvos"))
    assert all(value == 1 for (which, _), value in p.items() if which == "B-A")
    assert all(value < 0.001 for (which, _), value in p.items() if which == "C-A")
    page = (tmp_path / "out/comparison.html").read_text()
    assert "video_15" in page and "+11.0" in page and "a &lt;b&gt; &amp; c" in page and "http" not in page
    gain = page[page.index("<td>V-Mean"):]
    assert gain[:gain.index("</tr>")].count('class="better">-') == 1  # of V, less is better
    assert "fewer than 10 videos" not in text


def test_groups_and_headline_are_of_the_clean_scores(tmp_path):
    folder = save(tmp_path / "a", base())
    scores = json.loads((folder / "scores.json").read_text())
    for place, item in enumerate(scores["objects"]):
        item |= {"J-Mean": 0.2, "F-Mean": 0.6, **({"clean": {"J-Mean": 0.4, "F-Mean": 1.0}} if place == 0 else {})}
    scores["clean"] = {**scores["clean"], "J&F": 0.123}
    (folder / "scores.json").write_text(json.dumps(scores))
    found = rows(load([folder]))
    assert next(row.values for row in found["headline"] if row.name == "J&F") == [0.123]
    assert [row.values[0] for row in found["videos"][:2]] == pytest.approx([0.7, 0.4])
    assert next(row.values[0] for row in found["attributes"] if row.name == "FM") == pytest.approx((0.7 + 3 * 0.4) / 4)


def test_of_decay_less_is_better(tmp_path):
    folders = [save(tmp_path / name, base(), protocol="davis2017") for name in "ab"]
    scores = json.loads((folders[1] / "scores.json").read_text())
    scores["clean"]["J-Decay"] = -0.1
    (folders[1] / "scores.json").write_text(json.dumps(scores))
    results = load(folders)
    page = as_html(results, compare(results))
    row = page[page.index("<td>J-Decay"):]
    assert 'class="better">-10.0' in row[:row.index("</tr>")]


def test_a_difference_that_rests_on_one_video_is_not_sure_and_few_videos_are_said(tmp_path):
    one = save(tmp_path / "one", base())
    other = save(tmp_path / "other", base(lambda place: 0.3 if place == 5 else 0.0))
    assert p_values(command(one, other).stdout)["B-A", "J&F"] > 0.05
    few, more = (dict(list(scores.items())[:8]) for scores in (base(), base(lambda place: 0.1)))
    text = command(save(tmp_path / "few", few), save(tmp_path / "more", more)).stdout
    assert "with fewer than 10 videos neither interval nor p is to be leant on" in text
    # One unseen video of four says nothing of how unseen videos differ.
    few, more = (dict(list(scores.items())[:4]) for scores in (base(), base(lambda place: 0.1)))
    text = command(save(tmp_path / "four", few), save(tmp_path / "four_more", more)).stdout
    assert "B-A J-unseen-Mean fewer than two videos" in text and ("B-A", "J-seen-Mean") in p_values(text)


def test_results_that_do_not_measure_the_same_are_refused(tmp_path):
    first = save(tmp_path / "first", base())
    part = save(tmp_path / "part", {name: score for name, score in base().items() if name != "video_07"})
    davis = save(tmp_path / "davis", base(), protocol="davis2017", ground_truth_sha256="other", lists={"list.txt": "x"})
    meta, task = save(tmp_path / "meta", base(), meta="other"), save(tmp_path / "task", base()) / "scores.json"
    task.write_text(task.read_text().replace("semi-supervised", "unsupervised_single"))
    for other, said in ((meta, "another meta"), (task, "task unsupervised_single")):
        with pytest.raises(UserErrors, match=said):
            check_comparable(load([first, other]))
    renamed = save(tmp_path / "renamed", base(), lists={"another_name.txt": "hash"})
    done = command(first, part, davis)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and "other objects" in lines[0] and "(in video_07)" in lines[0]
    assert "protocol davis2017" in lines[1] and "another ground truth" in lines[2] and "another list" in lines[3]
    assert command(first, renamed).returncode == 0


def test_a_result_that_lacks_a_part_is_named(tmp_path):
    save(tmp_path / "first", base())
    for key, part in (("analyses", {}), ("provenance", None), ("clean", {})):
        path = save(tmp_path / key, base()) / "scores.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: part}))
        with pytest.raises(UserErrors, match=f"{key}/scores.json: is no whole result"):
            load([tmp_path / "first", tmp_path / key])


@pytest.mark.parametrize(("words", "wanted"), [
    (["first", "nowhere"], "no scores to read"), (["first", "broken"], "no scores to read"),
    (["first", "foreign"], "lacks protocol"), (["first", "first"], "named twice"), (["first"], "at least two")])
def test_what_is_no_result_is_one_line(tmp_path, words, wanted):
    save(tmp_path / "first", base())
    for name, text in (("broken", "{"), ("foreign", '{"J&F": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(text)
    done = command(*(tmp_path / word for word in words), "--output", tmp_path / "out")
    assert done.returncode == 2 and wanted in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
