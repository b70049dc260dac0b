"""Runs: exact resumption, stops, micro-batches, divergence, damaged checkpoints, and what a run writes."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from common.command import Terminated
from common.errors import TrainingDiverged, UserError
from common.files import hold, write_text
from common.ranks import Ranks
from configs import dump_config, load_config, model_config_path
from datasets.mixture import Mixture, batches
from models import build_network, load_state, load_weights
from models.encoders import PaddedSwinBlock
from models.noise import SampleNoise
from tests.conftest import REPOSITORY
from tests.training_helper import SETTINGS, lines, quick_run, small_data, tiny
from tools.plot_run import hours, page, read_metrics, stages
from train import chain, look
from training.checkpoints import checkpoints, load_newest, save_checkpoint
from training.clip_model import ClipModel
from training.learner import Learner
from training.optimiser import Average
from training.run_folder import Journal, parts, reopened, settle
from training.validation import _scores, validation_root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of four steps in one go."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    quick_run(run, tiny(data))
    return run


def weights(run):
    return load_weights(run / "weights.safetensors")[1]


def newest(run):
    return load_newest(run / "checkpoints")[0]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


def test_a_run_writes_what_the_design_names(whole):
    config, tensors = load_weights(whole / "weights.safetensors")
    load_state(build_network(config), tensors, "weights")
    assert load_config(whole / "config.yaml") == config
    assert [step for step, _ in lines(whole, "loss")] == [1, 2, 3, 4]
    assert not same(tensors, newest(whole)["model"]), "the average is handed on, not the last weights"
    assert "J&F" in lines(whole, "validation")[-1][1]
    assert list((whole / "tensorboard").iterdir()) and (whole / "val" / "0000004" / "scores" / "scores.json").is_file()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_and_resumed_run_is_the_same_bit_for_bit(whole, data, tmp_path, workers):
    run = tmp_path / "run"
    quick_run(run, tiny(data, "train.stop_at=3", "train.checkpoint_every=2", f"data.workers={workers}"))
    newer = checkpoints(run / "checkpoints")[-1]
    assert newer.name == "step_0000003.pt" and not (run / "weights.safetensors").exists()
    quick_run(run, resume=True)
    assert same(weights(run), weights(whole))
    assert lines(run, "loss", "gradient", "lr") == lines(whole, "loss", "gradient", "lr")
    for part in ("model", "ema", "optimiser", "scaler"):
        assert same(newest(run)[part], newest(whole)[part]), part


def test_half_precision_resumes_bit_for_bit_with_the_state_of_its_scaler(whole, data, tmp_path, monkeypatch):
    monkeypatch.setattr("models.precision.computes_in", lambda *_: True)  # emulated, where the processor has none
    settings = ("train.amp=fp16", "train.deterministic=true", "train.validate_every=0")
    try:
        quick_run(tmp_path / "one", tiny(data, *settings))
        quick_run(tmp_path / "two", tiny(data, *settings, "train.stop_at=2"))
        quick_run(tmp_path / "two", resume=True)
    finally:
        torch.use_deterministic_algorithms(False)
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert one["scaler"]["scale"] > 1 and one["scaler"]["_growth_tracker"] == 4
    assert same(one, two) and lines(tmp_path / "one", "loss") == lines(tmp_path / "two", "loss")
    full = [loss for _, loss in lines(whole, "loss")]
    half = [loss for _, loss in lines(tmp_path / "one", "loss")]
    assert half != full and half == pytest.approx(full, rel=0.02)


def killed_while_it_validates(run, config, monkeypatch) -> None:
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("training.loop.validate", killed)
        with pytest.raises(KeyboardInterrupt):
            quick_run(run, config)


def test_a_run_killed_while_it_validates_has_lost_no_step(data, tmp_path, monkeypatch):
    config = tiny(data, "train.validate_every=3", "train.checkpoint_every=1000")
    killed_while_it_validates(tmp_path / "run", config, monkeypatch)
    assert newest(tmp_path / "run")["step"] == 3
    for _ in range(2):  # what was cut off is made up for, and once
        quick_run(tmp_path / "run", resume=True)
    assert [step for step, _ in lines(tmp_path / "run", "validation")] == [3, 4]


def test_a_stop_request_ends_a_validation_which_resume_makes_up_for(data, tmp_path):
    with pytest.raises(Terminated, match="while it validates"):
        quick_run(tmp_path / "run", tiny(data, "train.validate_every=2"), stopped=lambda: validating(tmp_path / "run"))
    assert newest(tmp_path / "run")["step"] == 2 and not lines(tmp_path / "run", "validation")
    quick_run(tmp_path / "run", resume=True)
    assert [step for step, _ in lines(tmp_path / "run", "validation")] == [2, 4]


def test_a_stop_leaves_no_worker_behind(data, tmp_path):
    """A worker that waits for work keeps the process from ending, whoever still holds the error."""
    config = tiny(data, "train.validate_every=2", "train.steps=40", "data.workers=1")
    with pytest.raises(Terminated, match="while it validates") as held:
        quick_run(tmp_path / "run", config, stopped=lambda: validating(tmp_path / "run"))
    assert held.value is not None and not multiprocessing.active_children()


def validating(run) -> bool:
    return bool(checkpoints(run / "checkpoints"))  # the first is written right before the first validation


def test_a_last_validation_that_was_killed_is_made_up_for(data, tmp_path, monkeypatch):
    killed_while_it_validates(tmp_path / "run", tiny(data), monkeypatch)
    quick_run(tmp_path / "run", resume=True)
    assert [step for step, _ in lines(tmp_path / "run", "validation")] == [4]


def test_a_processor_without_bfloat16_trains_in_float32_and_says_so(whole, data, tmp_path, monkeypatch):
    monkeypatch.setattr("models.precision.computes_in", lambda wanted, device: device.type != "cpu")
    said = []
    quick_run(tmp_path / "run", tiny(data, "train.amp=bf16", "train.validate_every=0"), say=said.append)
    assert lines(tmp_path / "run", "loss") == lines(whole, "loss")
    assert any("train.amp=bf16" in line and "float32" in line for line in said)


def test_a_run_begun_in_float32_for_want_of_fp16_goes_on_in_fp16_elsewhere(data, tmp_path, monkeypatch):
    settings = ("train.amp=fp16", "train.validate_every=0", "train.validate_split=none", "train.stop_at=2")
    monkeypatch.setattr("models.precision.computes_in", lambda wanted, device: device.type != "cpu")
    quick_run(tmp_path / "run", tiny(data, *settings))
    assert not newest(tmp_path / "run")["scaler"]
    monkeypatch.setattr("models.precision.computes_in", lambda *_: True)
    quick_run(tmp_path / "run", resume=True, settings=["train.stop_at=4"])
    assert newest(tmp_path / "run")["scaler"]["scale"] > 1


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_with_a_stale_local_memory_resumes_bit_for_bit(data, tmp_path, stop):
    settings = ("train.stale_local=0.5", "train.frames=4", "train.lr=0.01", "train.validate_split=none",
                "train.feed_predictions_from=0")
    quick_run(tmp_path / "one", tiny(data, *settings))
    quick_run(tmp_path / "two", tiny(data, *settings, f"train.stop_at={stop}"))
    quick_run(tmp_path / "two", resume=True)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_a_run_with_muon_resumes_bit_for_bit_with_its_momentum(data, tmp_path):
    settings = ("train.optimiser=muon", "train.validate_every=0")
    quick_run(tmp_path / "one", tiny(data, *settings))
    quick_run(tmp_path / "two", tiny(data, *settings, "train.stop_at=2"))
    quick_run(tmp_path / "two", resume=True)
    one, two = newest(tmp_path / "one"), newest(tmp_path / "two")
    assert any("momentum" in state for state in one["optimiser"]["state"].values())
    assert same(one, two) and lines(tmp_path / "one", "loss") == lines(tmp_path / "two", "loss")


def test_a_number_that_is_not_finite_leaves_metrics_readable_and_its_point_out_of_the_curves(tmp_path):
    journal = Journal(tmp_path, 0)
    for step, gradient in ((1, 2.0), (2, float("inf")), (3, 4.0)):
        journal.write(step, {"loss": 1.0, "gradient": gradient, "validation": {"J&F": float("nan")}})
    journal.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text and '"gradient": null' in text
    series = read_metrics(tmp_path)
    assert series["gradient"] == [(1, 2.0), (3, 4.0)] and len(series["loss"]) == 3 and "J&F" not in series
    assert page({"run": series}).count("<svg") == 2


def test_the_page_of_curves_counts_time_and_waiting_as_they_were(tmp_path):
    for folder, loss in ((tmp_path / "stages/1_first", 2.0), (tmp_path, 1.0)):
        journal = Journal(folder, 0)
        journal.write(20, {"loss": loss, "seconds": 2.0, "data_seconds": 0.5})
        journal.write(60, {"loss": loss, "seconds": 4.0, "data_seconds": 0.4, "validation": {"J&F": 30.0}})
        journal.write(80, {"validation": {"J&F": 20.0}})
        journal.close()
    assert stages(tmp_path) == [tmp_path / "stages/1_first", tmp_path]
    series = read_metrics(tmp_path)
    assert series["waiting"] == [(20, 0.25), (60, 0.1)]
    assert hours(series) == pytest.approx((20 * 2 + 40 * 4) / 3600)
    assert "<td>30.0, 20.0</td>" in page({"run": series})
    for line in ("123", "[]", '{"step": 3, "seconds": 1}'):
        (tmp_path / "metrics.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match="line 1 is not a line of metrics"):
            read_metrics(tmp_path)


def test_the_weights_of_a_run_are_the_average_over_its_steps(data):
    network = torch.nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    settings = tiny(data, "train.steps=40", "train.ema=0.5").train
    average, expected = Average(network, settings), network.weight.detach().clone()
    for step in range(40):
        with torch.no_grad():
            network.weight += 1
        average.update(step)
        decay = min(1 - 1 / 20, (2 + step) / (11 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach()
    torch.testing.assert_close(average.state()["weight"], expected)
    assert torch.equal(average.state()["bias"], network.bias)


def test_a_damaged_checkpoint_is_passed_over_and_lines_after_the_older_one_are_taken_back(whole, data, tmp_path):
    run, said = tmp_path / "run", []
    quick_run(run, tiny(data, "train.stop_at=3", "train.checkpoint_every=1"))
    newer = checkpoints(run / "checkpoints")[-1]
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    quick_run(run, resume=True, say=said.append)
    assert str(newer) in said[0] and "damaged" in said[0] and "step 2" in said[1]
    assert same(weights(run), weights(whole)) and lines(run, "loss") == lines(whole, "loss")


def test_micro_batches_equal_the_larger_batch(data):
    torch.manual_seed(0)
    config = tiny(data, "train.batch=4", "model.drop_path=0.3")
    network = build_network(config).double()

    gradients = []
    for accumulate in (1, 2):
        config.train.accumulate = accumulate
        network.zero_grad()
        for batch in batches(Mixture(config), 1, 2):
            with SampleNoise(batch.seeds):
                frames = batch.frames.double() / 255
                loss = ClipModel(network.train(), config)(frames, batch.masks, batch.objects, 1, batch.slots)["loss"]
            (loss / accumulate).backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


def test_swin_drops_the_paths_of_a_sample_whatever_batch_it_is_in():
    torch.manual_seed(0)
    block = PaddedSwinBlock(32, (7, 7), 4, shift_size=3, always_partition=True, dynamic_mask=True, drop_path=0.5)
    x = torch.randn(6, 10, 9, 32)
    with SampleNoise(list(range(6))):
        whole = block(x)
    with SampleNoise([4, 5]):
        torch.testing.assert_close(block(x[4:]), whole[4:])
    assert not torch.allclose(whole, block.eval()(x))


def test_a_stale_local_memory_knows_the_reference_only(data):
    """Without a long-term memory of later frames, what a later frame showed then changes nothing that follows."""
    def losses(stale: float, frame_two: int) -> torch.Tensor:
        config = tiny(data, f"train.stale_local={stale}", "train.frames=4", "memory.gap=9999")
        torch.manual_seed(0)
        network = build_network(config).eval()
        batch = next(iter(batches(Mixture(config), 0, 1)))
        masks = batch.masks.clone()
        masks[frame_two] = masks[frame_two].flip(-1)  # true masks are remembered
        return ClipModel(network, config)(batch.frames, masks, batch.objects, 0, batch.slots)["frame_losses"][-1]

    assert torch.equal(losses(1.0, 2), losses(1.0, 1))
    assert not torch.equal(losses(0.0, 2), losses(0.0, 1))


def test_an_infinite_loss_stops_and_keeps_the_batch(data, tmp_path):
    config = tiny(data, "train.lr=1e30", "train.warmup=0", "train.weight_decay=0")
    with pytest.raises(TrainingDiverged, match="its clips are kept"):
        quick_run(tmp_path / "run", config)
    kept = torch.load(next((tmp_path / "run").glob("diverged_step_*")), weights_only=True)
    assert kept["frames"].shape[:2] == (3, 2) and kept["objects"]


def test_a_loss_that_diverges_later_leaves_the_weights_from_before(data, tmp_path, monkeypatch):
    losses = iter([1.0, 1.0, float("nan")])
    forward = ClipModel.forward
    monkeypatch.setattr(ClipModel, "forward", lambda *given: (found := forward(*given)) and {
        **found, "loss": found["loss"] * next(losses)})
    with pytest.raises(TrainingDiverged, match="loss of step 3 is nan"):
        quick_run(tmp_path / "run", tiny(data, "train.checkpoint_every=100"))
    assert newest(tmp_path / "run")["step"] == 2
    assert [file.name for file in (tmp_path / "run").glob("*.pt")] == ["diverged_step_0000003_rank_0_part_0.pt"]


def test_every_micro_batch_at_fault_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(TrainingDiverged):
        quick_run(tmp_path / "run", tiny(data, "train.accumulate=2"))
    assert len(list((tmp_path / "run").glob("diverged_step_0000001_rank_0_part_*.pt"))) == 2


def test_half_precision_without_any_finite_gradient_ends(data, tmp_path, monkeypatch):
    config = tiny(data)
    learner = Learner(build_network(config), config, tmp_path, Ranks(0, 1, torch.device("cpu")))
    batch = SimpleNamespace(frames=torch.zeros(1))
    for scale, ends in ((1.0, False), (1e-5, True)):
        learner.scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda scale=scale: scale)
        with pytest.raises(TrainingDiverged) if ends else nullcontext():
            learner._check(0, 1.0, float("inf"), [1.0], [batch])


def test_an_infinite_gradient_stops_before_it_reaches_the_weights(data, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(TrainingDiverged, match="gradient of step 1"):
        quick_run(tmp_path / "run", tiny(data))
    assert list((tmp_path / "run").glob("diverged_step_*")) and not checkpoints(tmp_path / "run" / "checkpoints")


def test_a_validation_that_fails_costs_no_weights(data, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("a mask is gone")

    monkeypatch.setattr("training.loop.validate", fail)
    with pytest.raises(UserError, match="a mask is gone"):
        quick_run(tmp_path / "run", tiny(data))
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_an_object_without_a_scored_frame_leaves_the_validation_its_number(tmp_path, monkeypatch):
    none = float("nan")
    objects = [{"J-Mean": 0.5, "F-Mean": 0.7}, {"J-Mean": none, "F-Mean": none}]
    monkeypatch.setattr("evaluation.evaluator.evaluate",
                        lambda *_, **__: SimpleNamespace(scores={"objects": objects, "global": {}}, jf=none))
    monkeypatch.setattr("evaluation.outputs.write", lambda *_: None)
    found = SimpleNamespace(root=tmp_path, split="val")
    assert _scores(load_config(), found, tmp_path) == {"J&F": 60, "J": 50, "F": 70}


def test_a_validation_in_which_nothing_can_be_scored_is_no_zero(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.evaluator.evaluate",
                        lambda *_, **__: SimpleNamespace(scores={"objects": [], "global": {}}, jf=float("nan")))
    monkeypatch.setattr("evaluation.outputs.write", lambda *_: None)
    found = SimpleNamespace(root=tmp_path, split="val")
    assert all(value != value for value in _scores(load_config(), found, tmp_path).values())


def test_a_file_that_breaks_in_mid_run_costs_no_step(data, tmp_path, monkeypatch):
    sample = Mixture._sample

    def broken(self, number):
        if number >= 4:  # of the third step
            raise UserError("x.jpg: cut short")
        return sample(self, number)

    monkeypatch.setattr(Mixture, "_sample", broken)
    with pytest.raises(UserError, match="cut short"):
        quick_run(tmp_path / "run", tiny(data))
    assert newest(tmp_path / "run")["step"] == 2
    monkeypatch.setattr(Mixture, "_sample", lambda self, number: broken(self, 4))
    with pytest.raises(UserError, match="cut short"):
        quick_run(tmp_path / "none", tiny(data))
    assert not (tmp_path / "none" / "checkpoints").exists(), "nothing was begun"


def test_a_resumed_run_needs_its_start_weights_no_more(whole, data, tmp_path):
    start = tmp_path / "start.safetensors"
    start.write_bytes((whole / "weights.safetensors").read_bytes())
    quick_run(tmp_path / "run", tiny(data, f"train.weights={start}", "train.validate_split=none", "train.stop_at=2"))
    start.unlink()
    quick_run(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_a_missing_validation_set_is_found_before_the_first_step(data, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        quick_run(tmp_path / "run", tiny(data, f"train.validate_root={tmp_path}/nowhere"))
    assert not checkpoints(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="has no split 'vall'"):
        quick_run(tmp_path / "asked", tiny(data, "train.validate_every=2", "train.validate_split=vall"))
    said: list[str] = []
    quick_run(tmp_path / "unasked", tiny(data, "train.validate_split=vall", "train.stop_at=1"), say=said.append)
    assert any("no validation" in line for line in said) and any("after step 1 of 4" in line for line in said)
    assert validation_root(tiny(data, "train.validate_split=valid")) == data


def test_a_stop_request_writes_a_checkpoint(data, tmp_path):
    asked = iter([False, True])
    with pytest.raises(Terminated, match=r"after step 2.*--resume"):
        quick_run(tmp_path / "run", tiny(data), stopped=lambda: next(asked))
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step_0000002.pt"


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_goes_on_to_the_same_weights(whole, data, tmp_path, kill):
    run = tmp_path / "run"
    command = [sys.executable, "train.py", "--output", str(run), "--device", "cpu"]
    file = tmp_path / "tiny.yaml"
    file.write_text("{}\n")
    settings = [*SETTINGS, f"data.root={data}", "train.checkpoint_every=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*command, "--config", str(file), *settings], cwd=REPOSITORY, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not checkpoints(run / "checkpoints") and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(kill)
    status = process.wait(60)
    assert status in (0, 143 if kill == signal.SIGTERM else -signal.SIGKILL)  # 0: it was faster
    done = subprocess.run([*command, "--config", str(file), "--resume"], cwd=REPOSITORY, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(weights(run), weights(whole))


def test_a_run_is_neither_overwritten_nor_changed(whole, data):
    with pytest.raises(UserError, match="holds a run already"):
        quick_run(whole, tiny(data))
    with pytest.raises(UserError, match=r"train\.lr: cannot change"):
        quick_run(whole, resume=True, settings=["train.lr=1"])
    before = weights(whole)
    quick_run(whole, resume=True, settings=[f"data.root={data}", "train.steps=4"])  # as they are
    assert same(weights(whole), before)
    with pytest.raises(UserError, match="nothing to resume"):
        quick_run(whole / "elsewhere", resume=True)
    with pytest.raises(UserError, match="only read"):
        quick_run(data / "run", tiny(data))
    assert not (data / "run").exists()


def test_two_processes_do_not_train_in_one_folder(whole):
    command = [sys.executable, "train.py", "--config", str(whole / "config.yaml"), "--output", str(whole), "--resume",
               "--device", "cpu"]
    before = sorted((file, file.stat().st_mtime_ns) for file in whole.rglob("*") if file.name != ".lock")
    with hold(whole):
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {whole}: another process writes")
    assert sorted((file, file.stat().st_mtime_ns) for file in whole.rglob("*") if file.name != ".lock") == before
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode == 0  # nobody holds it any more


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(stream, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    hold(tmp_path / "run").close()
    assert "No locks available" in capsys.readouterr().err


def test_resuming_before_the_first_checkpoint_is_said(data, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "train.py", "--config", str(run / "config.yaml"), "--output", str(run), "--resume",
               "--device", "cpu", "train.stop_at=1"]
    write_text(run / "config.yaml", dump_config(tiny(data)))
    (run / "tensorboard").mkdir()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and f"note: {run} has no checkpoint yet" in done.stderr, done.stderr
    assert "no checkpoint yet" not in subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stderr


def test_a_resumed_run_needs_no_recipe_and_sweeps_up(whole, data, tmp_path):
    run = tmp_path / "run"
    quick_run(run, tiny(data, "train.stop_at=2"))
    write_text(run / "checkpoints" / ".step_0000003.1.part.pt", "half a checkpoint")
    done = subprocess.run([sys.executable, "train.py", "--resume", "--output", str(run), "--device", "cpu"],
                          cwd=REPOSITORY, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert done.returncode == 0 and "is not as it was" not in done.stderr, done.stderr
    assert same(weights(run), weights(whole))
    assert not list((run / "checkpoints").glob(".*"))
    refused = subprocess.run([sys.executable, "train.py", "--resume"], cwd=REPOSITORY, capture_output=True, text=True)
    assert refused.returncode == 2 and "--resume and the run's folder" in refused.stderr


def test_a_run_that_moved_with_its_data_goes_on(whole, data, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    quick_run(run, tiny(data, "train.stop_at=2"))
    shutil.copytree(data, moved)
    text = (run / "config.yaml").read_text().replace(str(data), str(moved))
    (run / "config.yaml").write_text(text.replace("stop_at: 2", "stop_at: null"))
    said: list[str] = []
    quick_run(run, resume=True, say=said.append)
    assert same(weights(run), weights(whole)) and not [line for line in said if "is not as it was" in line]


def test_a_configuration_edited_between_two_parts_of_a_run_is_said(data, tmp_path):
    run = tmp_path / "run"
    quick_run(run, tiny(data, "train.stop_at=2"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("steps: 4", "steps: 6"))
    said: list[str] = []
    quick_run(run, resume=True, settings=["train.stop_at=3"], say=said.append)
    assert [line for line in said if line.endswith("as it was at that step: train.steps: 6 (was 4)")]


def test_an_encoder_that_neither_knows_nor_learns_is_said(data, tmp_path):
    for frozen, notes in (("all", 1), ("false", 0)):
        said: list[str] = []
        quick_run(tmp_path / frozen, tiny(data, f"model.freeze_encoder={frozen}", "train.stop_at=1"), say=said.append)
        assert sum("starts from nothing" in line for line in said) == notes


def test_a_start_that_a_mistake_ended_is_no_run(data, tmp_path):
    """Before the first step nothing can be lost: the command, put right, begins anew."""
    stages = (tmp_path / "run" / "stages" / "1_old", tmp_path / "run" / "stages" / "notes")
    for name in ("run", "resumed"):
        with pytest.raises(UserError, match=r"train\.crop: 64"):
            quick_run(tmp_path / name, tiny(data, "train.crop=64"))
    for stage in stages:
        stage.mkdir(parents=True)
    (stages[0] / "config.yaml").write_text(dump_config(tiny(data)))
    quick_run(tmp_path / "run", tiny(data))
    assert not stages[0].exists() and stages[1].exists()
    with pytest.raises(UserError, match=r"train\.crop: 64"):
        quick_run(tmp_path / "resumed", tiny(data), resume=True)  # the folder's own settings hold
    quick_run(tmp_path / "resumed", tiny(data), resume=True, settings=["train.crop=65"])  # as a script that goes on
    assert same(weights(tmp_path / "resumed"), weights(tmp_path / "run"))
    assert (tmp_path / "run" / "weights.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@pytest.mark.parametrize(("setting", "message"), [
    ("train.crop=64", "train.crop: 64 is not 16 k"),
    ("train.accumulate=3", "do not divide"),
    ("train.lr=1e-6", r"train\.lr_min: .*above train\.lr"),
    ("train.scales=[1.3, 0.7]", r"train\.scales: .*smaller one first"),
    ("train.hard_ratio=0", r"train\.hard_ratio"),
    ("data.root=null", "data.root: not set"),
])
def test_settings_that_cannot_work_are_named(data, tmp_path, setting, message):
    with pytest.raises(UserError, match=message):
        quick_run(tmp_path / "run", tiny(data, setting))


def test_what_would_be_ignored_beside_sources_is_named(data, tmp_path):
    with pytest.raises(UserError, match=r"data\.split: trian is not used beside data\.sources"):
        quick_run(tmp_path / "run", tiny(data, 'data.sources=[{root: ""}]', "data.split=trian"))
    with pytest.raises(UserError, match=r"data\.root: not set"):
        quick_run(tmp_path / "run", tiny(data, 'data.sources=[{root: ""}]', "data.root=null", "train.validate_every=2"))


def test_the_numbers_of_a_validation_belong_together(tmp_path, monkeypatch):
    objects = [{"J-Mean": 0.1, "F-Mean": 0.1}]
    monkeypatch.setattr("evaluation.evaluator.evaluate", lambda *_, **__: SimpleNamespace(
        scores={"objects": objects, "global": {"J&F": 0.6, "J-Mean": 0.5, "F-Mean": 0.7}}, jf=0.6))
    monkeypatch.setattr("evaluation.outputs.write", lambda *_: None)
    found = SimpleNamespace(root=tmp_path, split="val")
    assert _scores(load_config(), found, tmp_path) == {"J&F": 60, "J": 50, "F": 70}


def test_checkpoints_are_pruned_and_run_no_code(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"value": torch.tensor(step)}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_0000004.pt", "step_0000005.pt"]
    assert len(list(tmp_path.iterdir())) == 4

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "code_was_run"),)

    torch.save(Evil(), tmp_path / "step_0000006.pt")
    content, problems = load_newest(tmp_path)
    assert content["step"] == 5 and "step_0000006.pt" in problems[0]
    assert not (tmp_path / "code_was_run").exists()
    for path in checkpoints(tmp_path):
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        load_newest(tmp_path)


def test_a_chain_starts_each_stage_from_the_one_before_and_a_stop_means_the_last(data, tmp_path):
    (tmp_path / "first.yaml").write_text("name: first\n")
    (tmp_path / "second.yaml").write_text("name: second\ntrain: {after: first.yaml}\n")
    settings = [text for text in SETTINGS if not text.startswith("name=")]
    settings += [f"data.root={data}", "train.steps=2", "train.validate_split=none", "train.stop_at=1"]
    run = tmp_path / "run"
    command = [sys.executable, "train.py", "--config", str(tmp_path / "second.yaml"), "--output", str(run),
               "--device", "cpu"]
    for options, steps in ((settings, [1]), (["--resume"], [1, 2])):
        done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [step for step, _ in lines(run, "loss")] == steps
    first = run / "stages" / "1_first"
    assert [step for step, _ in lines(first, "loss")] == [1, 2] and (run / "weights.safetensors").is_file()
    assert load_config(run / "config.yaml").train.weights == str(first / "weights.safetensors")


def test_a_chain_that_was_moved_finds_its_stages(tmp_path):
    (tmp_path / "first.yaml").write_text("name: first\n")
    (tmp_path / "second.yaml").write_text("name: second\ntrain: {after: first.yaml, stop_at: 7}\n")
    settle(tmp_path / "run", chain(tmp_path / "second.yaml", [f"data.root={tmp_path}/data"]), False, []).close()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    first, last = parts(moved)
    told = ["train.stop_at=9"]
    assert reopened(moved, last).train.weights == str(moved / "stages" / "1_first" / "weights.safetensors")
    assert [reopened(moved, part, settings=told).train.stop_at for part in (first, last)] == [None, 9]


def test_another_variant_takes_the_place_of_the_base_in_every_stage():
    pre, main = chain(REPOSITORY / "configs" / "recipes" / "pre_ytb_dav.yaml", [], "r50_deaotl")
    as_it_is = chain(REPOSITORY / "configs" / "recipes" / "pre_ytb_dav.yaml", [])
    for config, other in zip((pre, main), as_it_is, strict=True):
        assert config.model == load_config(model_config_path("r50_deaotl")).model
        assert (config.train.lr, config.train.steps, config.data) == (other.train.lr, other.train.steps, other.data)
    assert (pre.train.lr_min, main.train.lr_min) == (2e-5, 1e-5)  # facts, section 8.4
    with pytest.raises(UserError, match="did you mean 'r50_aotl'"):
        chain(REPOSITORY / "configs" / "recipes" / "ytb.yaml", [], "r50_aot")
    with pytest.raises(UserError, match="based on no file of configs/models"):
        chain(REPOSITORY / "configs" / "base.yaml", [], "aots")


def test_a_stop_in_a_file_holds_for_the_run_that_begins(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text("train: {stop_at: 3}\n")
    settle(tmp_path / "run", chain(file, [f"data.root={tmp_path}/data"]), False, [])
    assert reopened(tmp_path / "run", tmp_path / "run", resume=False).train.stop_at == 3
    assert reopened(tmp_path / "run", tmp_path / "run").train.stop_at is None
    assert reopened(tmp_path / "run", tmp_path / "run", settings=["train.stop_at=5"]).train.stop_at == 5


def test_a_stage_that_stops_early_hands_its_weights_on(data, tmp_path):
    (tmp_path / "first.yaml").write_text("name: first\ntrain: {stop_at: 1}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "inherited.yaml").write_text("name: second\ntrain: {after: first.yaml}\n")
    (tmp_path / "sub" / "second.yaml").write_text("base: ../inherited.yaml\n")
    settings = [text for text in SETTINGS if not text.startswith("name=")]
    settings += [f"data.root={data}", "train.steps=2", "train.validate_split=none"]
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "train.py", "--config", str(tmp_path / "sub" / "second.yaml"), *settings,
                           "--device", "cpu", "--output", str(run)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in lines(run / "stages" / "1_first", "loss")] == [1]
    assert [step for step, _ in lines(run, "loss")] == [1, 2]
    assert "step 1 of 2" in done.stderr and chain(run / "config.yaml", [])[0] == load_config(run / "config.yaml")


def test_a_mistake_in_a_later_stage_is_found_before_the_first_begins(data, tmp_path):
    (tmp_path / "first.yaml").write_text("name: first\n")
    (tmp_path / "second.yaml").write_text("train: {after: first.yaml}\n"
                                          "data: {sources: [{root: nowhere}, {root: nor}]}\n")
    settings = [text for text in SETTINGS if not text.startswith("name=")]
    done = subprocess.run([sys.executable, "train.py", "--config", str(tmp_path / "second.yaml"), *settings,
                           f"data.root={data}", "--output", str(tmp_path / "run"), "--device", "cpu"],
                          cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "nowhere: no such folder" in done.stderr and "nor: no such folder" in done.stderr
    with pytest.raises(UserError, match=r"after wide.*do not fit the model"):
        look(tiny(data), tiny(data, "name=wide", "model.blocks=2"), 1)
    look(tiny(data, "model.family=ddmemory"), tiny(data), 1)  # what a family adds begins by itself


def test_stages_of_something_else_are_not_removed(data, tmp_path):
    own = tmp_path / "run" / "stages" / "1_mine" / "config.yaml"
    write_text(own, "mine: true\n")
    settle(tmp_path / "run", [tiny(data)], False, []).close()
    assert own.read_text() == "mine: true\n"


def test_a_file_of_ones_own_is_not_replaced(data, tmp_path):
    (tmp_path / "config.yaml").write_text("# my recipe\nname: mine\n")
    with pytest.raises(UserError, match="is no training run's"):
        quick_run(tmp_path, tiny(data))
    assert (tmp_path / "config.yaml").read_text().startswith("# my recipe")


def test_a_chain_that_leads_back_is_refused(tmp_path):
    (tmp_path / "first.yaml").write_text("train: {after: second.yaml}\n")
    (tmp_path / "second.yaml").write_text("train: {after: first.yaml}\n")
    with pytest.raises(UserError, match=r"train\.after leads from this recipe back to it"):
        chain(tmp_path / "second.yaml", [])
    (tmp_path / "third.yaml").write_text("{}\n")
    assert [one.train.after for one in chain(tmp_path / "first.yaml", ["train.after=third.yaml"])] == [None,
                                                                                                     "third.yaml"]
