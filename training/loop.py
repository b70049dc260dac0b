"""The training loop, from the first step to the last: read it from top to bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from common.command import Terminated
from common.errors import TrainingDiverged, UserError, UserErrors
from common.progress import Progress
from common.ranks import Ranks
from configs import Config, differences, dump_config, load_config
from datasets.check import check_videos
from datasets.mixture import Mixture, batches, clips_at_once
from models import Network, build_network, load_state, load_weights, save_weights
from models.precision import autocast_notice, ready
from training.checkpoints import load_newest, save_checkpoint
from training.learner import Learner
from training.run_folder import Journal
from training.validation import validate, validation_root, validation_videos

MEASURED = ("loss", "gradient", "seconds", "data_seconds")  # of each step; their means are written


def train(config: Config, run: Path, ranks: Ranks, stopped: Callable[[], bool] = lambda: False,
          say: Callable[[str], None] = lambda line: None, hands_on: bool = False) -> dict[str, Any] | None:
    """Train until ``train.steps``, or ``train.stop_at``, from the newest checkpoint of ``run`` if it has one.

    Args:
        config: the run's configuration; run: its folder (only the first rank writes there).
        stopped: asked after every step, and every frame of a validation; True: leave a checkpoint, raise Terminated.
        say: gets lines for people.
        hands_on: whether RUN/weights.safetensors is written at an early ``train.stop_at``, too: another stage follows.
    Returns:
        the last validation's scores on the first rank, None if there was none. Once all steps are done
        RUN/weights.safetensors holds the averaged weights.
    Raises:
        TrainingDiverged: the loss is not finite; the batch lies in RUN. UserError: data or settings are wrong.
    """
    settings, device = config.train, ranks.device
    last = min(settings.stop_at or settings.steps, settings.steps)
    enough = last if hands_on else settings.steps
    check(config, ranks.count)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses; read at its first use
        torch.use_deterministic_algorithms(True)
    ready(device)
    torch.manual_seed(config.seed)
    mixture = Mixture(config)
    for note in (note for source in mixture.sources for note in source.notes):
        say(f"note: {note}")
    if settings.validate_split != "none" and validation_root(config) is None:
        say(f"note: no validation: {config.data.root or 'data.root'} has no split '{settings.validate_split}' "
            "(train.validate_root names another folder, train.validate_split=none asks for none)")

    checkpoint, problems = load_newest(run / "checkpoints")
    for problem in problems:
        say(problem)
    learner = Learner(first_network(config, checkpoint is None, say), config, run, ranks)
    if notice := autocast_notice(settings.amp, device, "train.amp"):
        say(notice)
    step, recent = 0, []  # steps done; MEASURED of each since the last line of metrics
    if checkpoint is not None:
        learner.load(checkpoint)
        step, recent = checkpoint["step"], checkpoint["recent"]
        say(f"continuing from step {step}")
        for line in changed(config, checkpoint["config"]):
            say(f"note: {run / 'config.yaml'} is not as it was at that step: {line}")
    journal = Journal(run, step) if ranks.first else None

    def save() -> None:
        if ranks.first:
            save_checkpoint(run / "checkpoints", step, {"config": dump_config(config), **learner.state(),
                                                        "recent": recent}, settings.keep_checkpoints)

    def hand_on() -> None:
        if ranks.first:
            save_weights(run / "weights.safetensors", learner.weights(), config)

    def validates() -> bool:
        return step == settings.steps or (settings.validate_every > 0 and step % settings.validate_every == 0)

    def score() -> dict[str, Any] | None:
        found = validate(config, learner.weights(), run / "val" / f"{step:07d}", ranks, stopped)
        if journal and found:
            journal.write(step, {"validation": found})
            say(f"step {step}: validation {found}")
        return found

    scores = None
    if checkpoint is not None and validates() and not any(ranks.gather(
            journal is not None and journal.holds(step, "validation"))):
        scores = score()  # the run was killed meanwhile
    # Closed on every way out: workers that wait for work would keep the process from ending.
    with closing(batches(mixture, step, last, ranks.rank, ranks.count)) as loader, \
            Progress(last, config.name, "step", step) if ranks.first else nullcontext() as progress:
        while step < last:
            began = time.perf_counter()
            try:
                done = learner.step(step, loader, stopped)
            except (UserError, TrainingDiverged):  # which cost no step that was done
                if step:
                    save()
                raise
            step += 1
            recent.append([done.loss, done.gradient, time.perf_counter() - began, done.data_seconds])

            if journal and (step % settings.log_every == 0 or step == settings.steps):
                journal.write(step, metrics(recent, done.lr, settings.batch))
            if journal and (step % settings.image_every == 0 or step == settings.steps):
                journal.strip(step, done.batch.frames[:, 0], done.batch.masks[:, 0], done.predictions[:, 0])
            if step % settings.log_every == 0:
                recent = []
            if done.stop or validates() or step % settings.checkpoint_every == 0 or step == last:
                save()  # before validation, too, which takes its time and is not stopped
            if done.stop:
                raise Terminated(f"terminated after step {step}, which {run / 'checkpoints'} holds; --resume goes on")
            if step == enough:
                hand_on()  # before validation: whatever happens there, the run has its weights
            if validates():
                scores = score() or scores
            if progress:
                progress.advance(note=f"loss {done.loss:.3f}")

    if journal:
        journal.close()
    if step == enough and not (run / "weights.safetensors").is_file():
        hand_on()
    if step < settings.steps:
        say(f"stopped after step {step} of {settings.steps} (train.stop_at)" + ("" if hands_on else
            "; --resume goes on to the end, and writes the weights"))
    ranks.wait()
    return scores


def changed(config: Config, text: str) -> list[str]:
    """What a run's configuration says otherwise than at its checkpoint, where it was ``text``; where the data lie, how
    they are read and where the training stops may differ."""
    before = load_config(tree=yaml.safe_load(text))
    before.data.root, before.data.workers = config.data.root, config.data.workers
    before.train.stop_at, before.train.weights = config.train.stop_at, config.train.weights
    return differences(config, before)


def metrics(recent: list[list[float]], lr: float, batch: int) -> dict[str, float]:
    """Means over the steps since the last line."""
    values = {name: sum(row[place] for row in recent) / len(recent) for place, name in enumerate(MEASURED)}
    return {**values, "lr": lr, "clips_per_second": batch / max(values["seconds"], 1e-9)}


def first_network(config: Config, begins: bool, say: Callable[[str], None]) -> Network:
    """The network of a run; where it ``begins``, with the weights that it is to start from."""
    settings = config.train
    network = build_network(config)
    if begins and settings.weights is not None:
        load_state(network, load_weights(settings.weights)[1], settings.weights)
    elif begins and config.model.encoder_weights is None and not all(
            parameter.requires_grad for parameter in network.encoder.parameters()):
        say("note: the network starts from nothing, and a part of its encoder stays as it is; name ImageNet weights "
            "(model.encoder_weights) or those of an earlier training (train.weights)")
    if network.notice:
        say(network.notice)
    return network


def check(config: Config, ranks: int = 1) -> None:
    """Refuse settings that cannot work for so many ranks. Raises UserError."""
    clips_at_once(config.train, ranks)
    train, extra = config.train, 1 if config.model.align_corners else 0
    if train.previous_frame_reference and train.frames < 3:
        raise UserError("train.frames: two references (train.previous_frame_reference) leave nothing to predict; "
                        "choose 3 or more")
    if train.crop % 16 != extra:
        sizes = train.crop // 16 * 16 + extra
        raise UserError(f"train.crop: {train.crop} is not 16 k{' + 1' if extra else ''}, which this model needs; "
                        f"choose {sizes}")
    root = validation_root(config)
    if root is None and train.validate_every and train.validate_split != "none":
        raise UserError(f"train.validate_every: {config.data.root or 'data.root'} has no split "
                        f"'{train.validate_split}'; name a folder that has it (train.validate_root), or set it to 0")
    if root and (problems := check_videos(validation_videos(config, root))):
        raise UserErrors(problems)
