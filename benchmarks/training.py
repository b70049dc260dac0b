"""Seconds and memory of a training step, beside the official code; and how fast clips are made.

    python -m benchmarks.training                          # the step of AOT-T at the official setting, and the loader
    python -m benchmarks.training --peer PATH              # beside a checkout of github.com/yoxu515/aot-benchmark
    python -m benchmarks.training --loader DATA            # clips/s of one worker on a data root

Each side runs in a process of its own, one after the other, on the same made-up clips; the step is forward, backward,
clipping and AdamW. Peak memory is the process's resident set. The fastest step counts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.command import run
from common.errors import UserError
from common.files import write_json
from configs import load_config, model_config_path


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(peer_side(arguments) if arguments.side == "peer" else our_side(arguments)))
        return
    if arguments.loader:
        result = loader_speed(arguments)
        print(f"{result['clips_per_second']:.2f} clips/s a worker ({arguments.frames} frames, crop {arguments.crop})")
    else:
        result = compare(arguments)
    if arguments.report:
        write_json(arguments.report, result)
        print(f"wrote {arguments.report}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of the official code")
    parser.add_argument("--model", default="aott")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--crop", type=int, default=465)
    parser.add_argument("--objects", type=int, default=3, help="objects of every clip (official code: always 10 slots)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps a side (after one that is not)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loader", metavar="DATA", help="data root: measure the making of clips instead")
    parser.add_argument("--report", help="write the numbers to this JSON file")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Run the sides one after the other and print a table."""
    results = {}
    print(f"{arguments.model}, batch {arguments.batch}, {arguments.frames} frames, crop {arguments.crop}, "
          f"{arguments.objects} objects, {arguments.threads} threads")
    for side in ("ours", "peer") if arguments.peer else ("ours",):
        command = [sys.executable, "-m", "benchmarks.training", "--side", side]
        for name in ("peer", "model", "batch", "frames", "crop", "objects", "steps", "threads"):
            if getattr(arguments, name) is not None:
                command += [f"--{name}", str(getattr(arguments, name))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"--side {side}: failed: {done.stderr.strip().splitlines()[-1]}")
        results[side] = json.loads(done.stdout.splitlines()[-1])
        one = results[side]
        print(f"{side}: {one['seconds']:.2f} s a step, {one['cpu_seconds']:.2f} s of processor time, "
              f"peak {one['peak_bytes'] / 2**30:.2f} GiB")
    if arguments.peer:
        ours, peer = results["ours"], results["peer"]
        print(f"faster by {peer['seconds'] / ours['seconds']:.2f}, "
              f"memory {ours['peak_bytes'] / peer['peak_bytes']:.0%} of the official code's")
    return results


def clips(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up clips: (T, B, 3, H, W) uint8 and (T, B, H, W) labels with blocks for objects."""
    torch.manual_seed(0)
    side, count = arguments.crop, arguments.frames
    frames = torch.randint(0, 256, (count, arguments.batch, side, side, 3), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    masks = torch.zeros(count, arguments.batch, side, side, dtype=torch.uint8)
    edge = side // (arguments.objects + 1)
    for number in range(arguments.objects):
        masks[..., number * edge : number * edge + edge, edge // 2 : side // 2] = number + 1
    return frames, masks


def measured(step, arguments: argparse.Namespace) -> dict[str, float]:
    """Fastest of the steps, after one that warms up."""
    step()
    times = []
    for _ in range(arguments.steps):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
    seconds, cpu_seconds = (min(values) for values in zip(*times, strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def our_side(arguments: argparse.Namespace) -> dict[str, float]:
    from common.allocator import keep_large_blocks

    keep_large_blocks()
    return measured(our_step(arguments.model, arguments), arguments)


def our_step(model: str, arguments: argparse.Namespace, device: torch.device | str = "cpu",
             amp: torch.dtype | None = None) -> Callable[[], torch.Tensor]:
    """A training step of ours on made-up clips; it returns the loss. ``arguments``: batch, frames, crop, objects."""
    from models import build_network
    from models.noise import SampleNoise
    from training.clip_model import ClipModel
    from training.optimiser import build_optimiser

    config = load_config(model_config_path(model))
    torch.manual_seed(0)
    network = ClipModel(build_network(config).to(device).train(), config)
    optimiser = build_optimiser(network.network, config.train)
    frames, masks = (tensor.to(device) for tensor in clips(arguments))
    slots = torch.stack([torch.randperm(10) for _ in range(arguments.batch)]).to(device)

    def step() -> torch.Tensor:
        with SampleNoise(list(range(arguments.batch))), \
                torch.autocast(torch.device(device).type, amp, enabled=amp is not None):
            loss = network(frames, masks, [arguments.objects] * arguments.batch, 0, slots)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def peer_side(arguments: argparse.Namespace) -> dict[str, float]:
    from benchmarks.peer import build_peer, import_peer
    from models import build_network
    from models.names import to_official

    config = load_config(model_config_path(arguments.model))
    state = {to_official(name, config.model): value for name, value in build_network(config).state_dict().items()}
    import_peer(arguments.peer)
    return measured(peer_step(*build_peer(arguments.model, state), arguments), arguments)


def peer_step(network: Any, settings: Any, arguments: argparse.Namespace, device: torch.device | str = "cpu",
              amp: torch.dtype | None = None) -> Callable[[], torch.Tensor]:
    """The same of the official code, whose network and settings ``build_peer`` gives."""
    from models.preprocess import normalise

    frames, masks = clips(arguments)
    images = normalise(frames.flatten(0, 1).float()).contiguous().to(device)  # (T * B, 3, H, W), as its loader gives
    labels = masks.flatten(0, 1).unsqueeze(1).float().to(device)
    engines = importlib.import_module("networks.engines")
    engine = engines.build_engine(settings.MODEL_ENGINE, phase="train", aot_model=network.to(device).train(), gpu_id=0,
                                  long_term_mem_gap=settings.TRAIN_LONG_TERM_MEM_GAP)
    engine.train()
    learning = [parameter for parameter in engine.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=2e-4)

    def step() -> torch.Tensor:
        engine.restart_engine(arguments.batch, True)
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, amp, enabled=amp is not None):
            loss, *_ = engine(images, labels, arguments.batch, step=0, use_prev_pred=False, enable_prev_frame=False,
                              obj_nums=[arguments.objects] * arguments.batch, tf_board=False)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(learning, 5.0)
        optimiser.step()
        return loss.detach().mean()

    return step


def loader_speed(arguments: argparse.Namespace) -> dict[str, float]:
    """Clips a second of one process, by its processor time, with the recipe's usual merging."""
    import cv2

    from datasets.mixture import Mixture

    cv2.setNumThreads(0)
    if not Path(arguments.loader).is_dir():
        raise UserError(f"--loader {arguments.loader}: no such folder")
    config = load_config(model_config_path(arguments.model), [
        f"data.root={arguments.loader}", f"train.crop={arguments.crop}", f"train.frames={arguments.frames}"])
    mixture, count = Mixture(config), 60
    mixture[0]
    begun = time.process_time()
    for number in range(1, 1 + count):
        mixture[number]
    return {"clips_per_second": count / (time.process_time() - begun)}


if __name__ == "__main__":
    run(main)
