"""What comes before a network of KerasHub: the preset's own tokenizer or converter.

Of an image converter, scale and offset go into the graph, so that raw pixels are right and
whoever loads the file cannot forget them. Sizes stay with the data: images come in at the size
that the user wants, and the layer that makes them the size of the preset is handed over. Strings
and waves cannot be in a graph on all backends, so that their preprocessor is handed over whole.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras import graph
from finetune_keras._errors import WeightsError, sentence
from finetune_keras.backbones import preprocessing

__all__ = ["Intake", "Prompts", "Waves", "intake", "reads_text"]

# Numbers of Pillow's filters, as Hugging Face writes them.
_FILTERS = {0: "nearest", 1: "lanczos3", 2: "bilinear", 3: "bicubic"}


@dataclasses.dataclass(frozen=True)
class Intake:
    """What comes before a network.

    Attributes:
        steps: layers to put into the graph.
        preprocessor: for the data pipeline, or ``None``.
        note: for the record of where the network came from: ``"at 224 x 224"``.
    """

    steps: tuple[Callable[[Any], Any], ...] = ()
    preprocessor: Callable[[Any], Any] | None = None
    note: str = ""


class Prompts:
    """Strings to what a decoder (GPT-2, Gemma) or an encoder of two (T5, BART) reads: their tokens,
    without the shifted copy that a language model is trained on.

    Args:
        preprocessor: a preprocessor of KerasHub that has ``generate_preprocess``.
        sequence_length: of the tokens.
        names: of the network's inputs.
    """

    def __init__(self, preprocessor: Any, sequence_length: int, names: Sequence[str]):
        self.preprocessor = preprocessor
        self.sequence_length = sequence_length
        self.names = tuple(names)
        two = hasattr(preprocessor, "encoder_sequence_length")
        self._key = "encoder_sequence_length" if two else "sequence_length"

    @property
    def tokenizer(self) -> Any:
        """KerasHub's tokenizer."""
        return self.preprocessor.tokenizer

    def __call__(self, strings: Any) -> dict[str, Any]:
        """Strings, shape ``(batch,)``, to int tensors ``(batch, sequence_length)`` by name."""
        found = self.preprocessor.generate_preprocess(strings, **{self._key: self.sequence_length})
        return {name: found[name] for name in self.names}


class Waves:
    """Waves to the features that an audio network reads, by the name of its input.

    Args:
        converter: KerasHub's audio converter.
        name: of the network's input.
    """

    def __init__(self, converter: Any, name: str):
        self.converter = converter
        self.name = name

    def __call__(self, waves: Any) -> dict[str, Any]:
        """Floats of shape ``(batch, samples)`` to features ``(batch, frames, channels)``."""
        return {self.name: self.converter(waves)}


def reads_text(inputs: Sequence[keras.KerasTensor]) -> bool:
    """Whether a network with these inputs takes tokens."""
    return any(t.name.endswith("token_ids") for t in inputs)


def intake(
    where: str,
    shown: str,
    network: keras.Model,
    *,
    sequence_length: int | None = None,
    limit: int | None = None,
    words: int | None = None,
) -> Intake:
    """The preset's own preprocessing for a network, or for a model that is built on it.

    Args:
        where: the preset, as KerasHub takes it.
        shown: the same as the user gave it.
        network: the one that takes what comes out.
        sequence_length: of tokens; by default what the preset says.
        limit: of the network, in tokens.
        words: how many tokens the network has a vector for.

    Raises:
        WeightsError: if ``sequence_length`` is given and there is no tokenizer.
        ValueError: if it is more than the network takes.
        TypeError: if it is given and the network takes no tokens.
    """
    inputs = network.inputs
    if reads_text(inputs):
        return _text(where, shown, inputs, sequence_length, limit, words)
    if sequence_length is not None:
        raise TypeError(f"{shown!r} takes no sequence_length=: its inputs are not tokens")
    if len(inputs) == 1 and len(inputs[0].shape) == 4:
        return _images(where, shown, inputs[0])
    return _audio(where, shown, network)


def _images(where: str, shown: str, image: keras.KerasTensor) -> Intake:
    import keras_hub

    try:
        converter = keras_hub.layers.ImageConverter.from_preset(where)
        if converter is None:
            converter = _of_transformers(where)
    except Exception as e:
        return _nothing(
            f"the image converter of {shown!r} cannot be read ({sentence(e)}): pixels "
            "go into the network as they are; say how by preprocessing="
        )
    if converter is None:
        return _nothing(
            f"nothing is known of how {shown!r} scales pixels: they go into the "
            "network as they are; say how by preprocessing="
        )
    scale = 1.0 if converter.scale is None else converter.scale
    offset = 0.0 if converter.offset is None else converter.offset
    n = max(np.size(scale), np.size(offset))
    steps = preprocessing.affine(np.broadcast_to(scale, n), np.broadcast_to(offset, n))
    last = keras.config.image_data_format() == "channels_last"
    height, width = image.shape[1:3] if last else image.shape[2:]
    trained = converter.image_size
    size = (height, width) if height and width else trained
    resizing = None
    if size:
        settings = converter.resizing.get_config()
        settings |= {"height": size[0], "width": size[1], "name": "preset_resizing"}
        resizing = keras.layers.Resizing.from_config({**settings, "dtype": "float32"})
    note = f"trained at {trained[0]} x {trained[1]}" if trained else ""
    return Intake(tuple(steps), resizing, note)


