"""The main job on generated data: data, training, masks, scores, a submission, and one page that shows it all.

    python -m tools.demo --output runs/demo

Every step is the command that a user would type, and is printed. Started again, finished steps are not repeated.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from common.command import child, run
from common.errors import UserError
from common.files import write_json
from common.progress import duration
from datasets.baselines import copy_first, flow
from datasets.records import open_videos
from evaluation import evaluate
from tools.demo_report import write_report

RECIPE = "configs/recipes/demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/demo", help="folder for everything (default runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the training (default 0)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the training that win")
    arguments = parser.parse_args()
    begun = time.monotonic()
    out = Path(arguments.output)
    data, masks = out / "data", out / "masks_val"

    command("data", "-m", "tools.make_dataset", data, "--preset", "demo", "--seed", arguments.seed)
    resume = ["--resume"] if (out / "train/tensorboard").is_dir() else []  # it has begun
    command("training", "train.py", "--config", RECIPE, "--output", out / "train", *resume,
            f"data.root={data}", f"seed={arguments.seed}", *arguments.settings)
    weights = out / "train" / "weights.safetensors"
    for split in ("val", "test"):
        command(f"masks of {split}", "infer.py", "--weights", weights, "--data", data, "--split", split,
                "--output", out / f"masks_{split}", "--overlay")
    command("scores", "evaluate.py", "--data", data, "--split", "val", "--pred", masks, "--output", out / "scores",
            "--unseen", data / "unseen_videos.txt")
    command("submission", "-m", "tools.make_submission", out / "masks_test", "--data", data, "--split", "test",
            out / "submission.zip")
    print("\n== baselines: the first mask copied, and carried along by optical flow", flush=True)
    videos = open_videos(data, "val")
    copy_first(videos, out / "copy")
    flow(videos, out / "flow")

    scores = {name: score(data, folder) for name, folder in
              (("trained", masks), ("baseline", out / "copy"), ("flow", out / "flow"))}
    summary = {name: values["J&F"] for name, values in scores.items()} | {"seed": arguments.seed, "scores": scores}
    write_json(out / "summary.json", summary)
    write_report(out, scores, data)
    show(out, scores, time.monotonic() - begun)


def command(what: str, *arguments: object) -> None:
    """Print and run one of the project's own commands; its failure is the demo's."""
    words = [str(argument) for argument in arguments]
    print(f"\n== {what}: python {shlex.join(words)}", flush=True)
    if status := child([sys.executable, *words]):
        raise UserError(f"{what}: the command above ended with status {status}; see what it said, then run "
                        "the demo again: finished steps are not repeated")


def score(data: Path, masks: Path) -> dict[str, float]:
    """J&F, J and F in per cent, by the LVOS protocol with the data's own list of unseen videos."""
    found = evaluate(data, masks, "val", unseen=data / "unseen_videos.txt").scores["global"]
    return {name: round(100 * found[key], 2) for name, key in (("J&F", "J&F"), ("J", "J-Mean"), ("F", "F-Mean"))}


def show(out: Path, scores: dict[str, dict[str, float]], seconds: float) -> None:
    """The closing table, and where everything lies."""
    names = {"trained": "trained network", "flow": "first mask, optical flow", "baseline": "first mask, copied"}
    print(f"\n{'on the generated val':26} {'J&F':>6} {'J':>6} {'F':>6}")
    for key, name in names.items():
        print(f"{name:26} " + " ".join(f"{scores[key][column]:6.1f}" for column in ("J&F", "J", "F")))
    print(f"\ndone in {duration(seconds)}")
    for name, what in (("report.html", "open this first: table, curves, pictures"), ("summary.json", "the numbers"),
                       ("data", "the generated data set"), ("train", "the run: curves, checkpoints, weights"),
                       ("masks_val", "masks and overlays of val"), ("masks_test", "masks and overlays of test"),
                       ("scores", "the evaluator's tables"), ("submission.zip", "test, packed for the server")):
        print(f"  {out / name}: {what}")


if __name__ == "__main__":
    run(main)
