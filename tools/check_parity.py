"""Compare this code with outputs of the official AOT/DeAOT code: logits, probabilities, masks, losses, gradients.

    python -m tools.check_parity --golden ../shared/golden/aot

Every case of GOLDEN/cases runs through the normal predictor, twice: in float64 running freely, and in float32 with
the recorded masks fed to the memory. Every run of GOLDEN/train goes through the training step in float64. The table
says the worst deviation of each; exit status 1 if any fails.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from common.command import run
from common.errors import UserError
from common.files import write_json
from configs import Config, load_config, model_config_path
from inference.predictor import Predictor, View
from models import Network, build_network, load_state
from models.preprocess import prepare_frame
from models.weights import rename_official
from training.parity import training_deviations

FREE_LOGITS = FREE_PROBABILITY = 1e-6  # float64: of the logits' RMS, and absolute
RECORDED_RESIZE = "f2bc3dd6232c5e291ff0c0020405f828dd3af6ccfcd8a1620b9fbbde0c32f5aa"  # resized_picture() there
RESIZED = 50.0  # times that, where pictures are resized and this machine's OpenCV rounds otherwise than the recording's
FORCED_LARGEST, FORCED_RMS = 5e-3, 6e-4  # float32, MobileNetV2: of the logits' RMS (facts, section 11)
STEADY = 5.0  # ResNet and Swin amplify rounding this many times less
FORCED_PIXELS = 2e-4  # share of output pixels that may flip in float32
LOSS, GRADIENT = 1e-9, 1e-6  # float64, relative
MODES = ("float64 free", "float32 forced")
# Of a case.json (the golden folder's README).
NEEDED = ("variant", "weight_seed", "video", "options", "network_sizes", "frames_sha256", "labels_sha256", "logit_rms")
OPTIONS = {"flip", "multi_scale", "max_short_edge", "max_long_edge", "long_term_mem_gap", "short_term_mem_skip",
           "lvos_rule"}


@dataclass
class Row:
    """One line of the table.

    ``deviation``: largest, relative to the logits' RMS (training: to the gradient norm). ``note``: why nothing could be
    compared.
    """

    variant: str
    case: str
    mode: str
    deviation: float
    rms: float
    pixels: int
    passed: bool
    note: str = ""


def main() -> None:
    arguments = parse()
    rows = check(Path(arguments.golden), Path(arguments.manifests or arguments.golden), arguments.only)
    if arguments.report:
        write_json(arguments.report, [asdict(row) for row in rows])
        print(f"wrote {arguments.report}")
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} passed")
    if failed:
        sys.exit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.check_parity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", required=True, help="folder with cases/ and/or train/")
    parser.add_argument("--manifests", help="folder manifests/ whose parent holds weights.py and video.py, or that "
                                            "parent (default: GOLDEN)")
    parser.add_argument("--only", default="*", help="run only what matches this pattern by its variant or case, as the "
                                                    "table names them, such as 'deaot*' or 'train*'")
    parser.add_argument("--report", help="write the rows to this JSON file")
    return parser.parse_args()


def check(golden: Path, manifests: Path, only: str = "*") -> list[Row]:
    """Run everything in a golden folder whose case or variant matches ``only``; print each row as it is done."""
    manifests = manifests / "manifests" if (manifests / "manifests").is_dir() else manifests
    folders = sorted(path for path in golden.glob("cases/*") if path.is_dir())
    folders += [golden] if (golden / "case.json").is_file() else []
    trained = sorted(golden.glob("train/*.json"))
    if not folders and not trained:
        raise UserError(f"{golden}: no cases/*/case.json and no train/*.json; name a golden folder with --golden")
    rule = Rule(manifests)
    recorded, unread = {}, []  # cases by their folders; what cannot be read fails alone
    for folder in folders:
        try:
            recorded[folder] = {"name": folder.name, **read_record(folder / "case.json", NEEDED)}
        except UserError as error:
            unread += [_failed("?", folder.name, "record", error)] if _matches(only, folder.name) else []
    chosen = {folder: case for folder, case in recorded.items() if _matches(only, case["variant"], case["name"])}
    runs = []  # of training: file, record with the one run, its case
    for path in trained:
        try:
            record = read_record(path, ("variant", "runs"))
        except UserError as error:
            unread += [_failed("?", path.stem, "record", error)] if _matches(only, path.stem, "train") else []
            continue
        runs += [(path, {**record, "runs": {name: run}}, f"train {name}") for name, run in record["runs"].items()
                 if _matches(only, path.stem, record["variant"], f"train {name}", "train")]
    if not chosen and not runs and not unread:
        raise UserError(f"--only {only}: matches no case and no variant in {golden}")
    leeway = resize_leeway(recorded, rule)
    width = max([24, *(len(case["name"]) for case in chosen.values())])
    print(f"{'variant':14} {'case':{width}} {'mode':16} {'largest/RMS':>12} {'RMS/RMS':>10} {'pixels':>7}")
    rows = unread
    for row in unread:
        _show(row, width)
    for folder, case in chosen.items():
        for forced in (False, True):
            rows.append(_row(case["variant"], case["name"], MODES[forced],
                             partial(run_case, folder, case, rule, forced, leeway=leeway)))
            _show(rows[-1], width)
    for path, record, case in runs:
        rows.append(_row(record["variant"], case, "float64 step", partial(run_training, path, record, case, rule)))
        _show(rows[-1], width)
    return rows


def read_record(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON file of a golden folder. Raises UserError where it is none, or lacks something ``needed``."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if lacking := [key for key in needed if not isinstance(record, dict) or key not in record]:
        raise UserError(f"{path}: has no {', '.join(lacking)}")
    return record


class Rule:
    """The golden folder's own rules for weights and videos, and its manifests."""

    def __init__(self, manifests: Path):
        self.manifests = manifests
        self.weights = _module(manifests.parent / "weights.py")
        self.video = _module(manifests.parent / "video.py")

    def network(self, config: Config, seed: int) -> Network:
        """A network of the variant with the synthetic weights of ``seed``."""
        path = self.manifests / f"{config.model.name}.json"
        if not path.is_file():
            raise UserError(f"{path}: no manifest of this variant; check --manifests")
        arrays = self.weights.make_state_dict(self.weights.load_manifest(str(path)), seed)
        tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
        network = build_network(config)
        load_state(network, rename_official(tensors, config, path), path)
        return network


