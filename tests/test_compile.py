"""inference.compile: encoder and decoder through torch.compile give the same masks."""

import shutil

import numpy as np
import pytest
import torch

from benchmarks.scene import moving_boxes
from configs import load_config, model_config_path
from inference import Predictor


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")
@pytest.mark.parametrize("model", ["aott", "deaott"])
def test_compiled_encoder_and_decoder_give_the_same_masks(model):
    frames, labels = moving_boxes((97, 129), 6, 3)
    masks = []
    for compiled in ("false", "true"):
        torch.manual_seed(0)
        predictor = Predictor.from_config(load_config(model_config_path(model), [f"inference.compile={compiled}"]))
        assert hasattr(predictor.network.decoder, "_orig_mod") == (compiled == "true")
        masks.append(np.stack([predictor.start(frames[0], labels[0]), *map(predictor.step, frames[1:])]))
    assert (masks[0] == masks[1]).mean() >= 0.9999
    assert len(np.unique(masks[0])) > 1
