"""The losses beside plain formulas, their schedules, and the whole clip step beside the official code's numbers."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from tools.check_parity import GRADIENT, LOSS, Rule
from training.clip_model import hard_labels
from training.losses import frame_loss, hard_cross_entropy, hard_share, reference_weight, soft_jaccard
from training.parity import training_deviations

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 9, 11, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(0, 3, (2, 9, 11), generator=GENERATOR)
LABELS[0, :2] = 255


def one_hot(labels, classes):
    return (labels.flatten() == torch.arange(classes)[:, None]).double()


def test_cross_entropy_of_all_pixels_counts_ignored_ones_as_zero():
    logarithms = LOGITS[0, :3].flatten(1).log_softmax(0)
    expected = F.cross_entropy(LOGITS[:1, :3], LABELS[:1], ignore_index=255, reduction="none").mean()
    torch.testing.assert_close(hard_cross_entropy(logarithms, one_hot(LABELS[0], 3), 1.0), expected)


def test_hard_share_keeps_the_largest_losses():
    logarithms = LOGITS[1, :3].flatten(1).log_softmax(0)
    losses = F.cross_entropy(LOGITS[1:, :3], LABELS[1:], reduction="none").flatten().sort(descending=True).values
    got = hard_cross_entropy(logarithms, one_hot(LABELS[1], 3), 0.3)
    torch.testing.assert_close(got, losses[: int(0.3 * 99)].mean())


def test_soft_jaccard_skips_absent_classes_and_ignored_pixels():
    logarithms = LOGITS[0].flatten(1).log_softmax(0)
    known = LABELS[0].flatten() != 255
    expected = []
    for index in range(4):
        truth = (LABELS[0].flatten() == index)[known].double()
        if truth.any():
            p = logarithms.exp()[index, known]
            common = (p * truth).sum()
            expected.append(1 - common / (common + (p * (1 - truth)).sum() + ((1 - p) * truth).sum() + 1e-6))
    assert len(expected) == 3
    torch.testing.assert_close(soft_jaccard(logarithms, one_hot(LABELS[0], 4)), torch.stack(expected).mean())


def test_channels_past_a_samples_objects_do_not_matter():
    changed = LOGITS.clone()
    changed[0, 3] = 50.0
    before, after = (frame_loss(logits, LABELS, [2, 3], 1.0) for logits in (LOGITS, changed))
    torch.testing.assert_close(before, after)


def test_schedules_at_their_ends():
    assert hard_share(0, 1000, 0.15, 0.5) == 1.0
    assert hard_share(500, 1000, 0.15, 0.5) == pytest.approx(0.15)
    assert hard_share(900, 1000, 0.15, 0.5) == pytest.approx(0.15)
    assert reference_weight(0, 1000, 1.0, 0.1) == 1.0
    assert reference_weight(50, 1000, 1.0, 0.1) == pytest.approx(0.5)
    assert reference_weight(101, 1000, 1.0, 0.1) == 0.0


def test_hard_labels_are_the_argmax():
    assert torch.equal(hard_labels(LOGITS).long(), LOGITS.argmax(1))


@pytest.mark.parametrize("variant", ["aott", "deaott"])
def test_losses_and_gradients_of_the_official_code(variant, shared):
    golden = shared / "golden" / "aot"
    path = golden / "train" / f"{variant}.json"
    record = json.loads(path.read_text())
    record["runs"] = {name: record["runs"][name] for name in ("B", "D")}  # all of them: tools.check_parity
    for name, deviation in training_deviations(path, record, Rule(golden / "manifests")).items():
        assert deviation.loss <= LOSS and deviation.gradient <= GRADIENT, name


def test_nothing_of_the_comparison_is_random(shared, monkeypatch):
    """Swin's own stochastic depth, which its class fixes, is off, too."""
    golden = shared / "golden" / "aot"
    path = golden / "train" / "aott.json"
    record = json.loads(path.read_text())
    for clip in record["clips"]:
        clip.update(height=96, width=96)  # Swin takes multiples of 16
    run = {**record["runs"]["B"], "grad_norm": {}}
    monkeypatch.setattr("models.blocks.keep_mask", None)  # must not be called
    found = training_deviations(path, {**record, "variant": "swinb_aotl", "runs": {"B": run}},
                                Rule(golden / "manifests"))
    assert math.isfinite(found["B"].loss)