class RecordingPredictor(Predictor):
    """The predictor, noting the logits of every group of every view; it can be fed recorded masks."""

    frame = 0

    def record(self, forced: dict[str, np.ndarray] | None) -> None:
        self.logits: dict[str, np.ndarray] = {}
        self.forced = forced

    def _segment_group(self, features, state):
        tokens, logits = super()._segment_group(features, state)
        view, group = next((view, group) for view in self._views
                           for group, known in enumerate(view.states) if known is state)
        self._note(view.number, group, logits)
        return tokens, logits

    def _add_reference(self, view, group, features, labels, objects):
        super()._add_reference(view, group, features, labels, objects)
        # The official evaluator decodes once more after the reference pass.
        self._note(view.number, group, self.network.reference_logits(features, view.states[group]), "_ref")

    def _note(self, view: int, group: int, logits, suffix: str = "") -> None:
        self.logits[f"f{self.frame:02d}_a{view}_e{group}{suffix}"] = logits[0].float().cpu().numpy()

    def _to_view(self, labels, view: View):
        if self.forced is None:
            return super()._to_view(labels, view)
        key = f"mem_f{self.frame:02d}_a{view.number}"
        if key not in self.forced:
            raise UserError(f"masks.npz: has no {key}; record the case again")
        return torch.from_numpy(self.forced[key]).unsqueeze(0).to(labels.device)