def _of_transformers(where: str) -> Any:
    """KerasHub reads no image processor of Hugging Face for ViT, DeiT and DINO: the same file."""
    import keras_hub

    name = "preprocessor_config.json"
    if where.startswith("hf://"):
        import huggingface_hub

        path = Path(huggingface_hub.hf_hub_download(where.removeprefix("hf://"), name))
    else:
        path = Path(where) / name
    if not path.is_file():
        return None
    said = json.loads(path.read_text(encoding="utf-8"))
    factor = said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0
    mean, std = np.zeros(3), np.ones(3)
    if said.get("do_normalize", True):
        mean, std = np.array(said["image_mean"]), np.array(said["image_std"])
    cropped = said.get("do_center_crop") and said.get("crop_size")
    size = cropped or said.get("size")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    return keras_hub.layers.ImageConverter(
        image_size=(size, size) if isinstance(size, int) else size,
        scale=(factor / std).tolist(),
        offset=(-mean / std).tolist(),
        interpolation=_FILTERS.get(said.get("resample", 2), "bilinear"),
        antialias=True,  # as Pillow does
    )


def _text(where, shown, inputs, sequence_length, limit, words) -> Intake:
    if sequence_length is not None:
        whole = isinstance(sequence_length, int) and not isinstance(sequence_length, bool)
        if not whole or sequence_length < 1 or (limit and sequence_length > limit):
            most = f" up to {limit}" if limit else ""
            raise ValueError(
                f"sequence_length of {shown!r} is a number of tokens from 1{most}; given "
                f"{sequence_length!r}"
            )
    try:
        made, length = _tokens(where, inputs, sequence_length, limit)
    except Exception as e:
        why = f"the tokenizer of {shown!r} cannot be read ({sentence(e)})"
        if sequence_length is not None:
            raise WeightsError(f"{why}: leave sequence_length= out, and tokenize yourself") from e
        return _nothing(f"{why}: .preprocessor is None, and strings have to be tokenized elsewhere")
    if made is None:
        return _nothing(
            f"KerasHub has no preprocessor of strings alone for {shown!r}: .preprocessor is None"
        )
    known = made.tokenizer.vocabulary_size()
    if words is not None and known > words:
        warnings.warn(
            f"the tokenizer of {shown!r} knows {known} tokens and the network {words}: from number "
            f"{words} on they have no vector; is the vocabulary another network's?",
            stacklevel=5,
        )
    return Intake((), made, f"sequence_length={length}")


def _tokens(where: str, inputs: Sequence[keras.KerasTensor], length, limit) -> tuple[Any, int]:
    import keras_hub

    names = [t.name for t in inputs]
    for kind in ("TextClassifier", "CausalLM", "Seq2SeqLM"):
        base = getattr(keras_hub.models, f"{kind}Preprocessor")
        try:
            made = base.from_preset(where)
        except ValueError as e:
            if "Unable to find a subclass" in str(e):
                continue  # there is none of this kind for the family
            raise
        two = kind == "Seq2SeqLM"
        usual = made.encoder_sequence_length if two else made.sequence_length
        length = length or min(usual, limit or usual)
        if kind != "TextClassifier":
            made = Prompts(made, length, names)
        else:
            made.sequence_length = length
        given = made(["a"])
        return (made, length) if set(names) <= set(given) else (None, 0)
    return None, 0


def _audio(where: str, shown: str, network: keras.Model) -> Intake:
    import keras_hub

    inputs = network.inputs
    try:
        converter = keras_hub.layers.AudioConverter.from_preset(where)
    except Exception as e:
        return _nothing(
            f"{shown!r} has no preprocessor that its inputs are known for "
            f"({sentence(e)}): .preprocessor is None"
        )
    if len(inputs) > 1 or converter is None:
        return _nothing(
            f"the audio converter of {shown!r} does not give all of "
            f"{', '.join(t.name for t in inputs)}: .preprocessor is None"
        )
    named = isinstance(graph.ends(network)[0], dict)
    return Intake((), Waves(converter, inputs[0].name) if named else converter)


def _nothing(why: str) -> Intake:
    """Nothing, and a word on it: pixels that are not scaled raise no error anywhere."""
    warnings.warn(why, stacklevel=6)  # where backbone was called
    return Intake()
