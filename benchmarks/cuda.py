"""Speed and memory on a GPU, beside the official code and beside the floor that the card sets.

    python -m benchmarks.cuda --peer ../aot-benchmark --report benchmarks/results/cuda.json

Cells run from the most telling to the least until the minutes are spent; the tables come last. The official code runs
in a process of its own, in turn with ours, with the same weights, frames and masks fed to the memory. ``--device cpu
--size 97x129`` tries the program itself without a GPU.

Cells: net/VARIANT/OBJECTS/MEMORY/MODE is the network alone, on frames that are on the device (MEMORY: frames stored, or
grow: 60 frames, one stored every 5); file/VARIANT/MODE/STREAMS the whole program from JPEG to PNG; train/VARIANT/SIDE
the training step; loader/WORKERS the clips that so many processes decode for it; run/VARIANT/WORKERS a training from
files; kernel/… single parts. Modes: fp32, amp, graphs (amp with CUDA graphs), compile (amp with torch.compile, only
with --compile), peer, peer_amp.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import gc
import json
import os
import platform
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.floor import Work, copy_rate, milliseconds, product_rate, synchronise
from benchmarks.peer import NOTE
from benchmarks.scene import fed, moving_boxes
from benchmarks.training import our_step, peer_step
from common.command import run
from common.errors import UserError
from common.files import write_json
from models.precision import ready

FULL = ("aott", "r50_deaotl")  # variants of the full grid
OTHERS = ("deaott", "r50_aotl", "aotb", "aotl", "deaotl", "swinb_deaotl", "ddmemory")
TARGETS = {"aott": (5, "1"), "deaott": (5, "1"), "r50_aotl": (4, "grow"), "r50_deaotl": (4, "grow")}
PUBLISHED = {"aott": 51.4, "aots": 40.0, "aotb": 29.6, "aotl": 18.7, "r50_aotl": 18.0, "swinb_aotl": 12.1,  # DAVIS
             "deaott": 53.4, "deaots": 38.7, "deaotb": 30.4, "deaotl": 24.7, "r50_deaotl": 22.4,  # YouTube-VOS
             "swinb_deaotl": 11.9}  # frames/s on a V100 (aot-benchmark, MODEL_ZOO.md)
GROWING = 60  # frames of a growing memory
DRAWN = 60  # pictures of a video on disk, shown again and again
SPARE = 15.0  # seconds kept for the tables
PEER_SECONDS = 60.0  # a cell of the official code may take, its start included


def main() -> None:
    arguments = parse()
    if arguments.serve_peer:
        serve_peer(arguments)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device was found; --device cpu --size 97x129 tries the program")
    bench = Bench(arguments)
    try:
        bench.run()
    finally:
        bench.tables()
        bench.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of the official code, to run beside ours")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0, help="no cell starts later (default 7)")
    parser.add_argument("--only", default="*", help="cells that match this pattern, e.g. 'net/aott/*'")
    parser.add_argument("--size", default="481x849", help="height x width of the frames (default 481x849)")
    parser.add_argument("--amp", choices=("bf16", "fp16"), default="bf16", help="half precision (default bf16)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.add_argument("--seconds", type=float, default=1.0, help="timed seconds a cell, about (default 1)")
    parser.add_argument("--frames", type=int, default=240,
                        help="frames of a video on disk (default 240; each video records graphs and readies kernels)")
    parser.add_argument("--report", help="write results to this JSON file after every cell")
    parser.add_argument("--list", action="store_true", help="print the cells' names, run nothing")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    height, _, width = arguments.size.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--size {arguments.size}: not HEIGHTxWIDTH, as in 481x849")
    arguments.size = (int(height), int(width))
    return arguments


def cells(arguments: argparse.Namespace) -> Iterator[str]:
    """Names of all cells, the most telling first."""
    own = ["fp32", "amp", *(["graphs"] if arguments.device == "cuda" else [])]
    best = own[-1]
    peers = ["peer", "peer_amp"] if arguments.peer else []
    yield "rates"
    for variant, (_, memory) in TARGETS.items():
        yield from (f"net/{variant}/3/{memory}/{mode}" for mode in (best, *peers))
    for variant in FULL:
        yield from (f"file/{variant}/{best}/{streams}" for streams in (1, 4))
    for mode in ("ours", "ours_amp", *peers):
        yield f"train/aott/{mode}"
    workers = max(1, (os.cpu_count() or 1) - 2)
    yield from (f"loader/{workers}", f"run/aott/{workers}")
    for variant, (_, memory) in TARGETS.items():
        yield from (f"net/{variant}/3/{memory}/{mode}" for mode in own[:-1])
    yield from (f"file/{variant}/{best}/{streams}" for variant in FULL for streams in (2, 8))
    for variant in OTHERS:
        yield f"net/{variant}/3/{'grow' if variant.endswith('l') else 1}/{best}"
    for part in ("deaot_long/plain", "deaot_long/fused", "aot_long/fused", "aot_local/all", "deaot_local/all"):
        yield from (f"kernel/{part}/{frames}" for frames in ((1,) if "local" in part else (1, 10, 40)))
    for variant in FULL:
        for objects in (3, 1, 10):
            for memory in (1, 10, 40):
                yield from (f"net/{variant}/{objects}/{memory}/{mode}" for mode in (*reversed(own), *peers[:1]))
    if arguments.compile:
        yield from (f"net/{variant}/3/{memory}/compile" for variant, (_, memory) in TARGETS.items())


class Bench:
    """Runs cells and keeps their results: cell -> numbers."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments, self.device = arguments, torch.device(arguments.device)
        ready(self.device)
        self.begun = time.perf_counter()
        self.results: dict[str, dict[str, Any]] = {}
        self.skipped: list[str] = []
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.peer: subprocess.Popen[str] | None = None
        self.peer_failures = 0  # how often its process ended

    def run(self) -> None:
        names = [name for name in dict.fromkeys(cells(self.arguments)) if fnmatch.fnmatch(name, self.arguments.only)]
        if not names:
            raise UserError(f"--only {self.arguments.only}: matches no cell; --list prints them")
        if self.arguments.list:
            print("\n".join(names))
            return
        for name in names:
            left = 60 * self.arguments.minutes - SPARE - (time.perf_counter() - self.begun)
            if left <= 0:
                self.skipped.append(name)
                continue
            begun = time.perf_counter()
            try:
                found = self.measure(name, left)
            except Exception as error:  # a cell that fails is told of, and the others go on
                found = failure(error)
            found["cell_seconds"] = round(time.perf_counter() - begun, 2)
            self.results[name] = found
            tidy(self.device)
            print(f"{time.perf_counter() - self.begun:6.1f} s  {name:32} "
                  + "  ".join(f"{key} {_short(value)}" for key, value in found.items() if key != "masks"), flush=True)
            self.save()

    def measure(self, name: str, left: float) -> dict[str, Any]:
        kind, *parts = name.split("/")
        if parts and parts[-1].startswith("peer"):
            return self.ask_peer(name, left)
        if kind == "rates":
            return rates(self.device)
        if kind == "net":
            variant, objects, memory, mode = parts
            return self.network_alone(variant, int(objects), memory, mode)
        if kind == "file":
            return self.whole_program(parts[0], parts[1], int(parts[2]))
        if kind == "train":
            step = our_step(parts[0], clip_settings(self.arguments), self.device, self.amp(parts[1] == "ours_amp"))
            return timed_training(step, self.device)
        if kind == "loader":
            return loader_rate(int(parts[0]), self.folder, self.arguments)
        if kind == "run":
            return whole_training(parts[0], int(parts[1]), self.folder, self.arguments)
        return kernel(parts[0], parts[1], int(parts[2]), self.device, self.amp(True), self.arguments)

    def amp(self, wanted: bool) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[self.arguments.amp] if wanted else None

    # The network alone.

    def weights(self, variant: str) -> Path:
        """Folder with random weights of a variant, for both sides."""
        from benchmarks.inference import write_weights

        folder = self.folder / variant
        if not folder.is_dir():
            folder.mkdir()
            write_weights(variant, folder)
        return folder

    def predictor(self, variant: str, mode: str, *settings: str):
        from inference import Predictor

        chosen = ["inference.long_edge=null", *settings]
        if mode != "fp32":
            chosen.append(f"inference.amp={self.arguments.amp}")
        chosen += {"graphs": ["inference.graphs=true"], "compile": ["inference.compile=true"]}.get(mode, [])
        return Predictor(self.weights(variant) / "ours.safetensors", device=self.device, overrides=chosen)

    def network_alone(self, variant: str, objects: int, memory: str, mode: str) -> dict[str, Any]:
        begun = time.perf_counter()
        settings = ["memory.gap=5"] if memory == "grow" else ["memory.policy=unbounded", "memory.gap=1"]
        predictor = fed(self.predictor(variant, mode, *settings))
        size = self.arguments.size
        pictures, labels = moving_boxes(size, 8, objects)
        frames = [torch.from_numpy(picture).to(self.device) for picture in pictures]
        truths = [torch.from_numpy(label).to(self.device).unsqueeze(0) for label in labels]
        predictor.truth = truths[0].clone()

        def start() -> None:
            predictor.truth.copy_(truths[0])
            predictor.start(frames[0], truths[0][0])
            if memory != "grow":
                for number in range(1, int(memory)):
                    step(number)
                for state in predictor._views[0].states:  # full: nothing more is written
                    state.config = state.config.model_copy(update={"gap": 10**9})

        def step(number: int) -> Tensor:
            predictor.truth.copy_(truths[number % len(truths)])
            return predictor.step(frames[number % len(frames)])

        start()
        masks = torch.stack([step(number) for number in range(1, 4)]).cpu().numpy()  # warms up, too
        ready = time.perf_counter() - begun
        found = timed(start, step, self.device, self.arguments.seconds, GROWING if memory == "grow" else None)
        found |= {"start_seconds": ready, "memory_mib": predictor.num_bytes() / 2**20}
        np.save(self.masks_of(variant, objects, memory, mode), masks)
        if mode != "compile":
            found |= self.floor(predictor, lambda: step(1), mode)
        return found | self.agreement(variant, objects, memory, mode)

    def masks_of(self, variant: str, objects: int, memory: str, mode: str) -> Path:
        return self.folder / f"{variant}_{objects}_{memory}_{mode}.npy"

    def agreement(self, variant: str, objects: int, memory: str, mode: str) -> dict[str, float]:
        """Share of pixels equal to what other modes gave, over three frames with random weights."""
        own = np.load(self.masks_of(variant, objects, memory, mode))
        found = {}
        for other in ("fp32", "amp", "graphs", "peer"):
            path = self.masks_of(variant, objects, memory, other)
            if other != mode and path.is_file() and (theirs := np.load(path)).shape == own.shape:
                found[f"equal_{other}"] = float((theirs == own).mean())
        return found

    def floor(self, predictor: Any, step: Callable[[], Any], mode: str) -> dict[str, float]:
        """Operations and bytes of a step, and the frames/s that the measured rates would allow."""
        graphs, predictor._graphs = predictor._graphs, None
        try:
            with Work() as work:
                step()
        except Exception as error:  # the speed is measured already
            return {"floor_failed": failure(error)["failed"]}
        finally:
            predictor._graphs = graphs
        found = {"gflop": work.flops / 1e9, "mib_moved": work.bytes / 2**20}
        if "copy" in (measured := self.results.get("rates", {})):
            rate = measured["tf32" if mode == "fp32" else self.arguments.amp]
            found["floor_fps"] = 1 / max(work.flops / rate / 1e12, work.bytes / measured["copy"] / 1e9)
        return found

    # The whole program.

    def whole_program(self, variant: str, mode: str, streams: int) -> dict[str, Any]:
        from inference.results import Outputs
        from inference.runner import run_videos

        predictor = self.predictor(variant, mode)
        videos = self.videos(streams)
        warm = self.folder / f"warm_{variant}"
        run_videos(predictor, videos[:1], Outputs(warm))
        tidy(self.device)  # else the memory of its graphs would count as needed
        reset_peak(self.device)
        out = self.folder / f"out_{variant}_{mode}_{streams}"
        cost = run_videos(predictor, videos, Outputs(out), streams)
        records = [json.loads((out / "videos" / f"{video.name}.json").read_text()) for video in videos]
        return {"fps": cost.frames / cost.seconds, "peak_mib": peak_mib(self.device),
                "model_fps": sum(record["frames"] for record in records)
                / sum(record["model_seconds"] for record in records), "frames": cost.frames}

    def videos(self, count: int) -> list[Any]:
        """As many videos on disk, all the same files; 3 objects."""
        import cv2

        from datasets.readers import write_labels
        from datasets.records import open_videos
        from inference.sources import DatasetSource

        root = self.folder / "data" / "val"
        for number in range(count):
            images, masks = root / "JPEGImages" / f"{number}", root / "Annotations" / f"{number}"
            if images.is_dir():
                continue
            if number > 0:
                for folder in (images, masks):
                    shutil.copytree(folder.parent / "0", folder, copy_function=os.link)
                continue
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            pictures, labels = moving_boxes(self.arguments.size, min(self.arguments.frames, DRAWN), 3)
            for frame in range(self.arguments.frames):
                cv2.imwrite(str(images / f"{frame:05d}.jpg"), pictures[frame % DRAWN][:, :, ::-1])
            write_labels(masks / "00000.png", labels[0])
        found = open_videos(root.parent, "val", objects="first", videos=[f"{number}" for number in range(count)])
        return [DatasetSource(video, found.objects) for video in found.videos]

    # The official code.

    def ask_peer(self, name: str, left: float) -> dict[str, Any]:
        if self.peer_failures >= 2:
            raise UserError("the official code's process ended twice; not started again")
        if self.peer is None:
            self.weights("aott")
            command = [sys.executable, "-m", "benchmarks.cuda", "--serve-peer", "--folder", str(self.folder),
                       "--device", self.arguments.device, "--peer", self.arguments.peer, "--amp", self.arguments.amp,
                       "--size", "x".join(map(str, self.arguments.size)), "--seconds", str(self.arguments.seconds)]
            self.peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.peer.stdin and self.peer.stdout
        self.weights(name.split("/")[1])
        with suppress(BrokenPipeError):  # it has ended: it gives no answer
            self.peer.stdin.write(name + "\n")
            self.peer.stdin.flush()
        if not select.select([self.peer.stdout], [], [], min(left, PEER_SECONDS))[0]:
            self.peer.kill()
        answer = self.peer.stdout.readline()
        if not answer:
            self.end_peer()
            self.peer_failures += 1
            raise UserError("the official code's process ended, or took too long; see above")
        found = json.loads(answer)
        if name.startswith("net/") and "failed" not in found:
            variant, objects, memory, mode = name.split("/")[1:]
            found |= self.agreement(variant, int(objects), memory, mode)
        return found

    def end_peer(self) -> None:
        if self.peer is not None:
            self.peer.kill()
            self.peer.wait()
            self.peer = None

    def close(self) -> None:
        self.end_peer()
        self.temporary.cleanup()

    # What is told.

    def save(self) -> None:
        if self.arguments.report:
            write_json(self.arguments.report, {
                "date": datetime.date.today().isoformat(), "command": shlex.join(sys.argv), "device": card(self.device),
                "versions": {"python": platform.python_version(), "torch": torch.__version__,
                             "cuda": torch.version.cuda, "numpy": np.__version__},
                "size": list(self.arguments.size), "amp": self.arguments.amp, "peer": NOTE, "cells": self.results})

    def tables(self) -> None:
        if not self.results:
            return
        print(f"\n{card(self.device)}, torch {torch.__version__}, {self.arguments.size[0]}x{self.arguments.size[1]}, "
              f"half precision {self.arguments.amp}; {datetime.date.today()}")
        if "copy" in (measured := self.results.get("rates", {})):
            print("measured rates: " + ", ".join(
                f"{key} {value:.1f} {'GB/s' if key == 'copy' else 'TFLOP/s'}" for key, value in measured.items()
                if key != "cell_seconds"))
        if self.arguments.peer:
            print(NOTE)
        self.table("The network alone", "net", ("fps", "peak_mib", "memory_mib", "floor_fps", "gflop", "mib_moved",
                                                "start_seconds", "equal_fp32", "equal_graphs", "equal_peer"))
        self.table("The whole program, JPEG to PNG", "file", ("fps", "model_fps", "peak_mib"))
        self.table("The training step", "train", ("steps_per_second", "peak_mib"))
        self.table("Decoding for it", "loader", ("clips_per_second",))
        self.table("Training from files", "run", ("steps_per_second", "waiting"))
        self.table("Parts", "kernel", ("milliseconds",))
        self.ratios()
        failed = [name for name, found in self.results.items() if "failed" in found]
        if failed:
            print("\nfailed: " + "; ".join(f"{name}: {self.results[name]['failed']}" for name in failed))
        if self.skipped:
            print(f"\nnot run, the time was spent: {len(self.skipped)} cells, from {self.skipped[0]} on")
        if self.arguments.report:
            print(f"\nwrote {self.arguments.report}")

    def table(self, title: str, kind: str, columns: tuple[str, ...]) -> None:
        rows = {name: found for name, found in self.results.items() if name.startswith(kind + "/")}
        if not rows:
            return
        print(f"\n{title}\n{'cell':34}" + "".join(f"{column:>17}" for column in columns))
        for name, found in sorted(rows.items()):
            print(f"{name:34}" + "".join(f"{_short(found[c]) if c in found else '-':>17}" for c in columns))

    def ratios(self) -> None:
        """Ours over the official code, where both were measured; published V100 frames/s beside."""
        lines = []
        for name, theirs in sorted(self.results.items()):
            *stem, mode = name.split("/")
            if mode not in ("peer", "peer_amp") or "failed" in theirs:
                continue
            for own in ("fp32", "amp", "graphs", "compile", "ours", "ours_amp"):
                ours = self.results.get("/".join([*stem, own]))
                if not ours or "failed" in ours:
                    continue
                key = "fps" if "fps" in ours else "steps_per_second"
                line = f"{'/'.join(stem):28} {own:9} over {mode:9} {ours[key] / theirs[key]:6.2f}x, memory " \
                       f"{ours['peak_mib'] / theirs['peak_mib']:.2f}"
                if stem[1] in PUBLISHED and key == "fps":
                    line += f"   (published, V100: {PUBLISHED[stem[1]]} frames/s)"
                lines.append(line)
        if lines:
            print("\nOurs over the official code\n" + "\n".join(lines))
        loader = next((r for name, r in self.results.items() if name.startswith("loader/") and "failed" not in r), None)
        step = self.results.get("train/aott/ours_amp")
        if loader and step and "failed" not in step:
            wanted = step["steps_per_second"] * clip_settings(self.arguments).batch
            print(f"\nthe loader decodes {loader['clips_per_second']:.1f} clips/s, the step takes {wanted:.1f}")
        for variant in FULL:
            for mode in ("graphs", "amp"):
                one = self.results.get(f"file/{variant}/{mode}/1")
                if not one or "failed" in one:
                    continue
                alone = self.results.get(f"net/{variant}/3/{TARGETS[variant][1]}/{mode}")
                more = {n: r["fps"] / one["fps"] for n in (2, 4, 8)
                        if "fps" in (r := self.results.get(f"file/{variant}/{mode}/{n}", {}))}
                print(f"{variant} {mode}: the whole program "
                      + (f"{one['fps'] / alone['fps']:.0%} of the network alone; " if alone and "fps" in alone else "")
                      + ", ".join(f"{n} streams {value:.2f}x" for n, value in more.items()))


