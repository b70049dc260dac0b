"""Frames/s and peak memory of inference, alone or beside the official code.

    python -m benchmarks.inference --peer ../aot-benchmark

Both sides run in processes of their own, in turn, on the same generated frames, with the same weights and the same
masks fed to their memories; medians and ratios are printed, and the share of pixels on which their masks agree; then
how far ours is from the floor: its operations and bytes at the rates that this machine reaches.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.floor import Work, convolution_rate, copy_rate, product_rate
from benchmarks.peer import NOTE
from benchmarks.scene import fed, moving_boxes
from common.allocator import keep_large_blocks
from common.command import run
from common.files import write_json

VARIANTS = "aott,deaott,r50_aotl"
FRAMES = {"r50_aotl": 60}  # long enough for the growing memory to matter
OBJECTS = 3
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def main() -> None:
    arguments = parse()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    results = []
    for variant in arguments.variants.split(","):
        results.append(compare(variant, arguments))
    if arguments.report:
        write_json(arguments.report, results)
        print(f"wrote {arguments.report}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of the official code; without it ours is measured alone")
    parser.add_argument("--variants", default=VARIANTS, help=f"comma-separated (default {VARIANTS})")
    parser.add_argument("--frames", type=int, help="frames a round (default: 24; 60 for r50_aotl)")
    parser.add_argument("--rounds", type=int, default=2, help="times that each side runs, in turn")
    parser.add_argument("--height", type=int, default=481)
    parser.add_argument("--width", type=int, default=849)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", help="write the results to this JSON file")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    parser.add_argument("--masks", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(variant: str, arguments: argparse.Namespace) -> dict:
    """Run the sides in turn, each in its own process, and print a line."""
    frames = arguments.frames or FRAMES.get(variant, 24)
    sides = ["ours", "peer"] if arguments.peer else ["ours"]
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    agreement = None
    with tempfile.TemporaryDirectory() as folder:
        write_weights(variant, Path(folder))
        for _ in range(arguments.rounds):
            for side in sides:
                masks = Path(folder) / f"{side}.npy"
                command = [sys.executable, "-m", "benchmarks.inference", "--side", side, "--variant", variant,
                           "--frames", str(frames), "--height", str(arguments.height), "--width", str(arguments.width),
                           "--threads", str(arguments.threads), "--masks", str(masks), "--folder", folder]
                command += ["--peer", arguments.peer] if arguments.peer else []
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{variant}, {side}: {done.stderr[-2000:]}")
                runs[side].append(json.loads(done.stdout.strip().splitlines()[-1]))
        if arguments.peer:
            ours, theirs = (np.load(Path(folder) / f"{side}.npy") for side in ("ours", "peer"))
            agreement = float((ours == theirs).mean())
    summary = {"variant": variant, "frames": frames, "size": [arguments.height, arguments.width], "objects": OBJECTS}
    for side in sides:
        seconds = [value for result in runs[side] for value in result["seconds"]]
        summary[side] = {"seconds": statistics.median(seconds),
                         "last_ten": statistics.median(v for r in runs[side] for v in r["seconds"][-10:]),
                         "mean": statistics.fmean(seconds),
                         "added_mib": min(result["added_mib"] for result in runs[side]),
                         "peak_mib": min(result["peak_mib"] for result in runs[side])}
        numbers = summary[side]
        print(f"{variant:12} {side:5} {numbers['seconds']:.3f} s/frame (mean {numbers['mean']:.3f}, last ten "
              f"{numbers['last_ten']:.3f}), peak {numbers['peak_mib']:.0f} MiB "
              f"({numbers['added_mib']:.0f} above the loaded program)", flush=True)
    summary["floor"] = floor(runs["ours"])
    print("{:12} floor {floor:.3f} s/frame: convolutions {convolutions:.1f} GFLOP at {convolution_rate:.0f} GFLOP/s, "
          "products {products:.1f} at {product_rate:.0f}; {mib:.0f} MiB at {copy_rate:.1f} GB/s take "
          "{bytes_seconds:.3f} s".format(variant, **summary["floor"]), flush=True)
    if arguments.peer:
        summary["peer_is"] = NOTE
        summary["speedup"] = summary["peer"]["mean"] / summary["ours"]["mean"]
        summary["speedup_of_medians"] = summary["peer"]["seconds"] / summary["ours"]["seconds"]
        summary["memory_ratio"] = summary["ours"]["peak_mib"] / summary["peer"]["peak_mib"]
        summary["agreement"] = agreement
        print(f"{variant:12} {summary['speedup']:.2f}x the frames/s ({summary['speedup_of_medians']:.2f}x by the "
              f"medians), {summary['memory_ratio']:.2f} of the peak memory, {agreement:.4%} of the pixels equal "
              f"({NOTE})", flush=True)
    return summary


def floor(runs: list[dict]) -> dict[str, float]:
    """The seconds that a frame's operations take at the best rates, and its bytes: whichever is more is the floor."""
    work = {key: max(run["work"][key] for run in runs) for key in runs[0]["work"]}
    operations = work["convolutions"] / work["convolution_rate"] + work["products"] / work["product_rate"]
    moved = work["mib"] * 2**20 / work["copy_rate"] / 1e9
    return {**work, "bytes_seconds": moved, "floor": max(operations, moved)}


