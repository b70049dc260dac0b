"""What a long-term memory is worth: every policy, and DDMemory, on long generated videos.

    python -m benchmarks.memory --output runs/memory --budget small

Stages, each skipped where its result is there already, so that the command can be stopped and repeated: generate the
videos; train one network that remembers reference and previous frame (a small one from nothing, or an AOT-T from
--weights); from its weights train each kind of memory for each seed (equal steps, equal clips); segment and score every
row of the table; write OUT/table.md, OUT/results.json and OUT/curves.png.

With --untrained the two stages of training are left out: every row reads --weights as they are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.memory_scores import segment_video, silent_scores
from common.command import child, run
from common.errors import UserError, UserErrors, nearest
from common.files import file_hash, write_json, write_text, written_whole
from common.progress import Progress
from configs import Config, load_config
from datasets.check import check_videos
from datasets.records import Video, open_videos
from datasets.synthetic import make
from inference import Predictor
from inference.results import identity
from inference.sources import DatasetSource
from models import AOT, build_network, load_state, load_weights
from models.memory import State

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = REPOSITORY / "configs" / "recipes"


@dataclass(frozen=True)
class Budget:
    """How much is computed: videos to train on and to score, frames of each to score, steps of the two stages."""

    train_videos: int
    videos: int
    frames: int
    first_steps: int
    second_steps: int


BUDGETS = {
    "smoke": Budget(2, 1, 400, 4, 2),
    "small": Budget(36, 6, 600, 1200, 300),
    "medium": Budget(36, 20, 600, 1200, 300),
    "full": Budget(60, 20, 600, 20000, 5000),
}

# The official L variants' memory.
LONG = ["model.family=aot", "memory.policy=unbounded", "memory.gap=5", "train.memory_gap=2"]
# In half of its steps the local memory stays at the reference, so that only the global one knows what happened since.
GLOBAL = ["model.family=ddmemory", "model.global_bank=dense", "model.global_gate=mean", "memory.policy=references",
          "train.added_lr_ratio=3", "train.stale_local=0.5"]
NETWORKS = {  # what the second stage trains: settings over its recipe, and over what the weights' configuration says
    "local": ["model.family=aot", "memory.policy=references"],
    "long": LONG,
    "dense": GLOBAL,
    "dense, no gate": [*GLOBAL, "model.global_gate=open"],
    "slots": [*GLOBAL, "model.global_bank=slots"],
    "slots, no gate": [*GLOBAL, "model.global_bank=slots", "model.global_gate=open"],
}


@dataclass(frozen=True)
class Row:
    """A line of the table: a trained network, and settings at inference."""

    name: str
    network: str
    settings: tuple[str, ...] = ()
    reference_only: bool = False


POLICIES = ("fifo", "uniform", "rmem", "most_used", "diversity", "quality", "absence_aware", "fifo_official")
ROWS = [
    Row("reference only", "local", reference_only=True),
    Row("reference + local", "local"),
    Row("unbounded", "long"),
    Row("lvos6", "long", ("memory.policy=lvos6",)),
    *(Row(policy, "long", (f"memory.policy={policy}", "memory.capacity=8")) for policy in POLICIES),
    *(Row(f"DDMemory dense, every {interval}", "dense", (f"memory.global_interval={interval}",))
      for interval in (1, 5, 10)),
    Row("DDMemory dense, no gate", "dense, no gate"),
    *(Row(f"DDMemory slots, every {interval}", "slots", (f"memory.global_interval={interval}",))
      for interval in (1, 5, 10)),
    Row("DDMemory slots, no gate", "slots, no gate"),
]
BASELINE = "reference + local"


class ReferenceOnly(AOT):
    """AOT without local memory: the reference frame stands in for the previous one, for ever."""

    def memorise(self, tokens, masks, state: State, evidence=None) -> State:
        short = state.short
        state = super().memorise(tokens, masks, state, evidence)
        state.short = short
        return state


def main() -> None:
    arguments = parse()
    budget, out = BUDGETS[arguments.budget], Path(arguments.output)
    torch.set_num_threads(arguments.threads)
    rows = chosen_rows(arguments.rows)
    if arguments.budget == "smoke":
        print("note: --budget smoke shows that the command runs; its numbers say nothing of any memory",
              file=sys.stderr)
    if arguments.untrained and not arguments.weights:
        raise UserError("--untrained: rows without training need weights; name some with --weights")
    if arguments.weights and not Path(arguments.weights).is_file():
        raise UserError(f"{arguments.weights}: no such weights file; check --weights")
    data = Path(arguments.data) if arguments.data else make(
        out / "data", "long", videos=(budget.train_videos, budget.videos, 0), frames=budget.frames, difficulty="hard")
    found = open_videos(data, "val")
    if problems := check_videos(found):
        raise UserErrors(problems)
    videos = found.videos[: budget.videos]
    silence = 100 * fmean(score for video in videos for score in silent_scores(video))
    results: dict[str, list[dict]] = {}
    first = None if arguments.untrained else first_stage(arguments.weights, data, budget, out)
    for seed in range(1 if arguments.untrained else arguments.seeds):
        folder = out / "untrained" / file_hash(arguments.weights)[:8] if arguments.untrained else out / f"seed_{seed}"
        for row in rows:
            weights = arguments.weights
            if first:
                weights = second_stage(row, first, bool(arguments.weights), data, seed, budget, folder)
            scores = folder / f"scores_{data.name}"
            results.setdefault(row.name, []).append(scored(row, weights, videos, scores))
            report(results, silence, budget, arguments, out)
    print(table(results, silence))
    print(f"wrote {out}/table.md, {out}/results.json and {out}/curves.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/memory", help="folder of everything (default: runs/memory)")
    parser.add_argument("--budget", choices=BUDGETS, default="small",
                        help="smoke: two minutes, to see that it runs, its numbers mean nothing; "
                             "medium: half an hour of one core for four rows of a seed; full: a day (default: small)")
    parser.add_argument("--seeds", type=int, default=1, help="how many times the second stage is trained (default: 1)")
    parser.add_argument("--rows", help="names of rows, separated by semicolons; default: all, namely "
                                       + "; ".join(row.name for row in ROWS))
    parser.add_argument("--data", help="another data root, to train on its train split and score its val split, "
                                       "such as one made with --cutouts (default: generated into OUTPUT/data)")
    parser.add_argument("--weights", help="AOT-T weights to begin from (ours, or under the official names), "
                                          "instead of a small network trained from nothing")
    parser.add_argument("--untrained", action="store_true",
                        help="score --weights as they are, in every row, without any training")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (default: 1)")
    return parser.parse_args()


def chosen_rows(names: str | None) -> list[Row]:
    if names is None:
        return ROWS
    known = {row.name: row for row in ROWS}
    wanted = [name.strip() for name in names.split(";")]
    for name in wanted:
        if name not in known:
            raise UserError(f"--rows: no row '{name}'; {nearest(name, known)}")
    return [known[name] for name in wanted]


# The stages.


def first_stage(weights: str | None, data: Path, budget: Budget, out: Path) -> Path:
    """Weights of a network that remembers reference and previous frame, from ``weights`` or from nothing."""
    recipe = "memory_benchmark_aott_first" if weights else "demo"
    start = f"train.weights={Path(weights).resolve()}" if weights else "train.amp=bf16"
    return trained(out / "first", recipe, data, 0, budget.first_steps, [start])


def second_stage(row: Row, first: Path, aott: bool, data: Path, seed: int, budget: Budget, folder: Path) -> Path:
    """Weights that have learnt the row's kind of memory; ``aott``: the first stage's network is an AOT-T."""
    return trained(folder / row.network.replace(", ", "_").replace(" ", "_"),
                   "memory_benchmark_aott" if aott else "memory_benchmark", data, seed, budget.second_steps,
                   [*NETWORKS[row.network], f"train.weights={first}"])


def trained(folder: Path, recipe: str, data: Path, seed: int, steps: int, settings: list[str]) -> Path:
    """Weights of a run of train.py; a finished run of these settings is kept, an unfinished one goes on."""
    file, weights = RECIPES / f"{recipe}.yaml", folder / "weights.safetensors"
    settings = [f"data.root={data.resolve()}", f"seed={seed}", f"train.steps={steps}",
                f"train.checkpoint_every={max(1, min(200, steps))}",
                "train.validate_split=none", *settings]  # the rows are scored here
    begun = (folder / "config.yaml").is_file()
    if begun and load_config(folder / "config.yaml") != load_config(file, settings):
        raise UserError(f"{folder}: was trained on other data or with other settings; choose another --output, or "
                        "delete it")
    if not weights.is_file():
        command = [sys.executable, str(REPOSITORY / "train.py"), "--config", str(file), "--output",
                   str(folder.resolve()), "--device", "cpu"]
        if status := child([*command, *(["--resume"] if begun else settings)], REPOSITORY):
            raise UserError(f"{folder}: train.py ended with status {status}; see what it printed above")
    return weights.resolve()


def scored(row: Row, weights: str | Path, videos: tuple[Video, ...], folder: Path) -> dict[str, Any]:
    """Scores of a row on every video; each video's are kept in a file of its own, with what they were made of."""
    config, tensors = load_weights(weights, overrides=[*NETWORKS[row.network], *row.settings])
    made_of = {**identity(config, file_hash(weights), "late"), "reference_only": row.reference_only}
    predictor = None
    found = {}
    with Progress(len(videos), row.name, "video") as progress:
        for video in videos:
            path = folder / row.name.replace(", ", "_").replace(" ", "_") / f"{video.name}.json"
            own = {**made_of, "video": DatasetSource(video, "late").fingerprint()}
            if not path.is_file():
                predictor = predictor or predictor_of(row, config, tensors, weights)
                write_json(path, {"made_of": own, **segment_video(predictor, video)}, indent=None)
            found[video.name] = json.loads(path.read_text())
            if found[video.name].get("made_of") != own:
                raise UserError(f"{path}: was made with other weights or settings, or of other frames; choose another "
                                "--output, or delete it")
            progress.advance()
    return found


