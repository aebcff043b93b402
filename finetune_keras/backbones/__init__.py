"""Any pretrained network, from any source, as one kind of record."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import keras

from finetune_keras import graph, precision
from finetune_keras._errors import WeightsError, nearest
from finetune_keras.backbones import (
    applications,
    files,
    models,
    named,
    preprocessing,
    presets,
    saved_model,
    torch_weights,
)
from finetune_keras.backbones.adopted import SavedModelLayer
from finetune_keras.backbones.base import Backbone
from finetune_keras.backbones.channels import adapt_channels, pretrained_shape
from finetune_keras.backbones.listing import Listing, list_backbones
from finetune_keras.backbones.loaded import Loaded
from finetune_keras.backbones.presets import preprocessor
from finetune_keras.backbones.rebuild import rebuilt
from finetune_keras.backbones.remat import recompute
from finetune_keras.backbones.stem import small_stem
from finetune_keras.backbones.torch_weights import load_torch

__all__ = [
    "Backbone",
    "Listing",
    "Loaded",
    "backbone",
    "list_backbones",
    "load_torch",
    "preprocessor",
]


def backbone(
    source: str | os.PathLike | keras.Model | Backbone,
    *,
    weights: str | os.PathLike | Mapping[str, Any] | None = "auto",
    input_shape: tuple[int | None, ...] | None = None,
    cut_at: str | None = None,
    preprocessing: Any = "auto",
    dtype: str | keras.DTypePolicy | None = None,
    remat: bool = False,
    stem: str | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> Backbone:
    """A pretrained network that takes raw inputs and gives features.

    Args:
        source: one of

            - a name: any architecture of ``keras.applications`` in lower case, such as
              ``"resnet50"`` or ``"efficientnetb0"``, or ``"letters_resnet"``, a small network
              that ships with this package;
            - a preset of KerasHub: its name, such as ``"bert_tiny_en_uncased"``, a handle
              (``"hf://..."``, ``"kaggle://..."``, ``"modelscope://..."``) or a folder; Hugging
              Face's and timm's checkpoints too, of the families that KerasHub converts;
            - the path of a ``.keras`` or whole-model ``.h5`` file;
            - ``"https://tfhub.dev/..."``, ``"https://www.kaggle.com/models/..."``, or the folder
              of a SavedModel: the network is one layer around it that learns, on TensorFlow;
            - a ``keras.Model`` of your own: functional, sequential, nested. Its layers and
              variables are shared, not copied. Its last classifier is dropped.
        weights: for a name: ``"imagenet"`` (``"letters"`` for ``"letters_resnet"``), ``None`` for
            random weights, or the path of a weights file. ``"auto"`` is the pretrained ones. For
            a preset: its own, or ``None``.
            A file of PyTorch (``.pth``, ``.pt``, ``.th``, ``.bin``, ``.safetensors``) or a state
            dict of torchvision or timm gives the network as PyTorch computes it, with the
            preprocessing of PyTorch; besides Keras' names there are then ``"resnet18"``,
            ``"resnet34"``, ``"vgg11"``, ``"vgg13"``, ``"vit_b_16"`` and its like, and timm's
            ``"tf_efficientnet_b0"`` and ``"vit_base_patch16_224"``.
        input_shape: for a name: shape of one image, such as ``(224, 224, 3)``; by default any
            size, or the preset's. For a SavedModel: of one example, for what it leaves open.
        cut_at: name of the layer whose output are the features, in place of the last before the
            classifier; or, of a network whose output is a dict, a key of it, such as
            ``"sequence_output"`` of a BERT (the default for presets). Inputs that the features do
            not need are dropped (the decoder's, of an encoder-decoder).
        preprocessing: ``"auto"`` puts the architecture's own preprocessing into the graph, so
            that the input is raw RGB from 0 to 255 (for files and models of your own nothing is
            known, and nothing is added). ``None`` adds nothing, for pipelines that call the
            family's ``preprocess_input`` themselves. Otherwise the name of an architecture whose
            preprocessing to use, a Keras layer, or a list of these: ``[keras.layers.Resizing(224,
            224), "auto"]`` enlarges small images in the graph and then does what the weights
            need (leave ``input_shape`` out: it would be the size before resizing too). Call such
            a model as ``model(x, training=False)``: Keras' image layers put all that follows them
            into training mode where nothing is said (``fit`` and ``predict`` say it).
        dtype: what the network computes in: a Keras policy such as ``"mixed_bfloat16"``, or
            ``"auto"`` for that on a GPU or TPU that has it; ``None`` leaves it as it is. The
            layers and variables are then new ones, of a model of your own too. Preprocessing
            and a head's last layer stay in float32, and Keras' global policy is not touched.
        remat: whether the blocks of a transformer compute their activations again for the
            backward pass rather than keep them (gradient checkpointing, Chen et al. 2016,
            arXiv:1604.06174): less memory, about a third more time. Not kept in files.
        stem: ``"small"`` is for small images such as 32 x 32: the strided convolution at the
            input becomes 3 x 3 with stride 1, and a max-pooling after it goes. Its kernel is
            kept if it was 3 x 3, else random, and must not be frozen then (``.loaded.random``
            has its path). The other layers are shared with a network of your own.
        in_channels: number of channels of the images, where that is not what the weights are
            for: kernels that read the image are summed over RGB for one channel, repeated and
            scaled for more. ``input_shape``, if given too, has the same number.
        **options: for a name: further arguments of the function in ``keras.applications``, such
            as ``alpha=0.35``; for a preset of text ``sequence_length=128``, in tokens, and
            further arguments of its class in KerasHub, such as ``dropout=0.2``. For a SavedModel
            that gives a dict: ``output_key=``, which of its outputs are the features.

    Returns:
        A `Backbone`.

    Raises:
        ValueError: for an unknown name, layer or shape.
        WeightsError: if weights are missing, cannot be fetched, or belong to another architecture
            or number of channels.

    Examples:
        >>> base = backbone("resnet50", weights=None, input_shape=(64, 64, 3))
        >>> base.model.output_shape, len(base.blocks)
        ((None, 2, 2, 2048), 17)
        >>> small = backbone("letters_resnet", input_shape=(16, 16, 1), in_channels=1)
        >>> print(small.loaded)
        44 loaded, 1 adapted ('stem_conv/kernel')
    """
    policy = None if dtype is None else precision.checked(dtype)
    named.checked(source)
    preset = _preset(source, weights)
    if preset is not None:
        shape = pretrained_shape(preset, weights, input_shape, in_channels)
        made = presets.load(
            preset, weights=weights, input_shape=shape, cut_at=cut_at, dtype=policy, **options
        )
        cut_at = None
    elif isinstance(source, Backbone):
        made = source
        _refuse("a Backbone", weights=weights, input_shape=input_shape, options=options)
    elif isinstance(source, keras.Model):
        if not graph.is_functional(source):
            raise ValueError(
                f"the model {source.name!r} cannot be a backbone: it is subclassed or not built, "
                "so it has no symbolic input. Wrap it: keras.Model(inputs, model(inputs)) with "
                "inputs = keras.Input(...)"
            )
        made = Backbone(source, (), f"keras.Model {source.name!r}")
        _refuse("a model of your own", weights=weights, input_shape=input_shape, options=options)
    elif saved_model.looks_like_saved_model(source):
        _refuse("a SavedModel", weights=weights, input_shape=None, options=_without_key(options))
        made = saved_model.load(source, input_shape=input_shape, **options)
    elif isinstance(source, str | os.PathLike) and torch_weights.is_torch(source):
        raise WeightsError(named.without_network(source))
    elif files.looks_like_file(source):
        path = files.existing(source)
        _refuse("a file", weights=weights, input_shape=input_shape, options=options)
        made = Backbone(models.any_batch(files.load_model(path)), (), path.name)
    elif isinstance(source, str):
        shape = pretrained_shape(source, weights, input_shape, in_channels)
        made = named.load(source, weights, shape, options)
    else:
        raise TypeError(
            "backbone takes a name, a path, a keras.Model or a Backbone; given "
            f"{type(source).__name__}"
        )
    if preset is None and (policy is not None or remat):  # layers of a preset are new ones
        _refuse_foreign(made.network, "remat=" if policy is None else "dtype=")
        made = dataclasses.replace(made, network=rebuilt(made.network, dtype=policy))
    made = _shortened(
        made, cut_at, foreign=not isinstance(source, str) or files.looks_like_file(source)
    )
    made = _preprocessed(made, preprocessing)
    made = small_stem(adapt_channels(made, in_channels), stem)
    if remat:
        recompute(made.network)
    return made


def _preset(source: object, weights: object) -> str | os.PathLike | None:
    """The source as a preset of KerasHub, if it is one."""
    # No KerasHub where it is not needed: its import takes seconds.
    if named.is_known(source) or torch_weights.is_torch(weights):
        return None
    if presets.is_location(source):
        return source
    if isinstance(source, str) and not files.looks_like_file(source):
        return presets.find(source)
    return None


def _refuse(what: str, *, weights, input_shape, options) -> None:
    given = {**options}
    if weights != "auto":
        given["weights"] = weights
    if input_shape is not None:
        given["input_shape"] = input_shape
    if given:
        raise TypeError(
            f"{what} has its weights and shape already; {', '.join(f'{k}=' for k in given)} "
            "goes with the name of an architecture"
        )


def _without_key(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != "output_key"}


def _refuse_foreign(network: keras.Model, option: str) -> None:
    for _, layer in graph.opened(network).layers:
        if isinstance(layer, SavedModelLayer):
            raise ValueError(
                f"{option} is not for the SavedModel {layer.name!r} of {network.name!r}, which "
                "computes as it was saved: leave it out"
            )


def _shortened(made: Backbone, cut_at: str | None, *, foreign: bool) -> Backbone:
    if cut_at is not None:
        network, dropped = models.cut(made.network, cut_at)
    elif foreign and not made.dropped:
        network, dropped = models.without_classifier(made.network)
    else:
        return made
    if not dropped:
        return dataclasses.replace(made, network=network)
    return dataclasses.replace(made, network=network, dropped=(*made.dropped, *dropped))


def _preprocessed(made: Backbone, wanted: Any) -> Backbone:
    if isinstance(wanted, str) and wanted == "auto":
        return made
    steps: list = []
    if wanted is not None:
        listed = isinstance(wanted, list | tuple)
        for part in wanted if listed else [wanted]:
            steps += _steps(made, part)
        _one_input(made.network, wanted)
    return dataclasses.replace(made, preprocessing=tuple(steps))


def _steps(made: Backbone, wanted: Any) -> tuple:
    if not isinstance(wanted, str):
        return (preprocessing.checked(wanted),)
    name = applications.tidy(wanted)
    if name == "auto":
        return made.preprocessing
    known = applications.names()
    if name not in known:
        raise ValueError(f"unknown preprocessing={wanted!r}; {nearest(name, [*known, 'auto'])}")
    _one_input(made.network, wanted)
    axis = -1 if keras.config.image_data_format() == "channels_last" else 1
    return applications.preprocess(name, made.network.inputs[0].shape[axis])


def _one_input(network: keras.Model, wanted: Any) -> None:
    if len(network.inputs) != 1:
        raise ValueError(
            f"preprocessing={wanted!r} is for a network with one input; {network.name!r} has "
            f"{len(network.inputs)}: preprocess in the data pipeline"
        )
