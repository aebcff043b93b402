"""What every source becomes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras

from finetune_keras import blocks, flags, graph
from finetune_keras.backbones.loaded import Edits, Loaded

__all__ = ["Backbone"]


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A pretrained network, with what has to happen to its input before it.

    Attributes:
        network: the network itself: preprocessed inputs in, features out. Models built on this
            backbone share it, its variables and its flags; `copy` gives another.
        preprocessing: what raw inputs pass through first, in order.
        source: where it came from, in words.
        dropped: names of the layers that were cut off to get at the features.
        pretrained: whether the weights are the source's; if not, all are random.
        edits: what a new stem or other channels did to the weights; `loaded` has it all.

    Examples:
        >>> from finetune_keras import backbone
        >>> base = backbone("mobilenetv2", weights=None, input_shape=(64, 64, 3))
        >>> base.model.output_shape
        (None, 2, 2, 1280)
        >>> sorted(base.taps, key=lambda s: int(s[1:]))
        ['S2', 'S4', 'S8', 'S16', 'S32']
    """

    network: keras.Model
    preprocessing: tuple[Callable[[Any], Any], ...] = ()
    source: str = ""
    dropped: tuple[str, ...] = ()
    pretrained: bool = True
    edits: Edits = dataclasses.field(default_factory=Edits)

    def __call__(self, inputs: Any) -> Any:
        """Raw inputs (symbolic tensors) to features, the network as one nested layer."""
        for step in self.preprocessing:
            inputs = step(inputs)
        return self.network(inputs)

    def inputs(self) -> Any:
        """New symbolic inputs of the shape and dtype that the network takes."""
        return keras.tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
            graph.ends(self.network)[0],
        )

    @functools.cached_property
    def model(self) -> keras.Model:
        """Raw inputs in, features out: preprocessing and network in one ``keras.Model``."""
        inputs = self.inputs()
        return keras.Model(inputs, self(inputs), name=f"{self.network.name}_features")

    @functools.cached_property
    def loaded(self) -> Loaded:
        """Which weights came from the source, were adapted or are random, and what found no
        place, by their paths in ``network``.
        """
        paths = [u.path for u in graph.opened(self.network).units]
        if not self.pretrained:
            return Loaded(random=tuple(paths))
        adapted, random = set(self.edits.adapted), set(self.edits.random)
        return Loaded(
            tuple(p for p in paths if p not in adapted | random),
            tuple(p for p in paths if p in adapted),
            tuple(p for p in paths if p in random),
            self.edits.skipped,
        )

    @property
    def blocks(self) -> tuple[blocks.Block, ...]:
        """The network's blocks in depth order, read off its graph."""
        seen = graph.opened(self.network)
        return blocks.blocks_of(seen, frozenset())

    @functools.cached_property
    def taps(self) -> dict[str, keras.KerasTensor]:
        """The last tensor of each stride, ``{"S4": ..., "S8": ...}``, finest first.

        For ``keras.Model(base.model.inputs, base.taps)``. Empty unless the network takes one
        image and gives maps.
        """
        return _taps(self)

    def copy(self) -> Backbone:
        """The same backbone with variables and flags of its own."""
        own = self.network
        if isinstance(own, keras.Sequential):
            start = own.inputs[0]
            first = keras.Input(batch_shape=start.shape, dtype=start.dtype, name=start.name)
            bare = keras.Sequential([first, *own.layers], name=own.name)
        else:  # around a compiled model Keras would compile the clone
            bare = keras.Model(*graph.ends(own), name=own.name)
        network = keras.models.clone_model(bare)
        network.set_weights(own.get_weights())
        seen = graph.opened(network)
        for _, layer in seen.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # it computes from a copy of its weights
        theirs = graph.opened(own).units
        on = {u.path for u in flags.switches(theirs) if flags.is_on(u, own)}
        state = frozenset(id(u.variable) for u in seen.units if u.path in on)
        flags.put(network, seen.units, state)
        return dataclasses.replace(self, network=network)

    def __repr__(self) -> str:
        shape = getattr(self.network, "output_shape", None)
        cut = f", without {', '.join(self.dropped)}" if self.dropped else ""
        edits = f"; {self.edits}" if self.edits != Edits() else ""
        return f"<Backbone {self.source}{cut}: {self.network.input_shape} -> {shape}{edits}>"


def _taps(backbone: Backbone) -> dict[str, keras.KerasTensor]:
    model = backbone.model
    if not graph.is_functional(backbone.network) or len(model.inputs) != 1:
        return {}
    if len(model.inputs[0].shape) != 4:
        return {}
    image, shapes = _shapes(model)
    if not image:
        return {}
    tensors = graph.replay(model, model.inputs[0])
    taps = {}
    for call in blocks.waists(graph.opened(model)):
        size = shapes[call.outputs[0]]
        if len(size) != 2 or isinstance(call.op, keras.layers.ZeroPadding2D):
            continue  # a padded map is on its way to the next stride
        # Unpadded convolutions give 149 or 147 for 299 / 2: the nearest power of two is meant.
        stride = 2 ** round(math.log2(max(a / b for a, b in zip(image, size, strict=True))))
        taps[f"S{stride}"] = tensors[call.outputs[0]]
    return taps


def _shapes(model: keras.Model) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Height and width of a large image and of each tensor that it becomes; ``()`` for tensors
    that are no maps.
    """
    axes = slice(2, 4) if keras.config.image_data_format() == "channels_first" else slice(1, 3)
    own = model.inputs[0]
    large = list(own.shape)
    large[axes] = [512, 512]  # on small images unpadded convolutions blur the ratios
    try:
        tensors = graph.replay(model, keras.Input(batch_shape=large, dtype=own.dtype))
    except ValueError:
        if None in own.shape[1:]:
            return (), []
        large = list(own.shape)  # a layer in it wants the one size
        tensors = graph.replay(model, own)
    sizes = [tuple(t.shape)[axes] if len(t.shape) == 4 else () for t in tensors]
    return tuple(large[axes]), [s if all(s) else () for s in sizes]
