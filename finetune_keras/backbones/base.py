"""What every source becomes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras

from finetune_keras import blocks, graph, parts
from finetune_keras.backbones.loaded import Edits, Loaded
from finetune_keras.backbones.rebuild import rebuilt
from finetune_keras.backbones.taps import taps

__all__ = ["Backbone"]

_SHOWN = 4  # names of dropped layers in the text


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
        preprocessor: of a preset of KerasHub: a callable for ``tf.data`` pipelines, also on JAX
            and PyTorch, and for lists and arrays. It turns strings into tokens, waves into
            features, and images into images of the size that the network was trained at.
            ``None`` where nothing is known or needed.

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
    preprocessor: Callable[[Any], Any] | None = None

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

        For ``keras.Model(base.model.inputs, base.taps)``. Maps have shape ``(batch, height,
        width, channels)``; of transformers they are the tokens, ``(batch, tokens, channels)``,
        and the stride is the patch's. Empty unless the network takes one image.
        """
        return taps(self.model)

    def copy(self) -> Backbone:
        """The same backbone with variables and flags of its own."""
        return dataclasses.replace(self, network=rebuilt(self.network))

    def __repr__(self) -> str:
        shape = getattr(self.network, "output_shape", None)
        # The layer that carries the record has it as its name, which says nothing to people.
        names = [n for n in self.dropped if not n.startswith(f"{parts.HEAD}record_")]
        more = ", ..." if len(names) > _SHOWN else ""
        cut = f", without {', '.join(names[:_SHOWN])}{more}" if names else ""
        edits = f"; {self.edits}" if self.edits != Edits() else ""
        return f"<Backbone {self.source}{cut}: {self.network.input_shape} -> {shape}{edits}>"
