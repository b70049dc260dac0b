"""Names of weights: ours and the official AOT code's, torchvision's and timm's, in tables that read both ways.

``{i}`` stands for a number, ``{w}`` for the rest of a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from configs.schema import ModelConfig

_SHARED = [  # (official, ours)
    ("encoder_projector.{w}", "projector.{w}"),
    ("patch_wise_id_bank.{w}", "identity.conv.{w}"),
    ("decoder.conv_in.gn.{w}", "decoder.conv_in.norm.{w}"),
    ("decoder.conv_16x.gn.{w}", "decoder.conv_16x.norm.{w}"),
    ("decoder.conv_8x.gn.{w}", "decoder.conv_8x.norm.{w}"),
    ("decoder.conv_4x.gn.{w}", "decoder.conv_4x.norm.{w}"),
    ("decoder.{w}", "decoder.{w}"),
    ("LSTT.layers.{i}.norm1.{w}", "blocks.{i}.norm1.{w}"),
    ("LSTT.layers.{i}.norm2.{w}", "blocks.{i}.norm2.{w}"),
    ("LSTT.layers.{i}.short_term_attn.relative_emb_k.{w}", "blocks.{i}.short_attention.relative_key.{w}"),
]
_AOT = [
    ("LSTT.mask_token", "mask_token"),
    ("LSTT.decoder_norms.{i}.{w}", "norms.{i}.{w}"),
    ("LSTT.layers.{i}.norm3.{w}", "blocks.{i}.norm3.{w}"),
    ("LSTT.layers.{i}.linear_Q.{w}", "blocks.{i}.linear_q.{w}"),
    ("LSTT.layers.{i}.linear_V.{w}", "blocks.{i}.linear_v.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_Q.{w}", "blocks.{i}.self_attention.linear_q.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_K.{w}", "blocks.{i}.self_attention.linear_k.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_V.{w}", "blocks.{i}.self_attention.linear_v.{w}"),
    ("LSTT.layers.{i}.self_attn.projection.{w}", "blocks.{i}.self_attention.projection.{w}"),
    ("LSTT.layers.{i}.long_term_attn.projection.{w}", "blocks.{i}.long_projection.{w}"),
    ("LSTT.layers.{i}.short_term_attn.projection.{w}", "blocks.{i}.short_projection.{w}"),
    ("LSTT.layers.{i}.short_term_attn.relative_emb_v", "blocks.{i}.short_attention.relative_value"),
    ("LSTT.layers.{i}.linear1.{w}", "blocks.{i}.feed_forward.linear1.{w}"),
    ("LSTT.layers.{i}.linear2.{w}", "blocks.{i}.feed_forward.linear2.{w}"),
    ("LSTT.layers.{i}.activation.gn.{w}", "blocks.{i}.feed_forward.norm.{w}"),
    ("LSTT.layers.{i}.activation.conv.{w}", "blocks.{i}.feed_forward.conv.{w}"),
]
_DEAOT = [
    ("id_norm.{w}", "identity.norm.{w}"),
    ("LSTT.decoder_norms.0.gn.{w}", "norms.{w}"),
    ("LSTT.layers.{i}.id_norm1.{w}", "blocks.{i}.id_norm1.{w}"),
    ("LSTT.layers.{i}.id_norm2.{w}", "blocks.{i}.id_norm2.{w}"),
    ("LSTT.layers.{i}.linear_QV.{w}", "blocks.{i}.linear_qv.{w}"),
    ("LSTT.layers.{i}.linear_U.{w}", "blocks.{i}.linear_u.{w}"),
    ("LSTT.layers.{i}.linear_ID_V.{w}", "blocks.{i}.linear_id_v.{w}"),
    ("LSTT.layers.{i}.linear_ID_U.{w}", "blocks.{i}.linear_id_u.{w}"),
    ("LSTT.layers.{i}.long_term_attn.dw_conv.conv.{w}", "blocks.{i}.long_propagation.conv.{w}"),
    ("LSTT.layers.{i}.long_term_attn.projection.{w}", "blocks.{i}.long_propagation.projection.{w}"),
    ("LSTT.layers.{i}.short_term_attn.dw_conv.conv.{w}", "blocks.{i}.short_propagation.conv.{w}"),
    ("LSTT.layers.{i}.short_term_attn.projection.{w}", "blocks.{i}.short_propagation.projection.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_QK.{w}", "blocks.{i}.self_qk.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_V1.{w}", "blocks.{i}.self_v1.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_V2.{w}", "blocks.{i}.self_v2.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_U1.{w}", "blocks.{i}.self_u1.{w}"),
    ("LSTT.layers.{i}.self_attn.linear_U2.{w}", "blocks.{i}.self_u2.{w}"),
    ("LSTT.layers.{i}.self_attn.dw_conv.conv.{w}", "blocks.{i}.self_propagation.conv.{w}"),
    ("LSTT.layers.{i}.self_attn.projection.{w}", "blocks.{i}.self_propagation.projection.{w}"),
]
# Keys that carry nothing here: counters, and what follows from the window's size.
IGNORED = re.compile(r".*\.num_batches_tracked|.*\.relative_position_index|.*\.attn_mask")
# Parts of an ImageNet classifier that the encoders here do not have.
UNUSED_IMAGENET = re.compile(r"(classifier|fc|head|layer4|norm|layers\.3|layers\.2\.downsample)\..*")


def from_official(key: str, model: ModelConfig) -> str | None:
    """Our name of an official key; None where the key has no place in this model."""
    return _translate(key, _table(model))


def to_official(key: str, model: ModelConfig) -> str | None:
    """The official name of our key; None where the official model has none (DDMemory's own parts)."""
    return _translate(key, [(ours, official) for official, ours in _table(model)])


def encoder_name(key: str, encoder: str) -> str | None:
    """Our name of an encoder's key in torchvision's, timm's or the official naming; None where it has no place.

    ResNet's and Swin's names are the official ones here; timm's MobileNetV2 has names of its own.
    """
    if encoder == "mobilenetv2" and key.startswith(("features.", "classifier.")):
        return _translate(key, _mobilenetv2())
    return key


def _table(model: ModelConfig) -> list[tuple[str, str]]:
    if model.encoder == "mobilenetv2":
        encoder = [(f"encoder.{official}", f"encoder.{ours}") for official, ours in _mobilenetv2()]
    else:
        encoder = [("encoder.{w}", "encoder.{w}")]
    return encoder + (_DEAOT if model.family == "deaot" else _AOT) + _SHARED


def _mobilenetv2() -> list[tuple[str, str]]:
    """torchvision's names (the official ones) beside timm's."""
    table = [("features.0.0.{w}", "conv_stem.{w}"), ("features.0.1.{w}", "bn1.{w}"),
             ("features.18.0.{w}", "conv_head.{w}"), ("features.18.1.{w}", "bn2.{w}")]
    index = 1
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            if stage == 0:  # no expansion
                parts = (("0.0", "conv_dw"), ("0.1", "bn1"), ("1", "conv_pw"), ("2", "bn2"))
            else:
                parts = (("0.0", "conv_pw"), ("0.1", "bn1"), ("1.0", "conv_dw"), ("1.1", "bn2"), ("2", "conv_pwl"),
                         ("3", "bn3"))
            table += [(f"features.{index}.conv.{theirs}.{{w}}", f"blocks.{stage}.{block}.{ours}.{{w}}")
                      for theirs, ours in parts]
            index += 1
    return table


def _translate(key: str, table: Iterable[tuple[str, str]]) -> str | None:
    for source, target in table:
        pattern = re.escape(source).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{w\}", r"(?P<w>.+)")
        if match := re.fullmatch(pattern, key):
            return target.format(**match.groupdict())
    return None