# Measuring.


def timed(start: Callable[[], Any], step: Callable[[int], Any], device: torch.device, seconds: float,
          count: int | None) -> dict[str, float]:
    """Frames/s and peak memory of ``step`` after ``start``; ``count`` frames, or as many as fill the seconds."""
    if count is None:
        synchronise(device)
        begun = time.perf_counter()
        for number in range(1, 4):
            step(number)
        synchronise(device)
        count = max(3, min(200, int(seconds / max(1e-4, (time.perf_counter() - begun) / 3))))
    start()
    step(1)
    reset_peak(device)
    synchronise(device)
    begun = time.perf_counter()
    for number in range(2, 2 + count):
        step(number)
    synchronise(device)
    return {"fps": count / (time.perf_counter() - begun), "peak_mib": peak_mib(device), "frames": count}


def rates(device: torch.device) -> dict[str, float]:
    """TFLOP/s of large matrix products by number format, GB/s of a copy (bytes read and written)."""
    side, repeats = (8192, 10) if device.type == "cuda" else (512, 2)  # the processor only tries the program
    found = {}
    for name, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16),
                        ("fp16", torch.float16)):
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        found[name] = product_rate(device, dtype, repeats, side) / 1e3
        torch.backends.cuda.matmul.allow_tf32 = before
    return found | {"copy": copy_rate(device, repeats)}


