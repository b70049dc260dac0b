"""A small data set, a small network and quick runs for the tests of training."""

import json
from pathlib import Path

from common.ranks import joined_ranks
from configs import load_config
from datasets.synthetic import make
from training.run_folder import parts, reopened, settle

SETTINGS = [
    "name=tiny", "model.encoder=small", "model.channels=32", "model.heads=1", "model.freeze_encoder=false",
    "train.crop=65", "train.short_edge=64", "train.batch=2", "train.frames=3", "train.steps=4", "train.log_every=1",
    "train.image_every=4", "data.workers=0", "train.merge=0.5", "train.ema=1",
]


def small_data(root: Path, validation: int = 1) -> Path:
    return make(root, seed=3, videos=(3, validation, 0), frames=10, size=(64, 96), difficulty="normal")


def tiny(data: Path, *settings: str):
    return load_config(None, [*SETTINGS, f"data.root={data}", *settings])


def quick_run(run: Path, config=None, resume: bool = False, settings=(), device="cpu", **options):
    """What train.py does, in this process."""
    from training.loop import train

    settle(run, [config] if config else [], resume, list(settings))
    with joined_ranks(device) as ranks:
        for part in parts(run):
            train(reopened(run, part, settings=list(settings)) if resume else config, part, ranks, **options)


def lines(run: Path, *names: str) -> list[tuple]:
    """The named numbers of every line of metrics.jsonl that has them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], *(row[name] for name in names)) for row in rows if all(name in row for name in names)]