def resize_leeway(cases: dict[Path, dict], rule: Rule) -> float:
    """By how much more than FREE_LOGITS the cases that resize may deviate: 1, or RESIZED, which a line explains.

    Preprocessing is the one part in float32, and cv2.resize, which the official code calls, too, takes other code on
    other processors. The recorded inputs (inputs.npz) show it: with OpenCV 5.0 on one without AVX-512, values of the
    last columns are off by one rounding, and the logits by up to 1.1e-5 of their RMS. Where no case that resizes has
    its inputs a picture is resized that gave RECORDED_RESIZE where the recorded inputs come out to the bit.
    """
    compared, different = False, 0.0
    for folder, case in cases.items():
        if (folder / "inputs.npz").is_file():
            frames, _ = rule.video.make_video(case["video"])
            for name, theirs in np.load(folder / "inputs.npz").items():  # input_fTT_aA; odd views may be flipped
                frame, view = name.removeprefix("input_f").split("_a")
                theirs = theirs[..., ::-1] if case["options"].get("flip") and int(view) % 2 else theirs
                ours = prepare_frame(frames[int(frame)], tuple(case["network_sizes"][view]), torch.device("cpu"))
                compared |= ours.shape[2:] != frames[int(frame)].shape[:2]
                different = max(different, float(np.abs(ours[0].numpy() - theirs).max()))
    if not (0 < different < 1e-6 if compared else resized_picture() != RECORDED_RESIZE):  # more is no rounding
        return 1.0
    seen = f"normalised inputs differ by {different:.1e} at most" if compared else "a picture tells, no recorded input"
    print(f"note: OpenCV resizes otherwise on this processor than where the cases were recorded ({seen}); in float64, "
          f"cases that resize pass within {RESIZED * FREE_LOGITS:.0e}")
    return RESIZED


def resized_picture() -> str:
    """SHA-256 of a picture of noise, resized up and down."""
    frame = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    digest = hashlib.sha256()
    for size in ((65, 113), (97, 177), (81, 145), (129, 225)):
        digest.update(prepare_frame(frame, size, torch.device("cpu")).numpy().tobytes())
    return digest.hexdigest()


def run_case(folder: Path, case: dict, rule: Rule, forced: bool, device: str = "cpu", leeway: float = 1.0) -> Row:
    """Run one case freely in float64, or in float32 with the recorded masks fed to memory.

    ``leeway``: of :func:`resize_leeway`.
    """
    frames, labels = rule.video.make_video(case["video"])
    if rule.video.digest(frames) != case["frames_sha256"]:
        raise UserError(f"{folder}: video.py makes other frames than the case was recorded with")
    if {str(number): rule.video.digest(label) for number, label in labels.items()} != case["labels_sha256"]:
        raise UserError(f"{folder}: video.py makes other labels than the case was recorded with")
    config = case_config(case)
    dtype = torch.float32 if forced else torch.float64
    network = rule.network(config, case["weight_seed"]).to(dtype)
    predictor = RecordingPredictor.from_config(config, network, device, dtype)
    sizes = {str(number): list(size) for number, (size, _) in enumerate(predictor.view_sizes(frames.shape[1:3]))}
    if sizes != case["network_sizes"]:
        raise UserError(f"the network sees {sizes}, recorded {case['network_sizes']}")
    masks = dict(np.load(folder / "masks.npz"))
    predictor.record(masks if forced else None)
    predictor.keep_probabilities = True
    probabilities = dict(np.load(folder / "prob.npz"))
    if lacking := [key for key in (f"f{number:02d}" for number in range(1, len(frames))) if key not in probabilities]:
        raise UserError(f"{folder / 'prob.npz'}: has no {', '.join(lacking)}")
    worst_probability, flipped = 0.0, 0
    for number, frame in enumerate(frames):
        predictor.frame = number
        if number == 0:
            out = predictor.start(frame, labels[0])
        else:
            out = predictor.add_objects(frame, labels[number]) if number in labels else predictor.step(frame)
            stride = int(probabilities.get("stride", 7))
            ours = predictor.probabilities[0, :, ::stride, ::stride].cpu().numpy()
            theirs = probabilities[f"f{number:02d}"]
            ours = np.pad(ours, ((0, max(0, len(theirs) - len(ours))), (0, 0), (0, 0)))
            worst_probability = float(np.maximum(worst_probability, np.abs(ours - theirs).max()))  # NaN stays
        flipped += int((out != masks["out"][number]).sum())
    largest, rms, note = _deviation(predictor.logits, dict(np.load(folder / "logits.npz")), case["logit_rms"])
    if forced:
        ease = STEADY if config.model.encoder != "mobilenetv2" else 1.0
        passed = largest <= FORCED_LARGEST / ease and rms <= FORCED_RMS / ease \
            and flipped <= FORCED_PIXELS * masks["out"].size
    else:
        resized = any(list(size) != list(frames.shape[1:3]) for size in case["network_sizes"].values())
        times = leeway if resized else 1.0
        passed = largest <= times * FREE_LOGITS and worst_probability <= times * FREE_PROBABILITY and flipped == 0
        if not worst_probability <= times * FREE_PROBABILITY:
            note = note or f"probabilities differ by {worst_probability:.1e}"
    return Row(case["variant"], case["name"], MODES[forced], largest, rms, flipped, passed, note)