def kernel(part: str, form: str, frames: int, device: torch.device, dtype: torch.dtype | None,
           arguments: argparse.Namespace) -> dict[str, float]:
    """One part of a block by itself: the long-term read over ``frames`` stored frames, or the windowed attention."""
    import torch.nn.functional as F

    from models.attention import LocalAttention, attend

    grid = (arguments.size[0] // 16 + 1, arguments.size[1] // 16 + 1)
    length = grid[0] * grid[1]

    def tokens(channels: int, count: int = 1) -> Tensor:
        return torch.randn(1, count * length, channels, device=device, dtype=dtype)

    with torch.inference_mode():
        if part.endswith("local"):
            aot = part == "aot_local"
            layer = LocalAttention(8, 256, 256) if aot else LocalAttention(1, 128, 1024, embed_values=False)
            layer = layer.to(device, dtype)
            query, key, value = tokens(256 if aot else 128), tokens(256 if aot else 128), tokens(256 if aot else 1024)
            return {"milliseconds": milliseconds(lambda: layer(query, key, value, grid), device)}
        width, out, heads = (256, 256, 8) if part == "aot_long" else (128, 1024, 1)
        query, key, value = tokens(width), tokens(width, frames), tokens(out, frames)
        if part == "deaot_long" and form == "fused":
            query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
            return {"milliseconds": milliseconds(
                lambda: F.scaled_dot_product_attention(query, key, value), device)}
        return {"milliseconds": milliseconds(lambda: attend(query, key, value, heads), device)}


# Training.


def clip_settings(arguments: argparse.Namespace) -> argparse.Namespace:
    """The official setting on one card; a small one to try the program."""
    small = arguments.device == "cpu"
    return argparse.Namespace(batch=1 if small else 4, frames=3 if small else 5, crop=97 if small else 465, objects=3)


def training_config(variant: str, workers: int, folder: Path, arguments: argparse.Namespace, *more: str) -> Any:
    """A training at the official setting on generated videos of the frames' size."""
    from configs import load_config, model_config_path
    from datasets.synthetic import make

    settings = clip_settings(arguments)
    data = make(folder / "clips", videos=(3, 1, 0), frames=12, size=arguments.size, difficulty="normal")
    return load_config(model_config_path(variant), [
        f"data.root={data}", f"data.workers={workers}", f"train.crop={settings.crop}", f"train.batch={settings.batch}",
        f"train.frames={settings.frames}", *more])


def loader_rate(workers: int, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Clips/s of the training data's decoding and augmenting, from generated videos of the frames' size."""
    from datasets.mixture import Mixture, batches

    config = training_config("aott", workers, folder, arguments)
    ahead = 2 * workers  # batches that are ready or in work when the clock starts
    warm, count = ahead, 2 * ahead if arguments.device == "cpu" else 10 * ahead
    running = batches(Mixture(config), 0, warm + count)
    for _ in range(warm):  # what the workers had ready
        next(running)
    begun = time.perf_counter()
    done = sum(1 for _ in running)
    return {"clips_per_second": done * config.train.batch / (time.perf_counter() - begun)}


def whole_training(variant: str, workers: int, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Steps/s of train.py's own loop from files, and the share of its time that it waits for clips, the device idle."""
    from common.ranks import Ranks
    from training.loop import train

    steps = 4 if arguments.device == "cpu" else 60
    config = training_config(variant, workers, folder, arguments, f"train.amp={arguments.amp}", f"train.steps={steps}",
                             f"train.log_every={steps // 2}", "train.validate_split=none")
    run = folder / f"run_{variant}"
    train(config, run, Ranks(0, 1, torch.device(arguments.device)))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])  # of the second half: all is warm
    return {"steps_per_second": 1 / last["seconds"], "waiting": last["data_seconds"] / last["seconds"]}


