"""Segment videos: a data set's split, or a video of your own. One PNG a frame, masks in the data set's own ids.

    python infer.py --model r50_deaotl --weights R50_DeAOTL.pth --data LVOS --split val --output OUT
    python infer.py --weights runs/mine/weights.safetensors --video film.mp4 --mask first.png --output OUT --overlay

Run the same command again to continue after a stop: finished videos are skipped, a broken one is made anew.
`torchrun --nproc-per-node=N infer.py ...` shares the videos out, longest first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common.allocator import keep_large_blocks
from common.command import run
from common.errors import UserError, UserErrors
from common.files import check_output_folder, file_hash
from common.ranks import PATIENCE, Ranks, joined_ranks
from configs import Config
from datasets.check import check_videos
from datasets.records import open_videos
from inference import Predictor
from inference.results import Outputs, claim, finished, identity, read_record, summarise
from inference.runner import expected_bytes, run_videos
from inference.sources import DatasetSource, OwnSource, Source
from models import FAMILIES
from models.memory import build_policy
from models.precision import autocast_notice


def main() -> None:
    arguments = parse()
    keep_large_blocks()
    with joined_ranks(arguments.device, "gloo", PATIENCE) as ranks:  # which may even share a card
        infer(arguments, ranks)


def infer(arguments: argparse.Namespace, ranks: Ranks) -> None:
    inputs = [path for path in (arguments.data, arguments.video) if path is not None and Path(path).is_dir()]
    check_output_folder(arguments.output, inputs)
    predictor = Predictor(arguments.weights, arguments.model, arguments.config, ranks.device,
                          arguments.settings)
    config = predictor.config
    if arguments.video:
        sources, objects = [OwnSource(arguments.video, arguments.mask)], "late"
    else:
        sources, objects = data_set(arguments, config, ranks)
    outputs = Outputs(Path(arguments.output), arguments.overlay, arguments.save_scores, arguments.inspect)
    own = identity(config, file_hash(arguments.weights), objects)
    if ranks.first:
        claim(outputs, own)
    ranks.wait()
    waiting = [source for source in sources if not finished(source, outputs)]
    ranks.wait()  # all have the same list before anyone changes it
    if ranks.first:
        announce(sources, waiting, config, ranks.device)

    cost = run_videos(predictor, ranks.share(waiting), outputs, config.inference.streams)
    costs = ranks.gather(cost)
    if ranks.first:
        summary = summarise(outputs, own, config, ranks.device, costs)
        alone = summary["model_frames_per_second"]
        print(f"{count_of(waiting)} segmented; all of {outputs.folder}: {summary['frames']} frames, "
              f"{f'{alone} frames/s the model alone, ' if alone else ''}{summary['frames_per_second']} frames/s the "
              f"whole, peak memory {summary['peak_bytes'] / 2**20:.0f} MiB")
        for source in sources:
            if (made := read_record(outputs, source.name)) and made["frames"] < len(source):
                print(f"note: {source.name}: {made['frames']} frames could be decoded of the {len(source)} that it "
                      "announces; see that the film is whole", file=sys.stderr)
        for name in ("masks", "scores", "overlays", "inspect", "run.json"):
            if (outputs.folder / name).exists():
                print(f"wrote {outputs.folder / name}")


def count_of(videos: Sequence[Source]) -> str:
    return f"{len(videos)} video{'s' if len(videos) != 1 else ''}"


def announce(sources: Sequence[Source], waiting: Sequence[Source], config: Config, device: torch.device) -> None:
    """Say what will be done, and what memory that does not stay bounded will take."""
    if notice := FAMILIES[config.model.family].notice:
        print(notice)
    if notice := autocast_notice(config.inference.amp, device, "inference.amp"):
        print(notice)
    if len(waiting) < len(sources):
        print(f"finished before and skipped: {len(sources) - len(waiting)} of {count_of(sources)}")
    for line in (line for source in waiting if isinstance(source, OwnSource) for line in source.notes):
        print(f"note: {line}", file=sys.stderr)
    policy, memory = build_policy(config.memory), config.memory
    keeps = policy.bounded and policy.slots() > 0
    if waiting and keeps and all(0 < len(source) <= memory.gap for source in waiting):
        print(f"note: memory.policy={memory.policy} never gets a frame: no video is longer than "
              f"memory.gap={memory.gap}; set memory.gap=5, for example", file=sys.stderr)
    if waiting and not policy.bounded:
        longest = max(waiting, key=len)
        frames = len(longest) or 1000
        where = f"the end of {longest.name} ({frames} frames)" if len(longest) else "1000 frames"
        mib = expected_bytes(config, longest.size(), frames, device) / 2**20
        if mib >= 1:
            print(f"memory.policy={config.memory.policy} grows: {mib:.0f} MiB expected at {where}, for each ten "
                  "objects")


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
    where.add_argument("--split", help="val, test or train (default val)")
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
                        help="settings that win over the file's, e.g. memory.policy=uniform memory.gap=5")
    arguments = parser.parse_intermixed_args()
    if (arguments.data is None) == (arguments.video is None):
        raise UserError("--data or --video: name one of them")
    if arguments.video and not arguments.mask:
        raise UserError("--mask: your own video needs the mask of a frame; give --mask first.png")
    if arguments.data and arguments.mask:
        raise UserError("--mask: goes with --video; the masks of a data set are in its Annotations")
    for option in ("split", "videos"):
        if arguments.video and getattr(arguments, option) is not None:
            raise UserError(f"--{option}: goes with --data; a video of your own is one")
    for text in arguments.settings:
        key = text.partition("=")[0]
        if key in ("data.root", "data.split"):
            raise UserError(f"{key}: is of training; say --data or --split")
        if arguments.video and key.startswith("data."):
            raise UserError(f"{key}: goes with --data; a video of your own has no data root")
    arguments.split = arguments.split or "val"
    return arguments


def data_set(arguments: argparse.Namespace, config: Config, ranks: Ranks) -> tuple[list[Source], str]:
    """The videos of a split, checked before any work starts, and the rule that says which objects are given."""
    found = open_videos(arguments.data, arguments.split, format=config.data.format, objects=config.data.objects,
                        videos=arguments.videos.split(",") if arguments.videos is not None else None)
    problems = check_videos(found)
    if problems:
        raise UserErrors(problems)
    if not found.videos:
        raise UserError(f"{arguments.data}: split {found.split} holds no videos; check --split and --videos")
    if ranks.first:
        for line in (*problems.notes, *problems.warnings):
            print(f"note: {line}", file=sys.stderr)
    return [DatasetSource(video, found.objects) for video in found.videos], found.objects


if __name__ == "__main__":
    run(main)
