"""Vision transformers (Dosovitskiy et al. 2020, arXiv:2010.11929) of torchvision and timm, on
KerasHub's graph.

Features are the tokens after the last normalisation, the class token first.
"""

from __future__ import annotations

import math
import re
from typing import Any

import keras
import numpy as np

from finetune_keras._errors import WeightsError
from finetune_keras.backbones.torch_weights.family import (
    IMAGENET,
    Family,
    Plan,
    Tensors,
    count,
    no_options,
    numbered,
)

__all__ = ["FAMILY"]

_SIZES = {  # width, layers, heads
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}
_LONG = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h"}
_NAME = re.compile(rf"(vit|deit)({'|'.join([*_LONG, *_SIZES])})(?:patch)?(14|16|32)(?:\d\d\d)?")

_TORCHVISION = {
    "patch": "conv_proj",
    "class": "class_token",
    "position": "encoder.pos_embedding",
    "last": "encoder.ln",
    "block": "encoder.layers.encoder_layer_{}.",
    "parts": ("ln_1", "self_attention.in_proj_", "self_attention.out_proj", "ln_2"),
    "mlp": ("mlp.0", "mlp.3"),
}
_PARTS = {
    "torchvision": _TORCHVISION,
    "old torchvision": {**_TORCHVISION, "mlp": ("mlp.linear_1", "mlp.linear_2")},
    "timm": {
        "patch": "patch_embed.proj",
        "class": "cls_token",
        "position": "pos_embed",
        "last": "norm",
        "block": "blocks.{}.",
        "parts": ("norm1", "attn.qkv.", "attn.proj", "norm2"),
        "mlp": ("mlp.fc1", "mlp.fc2"),
    },
}


def _names(library: str) -> dict:
    parts = _PARTS[library]
    first, qkv, out, second = parts["parts"]
    widen, narrow = parts["mlp"]

    def row(part: str):
        # KerasHub counts blocks from 1.
        return numbered(lambda b: parts["block"].format(b - 1) + part)

    def third(i: int):
        return lambda array: np.split(array, 3)[i]  # query, key and value in one

    block = r"vit_encoder[^/]*/[^/]*_(\d+)/"
    attention = {}
    for i, name in enumerate(("query", "key", "value")):
        attention[f"{block}mha/{name}/kernel"] = (row(f"{qkv}weight"), third(i))
        attention[f"{block}mha/{name}/bias"] = (row(f"{qkv}bias"), third(i))
    return {
        r".*/class_token": parts["class"],
        r".*/patch_embedding": parts["patch"],
        r".*/position_embedding/embeddings": parts["position"],
        f"{block}ln_1": row(first),
        **attention,
        f"{block}mha/attention_output": row(out),
        f"{block}ln_2": row(second),
        f"{block}mlp/dense_1": row(widen),
        f"{block}mlp/dense_2": row(narrow),
        r"vit_encoder[^/]*/ln": parts["last"],
    }


def make(
    name: str, library: str, tensors: Tensors, shape: tuple | None, options: dict[str, Any]
) -> Plan:
    """The network of a name, and the names of its weights."""
    import keras_hub

    no_options(name, options)
    kind, size, patch = _NAME.fullmatch(name).groups()
    width, layers, heads = _SIZES[_LONG.get(size, size)]
    patch = int(patch)
    positions = tensors.get(_PARTS[library]["position"])
    side = patch * math.isqrt(positions.shape[1]) if positions is not None else 224
    if shape is not None and tuple(shape) != (side, side, 3):
        raise WeightsError(
            f"the position embeddings of {name!r} in this file are for images of {side} x {side} "
            f"in RGB; given input_shape={shape}: resize in the graph, with "
            f"preprocessing=[keras.layers.Resizing({side}, {side}), 'auto']"
        )
    network = keras_hub.models.ViTBackbone(
        image_shape=(side, side, 3),
        patch_size=patch,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        layer_norm_epsilon=1e-6,
        data_format=keras.config.image_data_format(),
        name=name,
    )
    halves = ((0.5,) * 3, (0.5,) * 3)
    pixels = halves if library == "timm" and kind == "vit" else IMAGENET
    return Plan(network, _names(library), pixels)


def looks(tensors: Tensors) -> str | None:
    """The vision transformer that tensors are of."""
    kernels = ("patch_embed.proj.weight", "conv_proj.weight")
    kernel = next((tensors[k] for k in kernels if k in tensors), None)
    if kernel is None or kernel.ndim != 4:
        return None
    layers = count(tensors, r"blocks\.\d+\.|encoder\.layers\.encoder_layer_\d+\.")
    for size, (width, depth, _) in _SIZES.items():
        if (len(kernel), layers) == (width, depth):
            return f"vit{size}{kernel.shape[-1]}"
    return None


def _usual(name: str) -> str:
    _, size, patch = _NAME.fullmatch(name).groups()
    return f"vit{_LONG.get(size, size)}{patch}"


FAMILY = Family(
    names=tuple(
        f"{kind}{size}{patch}"
        for kind, sizes in (
            ("vit", _SIZES),
            ("vit", [f"{s}patch" for s in _LONG]),
            ("deit", [f"{s}patch" for s in ("tiny", "small", "base")]),
        )
        for size in sizes
        for patch in ("16", "32", "14")
    ),
    namings={
        "torchvision": (
            "encoder.layers.encoder_layer_0.mlp.0.weight",
            r"encoder\.|conv_proj\.|class_token",
        ),
        "old torchvision": (
            "encoder.layers.encoder_layer_0.mlp.linear_1.weight",
            r"encoder\.|conv_proj\.|class_token",
        ),
        "timm": (
            "patch_embed.proj.weight",
            r"blocks\.|patch_embed\.|pos_embed|cls_token|norm\.|norm_pre\.|reg_token|dist_token",
        ),
    },
    make=make,
    looks=looks,
    usual=_usual,
)