def case_config(case: dict) -> Config:
    """The configuration that a case's options describe."""
    options = case["options"]
    if options.keys() != OPTIONS:
        raise UserError(f"case.json: options {', '.join(sorted(options.keys() ^ OPTIONS))}: unknown here, or missing")
    config = load_config(model_config_path(case["variant"]))
    config.memory.policy = "lvos6" if options["lvos_rule"] else "unbounded"
    config.memory.gap = options["long_term_mem_gap"]
    config.memory.short_skip = options["short_term_mem_skip"]
    settings = config.inference
    settings.flip, settings.scales = options["flip"], options["multi_scale"]
    settings.short_edge, settings.long_edge = options["max_short_edge"], options["max_long_edge"]
    return config


def run_training(path: Path, record: dict, case: str, rule: Rule) -> Row:
    """The one run of ``record``, of a training golden, in float64: losses and gradient norms."""
    (deviation,) = training_deviations(path, record, rule).values()
    passed = deviation.loss <= LOSS and deviation.gradient <= GRADIENT
    return Row(record["variant"], case, "float64 step", deviation.gradient, deviation.loss, 0, passed)


def _matches(only: str, *names: str) -> bool:
    return any(fnmatch.fnmatch(name, only) for name in names)


def _row(variant: str, case: str, mode: str, measured: Callable[[], Row]) -> Row:
    """What ``measured`` returns; where it ends in an error, a failed row that says so, since the others count, too."""
    try:
        return measured()
    except UserError as error:
        return _failed(variant, case, mode, error)
    except Exception as error:
        traceback.print_exc()
        return _failed(variant, case, mode, f"{type(error).__name__}: {error}")


def _failed(variant: str, case: str, mode: str, why: object) -> Row:
    return Row(variant, case, mode, float("inf"), float("inf"), 0, False, str(why))


def _deviation(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], scale: float) -> tuple[float, float, str]:
    """Largest and RMS difference of all logits, relative to ``scale``. A decode that one side lacks, or one with a
    number that is not finite, is infinitely far, and a note says which."""
    largest, squares, count = 0.0, 0.0, 0
    if odd := sorted(ours.keys() ^ theirs.keys()):
        return np.inf, np.inf, f"{'no' if odd[0] in theirs else 'no recorded'} logits {odd[0]}"
    for key, expected in theirs.items():
        if ours[key].shape != expected.shape:
            return np.inf, np.inf, f"logits {key} are {ours[key].shape}, recorded {expected.shape}"
        if not (np.isfinite(ours[key]).all() and np.isfinite(expected).all()):
            return np.inf, np.inf, f"logits {key} are not finite"
        difference = np.abs(ours[key].astype(np.float64) - expected)
        largest = max(largest, float(difference.max()))
        squares, count = squares + float((difference**2).sum()), count + difference.size
    return largest / scale, (squares / count) ** 0.5 / scale, ""


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"{path}: not found; --manifests must name a folder whose parent holds weights.py and video.py")
    spec = importlib.util.spec_from_file_location(f"golden_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _show(row: Row, width: int) -> None:
    print(f"{row.variant:14} {row.case:{width}} {row.mode:16} {row.deviation:12.2e} {row.rms:10.2e} {row.pixels:7d}  "
          f"{'pass' if row.passed else 'FAIL'}{row.note and f' ({row.note})'}", flush=True)


if __name__ == "__main__":
    run(main)