def timed_training(step: Callable[[], Tensor], device: torch.device) -> dict[str, float]:
    step()
    reset_peak(device)
    step()
    synchronise(device)
    count, begun = 8 if device.type == "cuda" else 1, time.perf_counter()
    for _ in range(count):
        loss = step()
    synchronise(device)
    return {"steps_per_second": count / (time.perf_counter() - begun), "peak_mib": peak_mib(device),
            "loss": loss.item()}


# The official side.


def serve_peer(arguments: argparse.Namespace) -> None:
    """Read cells from standard input, answer each with a line of JSON."""
    from benchmarks.inference import MEAN, STD
    from benchmarks.peer import PeerPredictor, build_peer, import_peer
    from models.preprocess import input_size

    device = torch.device(arguments.device)
    out, sys.stdout = sys.stdout, sys.stderr  # the official code prints
    import_peer(arguments.peer)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[arguments.amp]

    def network_alone(variant: str, objects: int, memory: str, mode: str) -> dict[str, Any]:
        network, config = build_peer(variant, load_file(f"{arguments.folder}/{variant}/peer.safetensors"))
        size = input_size(*arguments.size, bool(config.MODEL_ALIGN_CORNERS))
        config.TEST_LONG_TERM_MEM_GAP = 5 if memory == "grow" else 1
        peer = PeerPredictor(network.to(device), config, size, arguments.device)
        pictures, truths = moving_boxes(size, 8, objects)
        inputs = []
        for picture, truth in zip(pictures, truths, strict=True):
            image = torch.from_numpy(((picture / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)
            inputs.append((image.unsqueeze(0).contiguous().to(device), torch.from_numpy(truth)[None, None].float()
                           .to(device)))

        def gap(value: int) -> None:
            for engine in (peer.engine, *peer.engine.aot_engines):
                engine.long_term_mem_gap = value

        def start() -> None:
            peer.start(*inputs[0])
            if memory != "grow":
                gap(1)
                for number in range(1, int(memory)):
                    step(number)
                gap(10**9)

        def step(number: int) -> Tensor:
            return peer.step(*inputs[number % len(inputs)])

        with torch.autocast(device.type, half) if mode == "peer_amp" else nullcontext():
            start()
            given = torch.cat([step(number) for number in range(1, 4)])[:, 0].to(torch.uint8).cpu().numpy()
            np.save(f"{arguments.folder}/{variant}_{objects}_{memory}_{mode}.npy", given)
            return timed(start, step, device, arguments.seconds, GROWING if memory == "grow" else None)

    def training(variant: str, mode: str) -> dict[str, Any]:
        network, config = build_peer(variant, load_file(f"{arguments.folder}/{variant}/peer.safetensors"))
        return timed_training(peer_step(network, config, clip_settings(arguments), device,
                                        half if mode == "peer_amp" else None), device)

    for line in sys.stdin:
        kind, *parts = line.strip().split("/")
        try:
            answer = training(*parts) if kind == "train" else network_alone(parts[0], int(parts[1]), *parts[2:])
        except Exception as error:
            answer = failure(error)
        print(json.dumps(answer), file=out, flush=True)
        tidy(device)


# The device.


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float:
    """Most that was needed at once since reset_peak; the process's resident set so far on the processor."""
    from inference.runner import peak_bytes

    return peak_bytes(device) / 2**20


def tidy(device: torch.device) -> None:
    """Leave nothing of a cell to the next one's memory: compiled networks are cycles, products keep workspaces."""
    from inference.graphs import drop_workspaces

    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # a broken card fails at the next cell, which tells of it
            drop_workspaces()
            torch.cuda.empty_cache()


def failure(error: Exception) -> dict[str, str]:
    """What a cell that failed gives: the first line of the error, whose traceback goes to standard error."""
    traceback.print_exception(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return {"failed": f"{type(error).__name__}: {first}"[:200]}


def card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"processor {platform.machine()}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if value < 1.5 else f"{value:.1f}"
    return str(value)


if __name__ == "__main__":
    run(main)
