"""Names of weights: ours, the official AOT code's, torchvision's and timm's, through one table each."""

from __future__ import annotations

import re

from configs.schema import ModelConfig

# (official pattern, our replacement); the first that matches the whole key wins.
_AOT = [
    (r"encoder_projector\.(.*)", r"projector.\1"),
    (r"patch_wise_id_bank\.(.*)", r"identity.conv.\1"),
    (r"LSTT\.decoder_norms\.(\d+)\.(weight|bias)", r"norms.\1.\2"),
    (r"LSTT\.layers\.(\d+)\.(norm\d\..*)", r"blocks.\1.\2"),
    (r"LSTT\.layers\.(\d+)\.linear_([QV])\.(.*)", lambda m: f"blocks.{m[1]}.linear_{m[2].lower()}.{m[3]}"),
    (r"LSTT\.layers\.(\d+)\.self_attn\.linear_([QKV])\.(.*)",
     lambda m: f"blocks.{m[1]}.self_attention.linear_{m[2].lower()}.{m[3]}"),
    (r"LSTT\.layers\.(\d+)\.self_attn\.projection\.(.*)", r"blocks.\1.self_attention.projection.\2"),
    (r"LSTT\.layers\.(\d+)\.(long|short)_term_attn\.projection\.(.*)", r"blocks.\1.\2_projection.\3"),
    (r"LSTT\.layers\.(\d+)\.short_term_attn\.relative_emb_k\.(.*)", r"blocks.\1.short_attention.relative_key.\2"),
    (r"LSTT\.layers\.(\d+)\.short_term_attn\.relative_emb_v", r"blocks.\1.short_attention.relative_value"),
    (r"LSTT\.layers\.(\d+)\.(linear[12])\.(.*)", r"blocks.\1.feed_forward.\2.\3"),
    (r"LSTT\.layers\.(\d+)\.activation\.gn\.(.*)", r"blocks.\1.feed_forward.norm.\2"),
    (r"LSTT\.layers\.(\d+)\.activation\.conv\.(.*)", r"blocks.\1.feed_forward.conv.\2"),
]
_DEAOT = [
    (r"encoder_projector\.(.*)", r"projector.\1"),
    (r"patch_wise_id_bank\.(.*)", r"identity.conv.\1"),
    (r"id_norm\.(.*)", r"identity.norm.\1"),
    (r"LSTT\.decoder_norms\.0\.gn\.(weight|bias)", r"norms.\1"),
    (r"LSTT\.layers\.(\d+)\.((?:id_)?norm\d\..*)", r"blocks.\1.\2"),
    (r"LSTT\.layers\.(\d+)\.linear_(QV|U|ID_V|ID_U)\.(.*)", lambda m: f"blocks.{m[1]}.linear_{m[2].lower()}.{m[3]}"),
    (r"LSTT\.layers\.(\d+)\.(long|short)_term_attn\.dw_conv\.conv\.(.*)", r"blocks.\1.\2_propagation.conv.\3"),
    (r"LSTT\.layers\.(\d+)\.(long|short)_term_attn\.projection\.(.*)", r"blocks.\1.\2_propagation.projection.\3"),
    (r"LSTT\.layers\.(\d+)\.short_term_attn\.relative_emb_k\.(.*)", r"blocks.\1.short_attention.relative_key.\2"),
    (r"LSTT\.layers\.(\d+)\.self_attn\.linear_(QK|V1|V2|U1|U2)\.(.*)",
     lambda m: f"blocks.{m[1]}.self_{m[2].lower()}.{m[3]}"),
    (r"LSTT\.layers\.(\d+)\.self_attn\.dw_conv\.conv\.(.*)", r"blocks.\1.self_propagation.conv.\2"),
    (r"LSTT\.layers\.(\d+)\.self_attn\.projection\.(.*)", r"blocks.\1.self_propagation.projection.\2"),
]
_DECODER = [
    (r"decoder\.(conv_in|conv_16x|conv_8x|conv_4x)\.gn\.(.*)", r"decoder.\1.norm.\2"),
    (r"decoder\.(.*)", r"decoder.\1"),
]
# Keys that carry nothing: an unused token, counters, an index that follows from the window's size.
IGNORED = re.compile(r"LSTT\.mask_token|.*\.num_batches_tracked|.*\.relative_position_index")
# Parts of an ImageNet classifier that the encoders here do not have.
UNUSED_IMAGENET = re.compile(r"(classifier|fc|head|layer4|norm|layers\.3|layers\.2\.downsample)\..*")


def from_official(key: str, model: ModelConfig) -> str | None:
    """Our name of an official key; None where the key has no place in this model."""
    if key.startswith("encoder."):
        name = encoder_name(key.removeprefix("encoder."), model.encoder)
        return None if name is None else f"encoder.{name}"
    for pattern, replacement in (_DEAOT if model.family == "deaot" else _AOT) + _DECODER:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    return None


def encoder_name(key: str, encoder: str) -> str | None:
    """Our name of an encoder's key in torchvision's, timm's or the official naming; None where it has no place."""
    if encoder == "mobilenetv2":
        return _mobilenetv2(key)
    return key


_BLOCK_PARTS = {"conv.0.0": "conv_pw", "conv.0.1": "bn1", "conv.1.0": "conv_dw", "conv.1.1": "bn2",
                "conv.2": "conv_pwl", "conv.3": "bn3"}
_FIRST_BLOCK_PARTS = {"conv.0.0": "conv_dw", "conv.0.1": "bn1", "conv.1": "conv_pw", "conv.2": "bn2"}
_STAGES = (1, 2, 3, 4, 3, 3, 1)  # blocks of each of MobileNetV2's stages


def _mobilenetv2(key: str) -> str | None:
    """torchvision's ``features.N...`` to timm's names; timm's own pass."""
    match = re.fullmatch(r"features\.(\d+)\.(.+)\.(\w+)", key)
    if match is None:
        return key if re.match(r"(conv_stem|bn1|blocks|conv_head|bn2)\.", key) else None
    index, part, kind = int(match[1]), match[2], match[3]
    if index == 0:
        return f"{'conv_stem' if part == '0' else 'bn1'}.{kind}"
    if index == 18:
        return f"{'conv_head' if part == '0' else 'bn2'}.{kind}"
    parts = _FIRST_BLOCK_PARTS if index == 1 else _BLOCK_PARTS
    if part not in parts:
        return None
    stage, block = 0, index - 1
    while block >= _STAGES[stage]:
        block -= _STAGES[stage]
        stage += 1
    return f"blocks.{stage}.{block}.{parts[part]}.{kind}"