def write_weights(variant: str, folder: Path) -> None:
    """Random weights for both sides: ours, and the same under the official names."""
    from configs import load_config, model_config_path
    from models import build_network, save_weights
    from tools.convert_checkpoint import official_state

    torch.manual_seed(0)
    config = load_config(model_config_path(variant))
    state = build_network(config).state_dict()
    save_weights(folder / "ours.safetensors", state, config)
    if config.model.family != "ddmemory":  # of which there is no official code
        save_file(official_state(state, config), str(folder / "peer.safetensors"))


def measure(arguments: argparse.Namespace) -> dict:
    """One side, in this process: seconds of each frame after the first, peak memory, and of ours what a frame takes."""
    torch.set_num_threads(arguments.threads)
    size = (arguments.height, arguments.width)
    frames, labels = moving_boxes(size, arguments.frames + 1, OBJECTS)
    weights = Path(arguments.folder) / f"{arguments.side}.safetensors"
    if arguments.side == "ours":
        keep_large_blocks()  # as infer.py does
        from inference import Predictor

        predictor = fed(Predictor(weights, overrides=["inference.long_edge=null"]))  # as the other side is

        def start() -> None:
            predictor.truth = torch.from_numpy(labels[0]).unsqueeze(0)
            predictor.start(frames[0], labels[0])

        def step(index: int) -> tuple[float, np.ndarray]:
            predictor.truth = torch.from_numpy(labels[index]).unsqueeze(0)
            begun = time.perf_counter()
            out = predictor.step(frames[index])  # resize and normalisation included
            return time.perf_counter() - begun, out
    else:
        from benchmarks.peer import PeerPredictor, build_peer, import_peer

        import_peer(arguments.peer)
        peer = PeerPredictor(*build_peer(arguments.variant, load_file(str(weights))), size)

        def inputs(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            image = (frames[index].astype(np.float32) / 255 - MEAN) / STD
            image = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).unsqueeze(0).contiguous()
            return image, torch.from_numpy(labels[index])[None, None].float()

        def start() -> None:
            peer.start(*inputs(0))

        def step(index: int) -> tuple[float, np.ndarray]:
            image, truth = inputs(index)
            begun = time.perf_counter()  # the network alone
            out = peer.step(image, truth)
            return time.perf_counter() - begun, out[0, 0].to(torch.uint8).numpy()

    before = _rss_mib()
    start()
    seconds, outputs = [], []
    for index in range(1, len(frames)):
        elapsed, out = step(index)
        seconds.append(elapsed)
        outputs.append(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.save(arguments.masks, np.stack(outputs))
    found = {"seconds": seconds, "peak_mib": peak, "added_mib": peak - before}
    if arguments.side == "ours":
        with Work() as work:
            step(len(frames) - 1)
        device = torch.device("cpu")
        found["work"] = {"convolutions": work.operations["convolutions"] / 1e9,
                         "products": work.operations["products"] / 1e9, "mib": work.bytes / 2**20,
                         "convolution_rate": convolution_rate(device), "product_rate": product_rate(device),
                         "copy_rate": copy_rate(device)}
    return found


def _rss_mib() -> float:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    run(main)
