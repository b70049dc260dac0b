"""Score masks against a data set by the official protocols.

    python evaluate.py --data LVOS_V2 --split val --pred OUT --output SCORES
    python evaluate.py --data DAVIS --split val --pred OUT --output SCORES --protocol davis2017
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from common.command import run
from common.files import check_output_folder
from datasets.records import FORMATS

PROTOCOLS = ("lvos", "v1-2022", "davis2017")
TASKS = ("semi-supervised", "unsupervised_multiple", "unsupervised_single")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data root; only Annotations and the meta are read, no images")
    parser.add_argument("--split", default="val", help="name of the split (default: val)")
    parser.add_argument("--format", choices=FORMATS, help="the data's layout, instead of the first that fits")
    parser.add_argument("--pred", required=True, help="folder of masks <video>/<frame>.png, or an OUT of infer.py")
    parser.add_argument("--videos", help="only these, separated by commas: numbers of a part of the split")
    parser.add_argument("--output", required=True, help="folder for scores.json, the CSV tables and report.html")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0],
                        help="lvos: V2's tool of 2024 (default); v1-2022: V1's of 2022; davis2017: DAVIS J&F")
    parser.add_argument("--unseen", help="file with the unseen videos, one name a line, instead of the protocol's list")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1,
                        help="processes (default: one a CPU core); no number depends on it")
    parser.add_argument("--strict", action="store_true", help="what the audit finds is an error")
    parser.add_argument("--no-report", action="store_true", help="write no report.html")
    chosen = parser.parse_args()
    if chosen.workers < 1:
        parser.error(f"--workers: {chosen.workers} is not a number of processes; give 1 or more")
    return chosen


def main() -> None:
    """Score, write, and say what was written."""
    chosen = arguments()
    # Imported here, so that --help and a mistyped option answer at once.
    from evaluation.evaluator import evaluate
    from evaluation.outputs import audit_lines, summary, write

    masks = Path(chosen.pred, "masks")  # an OUT of infer.py may well hold its scores beside its masks
    check_output_folder(chosen.output, [chosen.data, masks if masks.is_dir() else chosen.pred])
    evaluation = evaluate(chosen.data, chosen.pred, chosen.split, protocol=chosen.protocol, task=chosen.task,
                          unseen=chosen.unseen, format=chosen.format, workers=chosen.workers, strict=chosen.strict,
                          videos=chosen.videos.split(",") if chosen.videos is not None else None, progress=True)
    written = write(evaluation, chosen.output)
    if not chosen.no_report:
        from evaluation.report import write_report

        written.append(write_report(evaluation, f"{chosen.output}/report.html"))
    print(*(f"wrote {path}" for path in written), sep="\n")
    if chosen.videos:
        print(f"note: the numbers are those of {len(evaluation.plan.videos)} videos of the split")
    print(*audit_lines(evaluation), summary(evaluation), sep="\n")


if __name__ == "__main__":
    run(main)
