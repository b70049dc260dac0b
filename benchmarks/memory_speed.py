"""Frames/s and bytes of each kind of memory: AOT-T with random weights, in one process, frame by frame in turn.

    python -m benchmarks.memory_speed

A generated scene of three objects; the true masks are fed to the memories, so that every write has something to write.
What is measured is processor time of one thread, after the bounded memories are full, writes included.
"""

from __future__ import annotations

import argparse
import time
from statistics import fmean

import torch

from benchmarks.memory import NETWORKS, ROWS
from benchmarks.scene import fed, moving_boxes
from common.allocator import keep_large_blocks
from common.command import run
from common.files import write_json
from common.progress import Progress
from configs import load_config, model_config_path
from inference import Predictor
from models import build_network, load_state

COMPARED = ("reference + local", "DDMemory dense, every 5", "lvos6", "uniform", "unbounded")
OBJECTS = 3


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    keep_large_blocks()  # as infer.py does
    frames, labels = moving_boxes((arguments.height, arguments.width), arguments.warm + arguments.frames + 1, OBJECTS)
    predictors = {name: fed(predictor) for name, predictor in predictors_compared().items()}
    seconds: dict[str, list[float]] = {name: [] for name in predictors}
    with Progress(len(frames), "every memory", "frame") as progress:
        for number, (frame, truth) in enumerate(zip(frames, labels, strict=True)):
            for name, predictor in predictors.items():
                predictor.truth = torch.from_numpy(truth).unsqueeze(0)
                begun = time.thread_time()
                predictor.step(frame) if number else predictor.start(frame, truth)
                seconds[name].append(time.thread_time() - begun)
            progress.advance()
    found = {name: {"fps": 1 / fmean(seconds[name][-arguments.frames:]), "bytes": predictor.num_bytes()}
             for name, predictor in predictors.items()}
    print(f"\n| memory | frames/s at {arguments.height}x{arguments.width} | memory |\n|---|---|---|")
    for name, row in found.items():
        print(f"| {name} | {row['fps']:.2f} | {row['bytes'] / 1e6:.1f} MB |")
    if arguments.report:
        write_json(arguments.report, {"arguments": vars(arguments), "rows": found})
        print(f"wrote {arguments.report}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=481)
    parser.add_argument("--width", type=int, default=849)
    parser.add_argument("--warm", type=int, default=40, help="frames before those that count (default: 40)")
    parser.add_argument("--frames", type=int, default=20, help="frames that count (default: 20)")
    parser.add_argument("--report", help="write the results to this JSON file")
    return parser.parse_args()


def predictors_compared() -> dict[str, Predictor]:
    """Predictors of these rows of the benchmark of memories, all with the weights of one AOT-T."""
    torch.manual_seed(0)
    weights = build_network(load_config(model_config_path("aott"))).state_dict()
    rows = {row.name: row for row in ROWS}
    made = {}
    for name in COMPARED:
        settings = [*NETWORKS[rows[name].network], *rows[name].settings, "inference.long_edge=null"]
        config = load_config(model_config_path("aott"), settings)
        network = build_network(config)
        load_state(network, weights, "AOT-T's weights")
        made[name] = Predictor.from_config(config, network)
    return made


if __name__ == "__main__":
    run(main)
