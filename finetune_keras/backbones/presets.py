"""Presets of KerasHub and, through its converters, checkpoints of Hugging Face and timm.

All of them are loaded by ``from_preset``. What is added here is the preset's own preprocessing in
the right place, and in `checkpoints` the words for what can go wrong.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _private, graph, record
from finetune_keras._errors import WeightsError, nearest, sentence
from finetune_keras.backbones import applications, checkpoints, intake, models, whole
from finetune_keras.backbones.base import Backbone
from finetune_keras.backbones.loaded import Edits
from finetune_keras.backbones.rebuild import computes_in, rebuilt
from finetune_keras.backbones.saved_files import holds

__all__ = ["find", "is_location", "load", "names", "preprocessor"]

_MARK = ", KerasHub"  # in the origin of a model, after the preset


def names() -> list[str]:
    """The presets that KerasHub knows by name; nothing is fetched."""
    import keras_hub

    return list(keras_hub.models.Backbone.presets)


def find(name: str) -> str | None:
    """The preset of that name, whatever its hyphens and underscores."""
    wanted = applications.tidy(name)
    return next((n for n in names() if applications.tidy(n) == wanted), None)


def is_location(source: object) -> bool:
    """Whether a source is a handle such as ``"hf://org/name"``, or a folder but no SavedModel."""
    if checkpoints.is_handle(source):
        return True
    if not isinstance(source, str | os.PathLike):
        return False
    folder = Path(source).expanduser()
    return folder.is_dir() and not holds(folder)


def load(
    source: str | os.PathLike,
    *,
    weights: Any = "auto",
    input_shape: tuple[int | None, ...] | None = None,
    cut_at: str | None = None,
    dtype: str | None = None,
    sequence_length: int | None = None,
    **options: Any,
) -> Backbone:
    """A backbone of KerasHub with its preset's own preprocessing.

    Args:
        source: the name of a preset, a handle, or a folder.
        weights: ``"auto"`` for the preset's, ``None`` for random ones.
        input_shape: of one image; by default what the preset says.
        cut_at: as of `finetune_keras.backbone`; by default the sequence, where the network's
            output is a dict that has one.
        dtype: the name of a Keras policy.
        sequence_length: of tokens.
        **options: for the constructor of the network, such as ``dropout=0.2``.

    Raises:
        WeightsError: if the files are of something else, or their weights are of another network
            than their config or not finite.
    """
    import keras_hub

    shown = str(source)
    if weights != "auto" and weights is not None:
        raise WeightsError(
            f"{shown!r} is a preset that has its weights; weights= takes None, for random ones; "
            f"given {weights!r}: for weights of a file, .network.load_weights(path) afterwards"
        )
    where = checkpoints.located(source, weights=weights is not None)
    if dtype is not None:
        options["dtype"] = dtype
    try:
        with _private.tensors_read() as (read, there):
            network = keras_hub.models.Backbone.from_preset(
                where, load_weights=weights is not None, **options
            )
    except Exception as e:  # of many kinds; the preset and the reason matter
        raise checkpoints.reworded(shown, where, e) from e
    _check_options(shown, network, options)
    skipped: tuple[str, ...] = ()
    if weights is not None:
        whole.finite(network, shown)
        skipped = checkpoints.left_over(shown, where, network, read, there)
    if dtype is not None and not computes_in(network, dtype):
        network = rebuilt(network, dtype=dtype)
    limit = getattr(network, "max_sequence_length", None)
    words = getattr(network, "vocabulary_size", None)
    if input_shape is not None:
        network = _of_shape(network, shown, input_shape)
    dropped: tuple[str, ...] = ()
    cut_at = cut_at or _features(network)
    if cut_at is not None:
        layers = {x.name for x in network.layers}
        network, dropped = models.cut(network, cut_at)
        dropped = tuple(n for n in dropped if n in layers)  # not the operations between them
    found = intake.intake(
        where, shown, network, sequence_length=sequence_length, limit=limit, words=words
    )
    random = ", weights=None" if weights is None else ""
    more = "".join(f", {k}={v!r}" for k, v in options.items() if k != "dtype")
    note = f", {found.note}" if found.note else ""
    return Backbone(
        network,
        found.steps,
        f"{shown}{_MARK}{random}{more}{note}",
        dropped,
        pretrained=weights is not None,
        edits=Edits(skipped=skipped),
        preprocessor=found.preprocessor,
    )


def preprocessor(
    model: keras.Model,
    *,
    source: str | os.PathLike | None = None,
    sequence_length: int | None = None,
) -> Any:
    """The preprocessor that belongs to a model built on a preset, found again by its record.

    A file holds the network and not the tokenizer. This is `Backbone.preprocessor` of the preset
    that the record names, also after `load`; it is read from where it came from at first.

    Args:
        model: built by `build` on a preset of KerasHub, or loaded.
        source: of the preset now, where its folder has moved; by default what the record says.
        sequence_length: of tokens; by default as the backbone was made with.

    Returns:
        A callable for ``tf.data`` pipelines, lists and arrays.

    Raises:
        ValueError: if the model was not built on a preset, or that preset has no preprocessor.

    Examples:
        >>> preprocessor(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="own"))
        Traceback (most recent call last):
        ValueError: the model 'own' has no record of a KerasHub preset
    """
    found = record.read(model)
    shown, mark, rest = (found.origin if found else "").partition(_MARK)
    if not mark:
        of = f": its backbone is {found.origin!r}" if found and found.origin else ""
        raise ValueError(f"the model {model.name!r} has no record of a KerasHub preset{of}")
    told = re.search(r"sequence_length=(\d+)", rest)
    if sequence_length is None and told:
        sequence_length = int(told[1])
    shown = shown if source is None else str(source)
    if not is_location(shown) and find(shown) is None:
        raise ValueError(
            f"there is no preset {shown!r}, which the model {model.name!r} was built on: pass "
            "source= its folder, name or handle"
        )
    where = checkpoints.located(shown, weights=False)
    made = intake.intake(where, shown, model, sequence_length=sequence_length)
    if made.preprocessor is None:
        raise ValueError(f"the preset {shown!r} of the model {model.name!r} has no preprocessor")
    return made.preprocessor


def _check_options(shown: str, network: keras.Model, options: dict[str, Any]) -> None:
    """Keras drops arguments of a functional model that it does not know."""
    known = {*inspect.signature(type(network).__init__).parameters, "dtype", "name", "trainable"}
    for option in options:
        if option not in known:
            allowed = sorted(known - {"self", "kwargs", "dtype"})
            raise TypeError(f"{shown!r} takes no {option}=; {nearest(option, allowed)}")


def _features(network: keras.Model) -> str | None:
    """The key of the features where the network gives a dict: the tokens, or the last stage."""
    outputs = graph.ends(network)[1] if graph.is_functional(network) else None
    if not isinstance(outputs, dict):
        return None
    for key in ("sequence_output", "encoder_sequence_output"):
        if key in outputs:
            return key
    stages = [k for k in outputs if re.fullmatch(r"stage\d+", k)]
    if not stages or set(outputs) - {*stages, "stem"}:
        return None  # a matter of choice, and the head's error names the keys
    return max(stages, key=lambda k: int(k.removeprefix("stage")))


def _of_shape(network: keras.Model, shown: str, shape: tuple) -> keras.Model:
    """The same weights for images of another shape."""
    config = network.get_config()
    key = next((k for k in ("image_shape", "input_shape") if k in config), None)
    if key is None:
        more = ": sequence_length= is for tokens" if intake.reads_text(network.inputs) else ""
        raise TypeError(f"{shown!r} takes no images, and no input_shape={more}")
    shape = applications.checked_shape(shown, shape)
    had = tuple(config[key])
    if had == shape:
        return network
    try:
        made = type(network).from_config({**config, key: shape})
        made.set_weights(network.get_weights())
    except Exception as e:
        raise ValueError(
            f"{shown!r} is for images of {had} and cannot take input_shape={shape} "
            f"({sentence(e)}): resize the images, as by .preprocessor"
        ) from e
    return made