def predictor_of(row: Row, config: Config, tensors: Mapping[str, Tensor], weights: str | Path) -> Predictor:
    network = ReferenceOnly(config) if row.reference_only else build_network(plain(config))
    load_state(network, tensors, weights)
    return Predictor.from_config(config, network)


def plain(config: Config) -> Config:
    """The same without a file of encoder weights: they are in the weights."""
    config.model.encoder_weights = None
    return config


# The table.


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """Means over the objects of one seed's videos; J&F and the rest in points."""
    objects = [scores for video in found.values() for scores in video["objects"].values()]

    def mean(key: str) -> float:
        values = [scores[key] for scores in objects if scores[key] is not None]
        return 100 * fmean(values) if values else float("nan")

    return {**{key: mean(key) for key in ("jf", "visible", "after", "drop", "false_alarm")},
            "fps": 1 / fmean(video["seconds"] for video in found.values()),
            "bytes": fmean(video["bytes"] for video in found.values())}


def table(results: dict[str, list[dict]], silence: float) -> str:
    """The rows as a table in Markdown; ± is the standard deviation over seeds, [..] the interval over videos.

    ``silence``: the J&F, in points, if nothing were ever predicted; it is the first row.
    """
    lines = ["| memory | J&F | visible frames | after 100 frames away | decay | false alarms | frames/s | memory | "
             f"J&F over {BASELINE} |", "|---|---|---|---|---|---|---|---|---|",
             f"| nothing predicted | {silence:.1f} | 0.0 | 0.0 | 0.0 | 0.0 | – | – | – |"]
    for name, seeds in results.items():
        each = [numbers(found) for found in seeds]

        def cell(key: str, each: list[dict[str, float]] = each) -> str:
            values = [value[key] for value in each if not math.isnan(value[key])]
            if not values:  # no object is ever away for so long
                return "–"
            return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")

        cells = [cell(key) for key in ("jf", "visible", "after", "drop", "false_alarm", "fps")]
        held = fmean(value["bytes"] for value in each) / 1e6
        lines.append(f"| {name} | {' | '.join(cells)} | {held:.2f} MB | "
                     f"{difference(seeds, results.get(BASELINE, []))} |")
    return "\n".join(lines)


