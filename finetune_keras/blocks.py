"""Depth, read off the graph.

Walk the calls in topological order and keep the set of live tensors: those that depend on a
weight and are still to be read. Wherever exactly one is live, everything before and everything
after meet in that one tensor, and the graph is cut there. The weights since the last cut are one
block: a residual block, a dense block's layer, an encoder layer, a plain convolution. No table of
layer names is needed.
"""

from __future__ import annotations

import dataclasses
import re

import keras

from finetune_keras import graph, parts

__all__ = ["Block", "blocks", "blocks_of", "is_norm", "waists"]


@dataclasses.dataclass(frozen=True)
class Block:
    """One step of depth.

    Attributes:
        index: 0 for the block nearest the input.
        name: name of the last layer in it, which ``select.up_to`` and ``select.after`` take.
        calls: indices into the opened graph.
        units: its variables (a shared variable belongs to the first block that uses it).
        output: number of the tensor in which it ends.
    """

    index: int
    name: str
    calls: tuple[int, ...]
    units: tuple[graph.Unit, ...]
    output: int

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The layers in it that own variables, each once."""
        return tuple({id(u.layer): u.layer for u in self.units}.values())


def blocks(model: keras.Model) -> tuple[Block, ...]:
    """The blocks of a model in depth order, its head left out.

    Args:
        model: any built ``keras.Model``. A subclassed model, whose graph cannot be read, is one
            block.

    Examples:
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3, name="a"),
        ...     keras.layers.BatchNormalization(name="a_bn"),
        ...     keras.layers.Conv2D(4, 3, name="b"),
        ... ])
        >>> [block.name for block in blocks(model)]
        ['a_bn', 'b']
    """
    divided = parts.parts(model)
    return blocks_of(divided.opened, divided.head_calls)


def blocks_of(seen: graph.Opened, head: frozenset[int]) -> tuple[Block, ...]:
    """The blocks of an opened graph; ``head`` holds the indices of calls to leave out."""
    chunks: list[list[int]] = []
    sources = _sources(seen)
    for chunk in _cut(seen, head):
        kind = _kind(seen, chunk)
        # What has no weights, and a normalisation alone, is part of what it follows.
        joins = chunks and (kind != "weights" or _kind(seen, chunks[-1]) != "weights")
        # Token, position and segment embeddings stand side by side: none is deeper.
        beside = chunks and sources.intersection(chunk) and sources.intersection(chunks[-1])
        if joins or beside:
            chunks[-1] += chunk
        else:
            chunks.append(chunk)
    chunks = [c for c in chunks if _kind(seen, c) != "nothing"]
    result = []
    taken: set[int] = set()
    for index, chunk in enumerate(chunks):
        units = []
        for i in chunk:
            for unit in seen.calls[i].units:
                if id(unit.variable) not in taken:
                    taken.add(id(unit.variable))
                    units.append(unit)
        last = seen.calls[chunk[-1]]
        named = [seen.calls[i] for i in chunk if isinstance(seen.calls[i].op, keras.layers.Layer)]
        name = (named[-1] if named else last).path.rsplit("/", 1)[-1]
        result.append(Block(index, name, tuple(chunk), tuple(units), last.outputs[-1]))
    return tuple(result)


def _sources(seen: graph.Opened) -> set[int]:
    """Indices of calls that have weights and read no tensor that depends on any."""
    weighted: set[int] = set()
    sources = set()
    for i, call in enumerate(seen.calls):
        if weighted.intersection(call.inputs):
            weighted.update(call.outputs)
        elif call.units:
            weighted.update(call.outputs)
            sources.add(i)
    return sources


def waists(seen: graph.Opened) -> list[graph.Call]:
    """The calls whose one output is all that the rest of the model reads of what came before."""
    return [
        seen.calls[chunk[-1]]
        for chunk in _cut(seen, frozenset())
        if len(seen.calls[chunk[-1]].outputs) == 1
    ]


def _cut(seen: graph.Opened, head: frozenset[int]) -> list[list[int]]:
    uses: dict[int, int] = {}
    for call in seen.calls:
        for t in set(call.inputs):
            uses[t] = uses.get(t, 0) + 1
    for t in seen.outputs:
        uses[t] = uses.get(t, 0) + 1
    weighted: set[int] = set()  # tensors that depend on a weight
    live: set[int] = set()
    chunks: list[list[int]] = [[]]
    for i, call in enumerate(seen.calls):
        for t in set(call.inputs):
            uses[t] -= 1
            if not uses[t]:
                live.discard(t)
        if call.units or weighted.intersection(call.inputs):
            weighted.update(call.outputs)
            live.update(t for t in call.outputs if uses.get(t))
        if i in head:
            continue
        chunks[-1].append(i)
        if len(live) == 1:
            chunks.append([])
    return [c for c in chunks if c]


def _kind(seen: graph.Opened, chunk: list[int]) -> str:
    """``"weights"``, or ``"norm"`` if only normalisations have them, or ``"nothing"``."""
    layers = [u.layer for i in chunk for u in seen.calls[i].units]
    if not layers:
        return "nothing"
    return "norm" if all(is_norm(layer) for layer in layers) else "weights"


_NORM = re.compile(r"norm(alization)?(v2)?$", re.IGNORECASE)


def is_norm(layer: keras.layers.Layer) -> bool:
    """Whether a layer normalises: its class, or one it derives from, is named ``...Norm`` or
    ``...Normalization``, as all of Keras' and KerasHub's are.
    """
    if isinstance(layer, keras.layers.Wrapper):
        return False  # SpectralNormalization holds the kernel of the layer that it wraps
    return any(_NORM.search(cls.__name__) for cls in type(layer).__mro__)
