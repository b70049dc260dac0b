"""Train a network: one recipe, or a chain of them, each starting from the weights of the one before.

    python train.py --config configs/recipes/demo.yaml data.root=PATH
    python train.py --resume --output RUN
    python train.py --config configs/recipes/real_cpu.yaml data.root=../shared/data      # two stages
    torchrun --nproc-per-node 8 train.py --config configs/recipes/ytb.yaml --model r50_deaotl data.root=PATH \
        model.encoder_weights=FILE
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

from common.allocator import keep_large_blocks
from common.command import run
from common.errors import UserError, attempted
from common.ranks import joined_ranks
from configs import Config, load_config
from datasets.mixture import Mixture
from models import FAMILIES, load_state
from training.loop import check, train
from training.run_folder import parts, reopened, settle

VALIDATION = datetime.timedelta(hours=2)  # how long the other ranks wait while the first one scores


def main() -> None:
    arguments = parse()
    keep_large_blocks()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))  # the loop ends its step first
    with joined_ranks(arguments.device, patience=VALIDATION) as ranks, ExitStack() as held:
        configs = chain(Path(arguments.config), arguments.settings, arguments.model) if arguments.config else []
        folder = Path(arguments.output or f"runs/{configs[-1].name}")
        if ranks.first:
            if not arguments.resume:  # the first stage looks at its own settings and data when it begins
                attempted(partial(look, config, earlier, ranks.count) for earlier, config in pairwise(configs))
            held.enter_context(settle(folder, configs, arguments.resume, arguments.settings))
            if arguments.resume and configs and configs[-1].name != (kept := load_config(folder / "config.yaml")).name:
                print(f"note: {folder} goes on as '{kept.name}', which it was begun as, whatever --config says",
                      file=sys.stderr)
            if arguments.resume and not any(folder.glob("**/checkpoints/*.pt")):
                print(f"note: {folder} has no checkpoint yet: this begins at the first step", file=sys.stderr)
        ranks.wait()

        def say(line: str) -> None:
            if ranks.first:
                print(line, file=sys.stderr, flush=True)

        for part in parts(folder):
            if (part / "weights.safetensors").is_file() and part != folder:
                continue
            config = reopened(folder, part, arguments.resume, arguments.settings)
            train(config, part, ranks, stopped=lambda: bool(asked), say=say, hands_on=part != folder)
            if ranks.first:
                print(f"wrote {part}")


def look(config: Config, earlier: Config, ranks: int) -> None:
    """Find what is wrong with a later stage before the first one begins. Raises UserError(s)."""
    own, theirs = (FAMILIES[one.model.family](one) for one in (config, earlier))
    load_state(own, theirs.state_dict(), f"{config.name}, after {earlier.name}")
    weights = config.model.encoder_weights
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"model.encoder_weights: {weights}: no such file; fetch it first")
    Mixture(config)
    check(config, ranks)


def chain(file: Path, settings: list[str], model: str | None = None, later: tuple[Path, ...] = ()) -> list[Config]:
    """The configuration in ``file``, after those that ``train.after`` asks for first.

    The variant ``model`` and the settings hold for all of them, but for ``train.after`` and ``train.stop_at``, which
    mean the last alone.
    """
    if file.resolve() in later:
        raise UserError(f"{file}: train.after leads from this recipe back to it; name a stage that comes before")
    config = load_config(file, settings, model=model)
    if config.train.after is None:
        return [config]
    common = [text for text in settings if text.partition("=")[0] not in ("train.after", "train.stop_at")]
    return [*chain(file.parent / config.train.after, common, model, (*later, file.resolve())), config]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="a recipe (configs/recipes) or any configuration file")
    parser.add_argument("--model", help="another variant (configs/models) than the one that the recipe is based on, in "
                                        "all its stages")
    parser.add_argument("--output", help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument("--device", help="cpu or cuda (default: the accelerator if there is one)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings over the file's")
    given = parser.parse_intermixed_args()
    if given.config is None and not (given.resume and given.output):
        parser.error("--config: name a recipe, or --resume and the run's folder (--output)")
    return given


if __name__ == "__main__":
    run(main)
