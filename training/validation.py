"""Validation during training: the averaged weights segment a split as ``infer.py`` would, and are scored."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from common.command import Terminated
from common.ranks import Ranks
from configs import Config
from datasets.records import Video, VideoSet, list_splits, open_videos, split_names
from inference.predictor import Predictor
from inference.results import Outputs
from inference.runner import run_videos
from inference.sources import DatasetSource, Frame
from models import build_network, load_state


def validation_root(config: Config) -> Path | None:
    """The data root to validate on: ``train.validate_root``, else ``data.root`` where it has the split; or None."""
    train, root = config.train, config.data.root
    if train.validate_split == "none":
        return None
    if train.validate_root is not None:
        return Path(train.validate_root)
    names = split_names(train.validate_split, train.validate_split)
    has_it = root is not None and set(names) & {name.lower() for name in list_splits(root)}
    return Path(root) if has_it else None


def validation_videos(config: Config, root: Path) -> VideoSet:
    """What the split holds."""
    return open_videos(root, config.train.validate_split, format=_layout(config), objects=config.data.objects)


def _layout(config: Config) -> str:
    """``data.format`` is said of ``data.root``; another root's layout is searched."""
    return config.data.format if config.train.validate_root is None else "auto"


def validate(config: Config, weights: dict[str, Tensor], folder: Path, ranks: Ranks,
             stopped: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
    """Segment the validation split, each rank a share of its videos, and score it.

    Args:
        weights: a complete state dict; folder: gets masks and scores (an earlier validation there is replaced).
        stopped: asked before every frame; True: leave with Terminated.
    Returns:
        percentages: ``J&F``, ``J``, ``F`` of the protocol (LVOS: the means of seen and unseen objects; where only one
        kind occurs, means over objects; NaN where no frame can be scored), on the first rank; None on the others, and
        where there is no split.
    """
    root = validation_root(config)
    if root is None:
        return None
    if ranks.first and folder.exists():
        shutil.rmtree(folder)
    ranks.wait()
    own = config.model_copy(deep=True)
    own.model.encoder_weights = None  # all weights are given
    network = build_network(own)
    load_state(network, {name: value.detach() for name, value in weights.items()}, folder)
    found = validation_videos(config, root)
    sources = ranks.share([Stoppable(video, found.objects, stopped) for video in found.videos])
    run_videos(Predictor.from_config(own, network, ranks.device), sources, Outputs(folder))
    ranks.wait()
    return _scores(config, found, folder) if ranks.first else None


class Stoppable(DatasetSource):
    """A video whose frames come until somebody asks to stop."""

    def __init__(self, video: Video, objects: str, stopped: Callable[[], bool]):
        super().__init__(video, objects)
        self.stopped = stopped

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            if self.stopped():
                raise Terminated("terminated while it validates; --resume goes on")
            yield frame


def _scores(config: Config, found: VideoSet, folder: Path) -> dict[str, float]:
    from evaluation.evaluator import evaluate
    from evaluation.outputs import write

    protocol = config.train.validate_protocol
    unseen = found.root / "unseen_videos.txt"  # a data set's own list (generated sets have one)
    evaluation = evaluate(found.root, folder, found.split, protocol=protocol, format=_layout(config),
                          unseen=unseen if protocol != "davis2017" and unseen.is_file() else None)
    write(evaluation, folder / "scores")
    official = evaluation.scores["global"]
    if not math.isnan(evaluation.jf):
        return {name: round(100 * official[key], 2) for name, key in (("J&F", "J&F"), ("J", "J-Mean"), ("F", "F-Mean"))}
    objects: list[dict[str, Any]] = evaluation.scores["objects"]
    scored = [one for one in objects if not math.isnan(one["J-Mean"])]  # one seen in no scored frame has no score
    means = {name: sum(one[f"{name}-Mean"] for one in scored) / len(scored) if scored else math.nan
             for name in ("J", "F")}
    means = {"J&F": (means["J"] + means["F"]) / 2, **means}
    return {name: round(100 * value, 2) for name, value in means.items()}