def difference(seeds: list[dict], baseline: list[dict]) -> str:
    """Mean difference of J&F to the baseline and its 95 % interval, by bootstrap over the videos of all seeds."""
    pairs = [[100 * (fmean(o["jf"] for o in ours[name]["objects"].values())
                     - fmean(o["jf"] for o in theirs[name]["objects"].values())) for name in ours]
             for ours, theirs in zip(seeds, baseline, strict=False)]
    if not pairs or seeds is baseline:
        return "–"
    values = np.array(pairs).mean(0)  # (videos,): the seeds share the videos
    draws = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]"


def report(results: dict[str, list[dict]], silence: float, budget: Budget, arguments: argparse.Namespace,
           out: Path) -> None:
    """Write what is known so far."""
    summary = {name: [numbers(found) for found in seeds] for name, seeds in results.items()}
    write_json(out / "results.json", {"budget": vars(budget), "arguments": vars(arguments), "silence": silence,
                                     "rows": summary})
    write_text(out / "table.md", table(results, silence) + "\n")
    draw_curves(results, out / "curves.png")


def draw_curves(results: dict[str, list[dict]], path: Path) -> None:
    """J&F against the position in the video, in 20 bins, of the rows that matter most."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = [name for name in results if name in ("reference only", BASELINE, "unbounded", "lvos6", "rmem",
                                                  "absence_aware", "DDMemory dense, every 5",
                                                  "DDMemory slots, every 5")]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name in shown:
        curves = [[fmean(part) for part in np.array_split(scores["curve"], 20)]
                  for found in results[name] for video in found.values() for scores in video["objects"].values()
                  if len(scores["curve"]) >= 20]  # an object that comes last has no course
        if curves:
            axes.plot(np.linspace(2.5, 97.5, 20), 100 * np.mean(curves, 0), label=name)
    axes.set(xlabel="position in the video (%)", ylabel="J&F", ylim=(0, 100))
    if axes.lines:
        axes.legend(fontsize=8)
    with written_whole(path) as beside:
        figure.savefig(beside, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    run(main)
