"""Segment videos: a data set's split, or a video of your own. One PNG a frame, masks in the data set's own ids.

    python infer.py --model r50_deaotl --weights R50_DeAOTL.pth --data LVOS --split val --output OUT
    python infer.py --weights runs/mine/weights.safetensors --video film.mp4 --mask first.png --output OUT --overlay

Run the same command again to continue after a stop: finished videos are skipped, a broken one is made anew.
`torchrun --nproc-per-node=N infer.py ...` shares the videos out, longest first.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from common.command import run
from common.errors import UserError, UserErrors
from common.files import file_hash
from datasets.check import check_videos
from datasets.own_video import OwnVideo
from datasets.records import open_videos
from inference import Predictor
from inference.runner import (
    Outputs,
    claim,
    expected_bytes,
    identity,
    rank_and_world,
    run_videos,
    share,
    summarise,
)
from inference.sources import DatasetSource, Source
from models.memory import POLICIES


def main() -> None:
    arguments = parse()
    rank, world = rank_and_world()
    device = choose_device(arguments.device)
    predictor = Predictor(arguments.weights, arguments.model, arguments.config, device, arguments.settings)
    config = predictor.config
    sources = [OwnVideo(arguments.video, arguments.mask)] if arguments.video else data_set(arguments, config)
    if not sources:
        raise UserError("nothing to segment: no video is left; check --videos and --split")
    outputs = Outputs(Path(arguments.output), arguments.overlay, arguments.save_scores, arguments.inspect)
    own = identity(config, file_hash(arguments.weights))
    claim(outputs, own)
    if not POLICIES[config.memory.policy].bounded:
        longest = max(sources, key=len)
        size = next(iter(longest)).image.shape[:2]
        mib = expected_bytes(config, size, len(longest)) / 2**20
        print(f"memory.policy={config.memory.policy} grows: {mib:.0f} MiB expected at the end of {longest.name} "
              f"({len(longest)} frames, up to ten objects)")

    counts = run_videos(predictor, share(sources, rank, world), outputs, config.inference.streams)
    summary = summarise(outputs, own, device)
    if counts["skipped"]:
        print(f"{counts['skipped']} videos were finished before and skipped")
    print(f"{counts['done']} videos segmented; all of {outputs.folder}: {summary['frames']} frames, "
          f"{summary['model_frames_per_second']} frames/s the model alone, {summary['frames_per_second']} the whole, "
          f"peak memory {summary['peak_bytes'] / 2**20:.0f} MiB")
    for name in ("masks", "scores", "overlays", "inspect", "run.json"):
        if (outputs.folder / name).exists():
            print(f"wrote {outputs.folder / name}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("the network")
    named = what.add_mutually_exclusive_group()
    named.add_argument("--model", help="variant of the weights, where their file does not say (configs/models)")
    named.add_argument("--config", help="configuration file, instead of --model")
    what.add_argument("--weights", required=True,
                      help="our .safetensors, a training checkpoint, or an official .pth or safetensors")
    what.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    where = parser.add_argument_group("the videos")
    where.add_argument("--data", help="root of a data set (LVOS, DAVIS, YouTube-VOS, MOSE, or plain folders)")
    where.add_argument("--split", default="val", help="val, test or train (default val)")
    where.add_argument("--videos", help="only these, separated by commas")
    where.add_argument("--video", help="your own video: a film, or a folder of frames")
    where.add_argument("--mask", action="append", default=[], metavar="[FRAME:]PNG",
                       help="mask of your own video's first frame, or of frame FRAME; may be repeated")
    out = parser.add_argument_group("what is written")
    out.add_argument("--output", required=True, help="folder OUT: masks/, run.json and what follows")
    out.add_argument("--overlay", action="store_true", help="also pictures and an mp4 with the objects coloured")
    out.add_argument("--save-scores", action="store_true", help="also the probabilities, as uint8")
    out.add_argument("--inspect", action="store_true", help="also what the memory did (tools.memory_report)")
    parser.add_argument("settings", nargs="*", metavar="key=value",
                        help="settings that win over the file's, e.g. memory.policy=rmem inference.flip=true")
    arguments = parser.parse_args()
    if (arguments.data is None) == (arguments.video is None):
        raise UserError("--data or --video: name one of them")
    if arguments.video and not arguments.mask:
        raise UserError("--mask: your own video needs the mask of a frame; give --mask first.png")
    return arguments


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or the best there is; under torchrun each process takes its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device was found; use --device cpu, or see that a driver is installed")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def data_set(arguments: argparse.Namespace, config) -> list[Source]:
    """The videos of a split, checked before any work starts."""
    found = open_videos(arguments.data, arguments.split, format=config.data.format, objects=config.data.objects,
                        videos=arguments.videos.split(",") if arguments.videos else None)
    problems = check_videos(found)
    if problems:
        raise UserErrors(problems)
    for line in (*problems.notes, *problems.warnings):
        print(f"note: {line}", file=sys.stderr)
    return [DatasetSource(video, found.objects) for video in found.videos]


if __name__ == "__main__":
    run(main)
