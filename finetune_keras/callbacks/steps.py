"""What a gradual thaw goes through: a model from the top, a block or a stage at a time."""

from __future__ import annotations

import dataclasses
import math

import keras

from finetune_keras import blocks, flags, graph, parts

__all__ = ["Step", "steps"]


@dataclasses.dataclass(frozen=True)
class Step:
    """What is thawed at once.

    Attributes:
        blocks: names of the blocks, the topmost first.
        variables: ``id``s of what learns once it is thawed.
    """

    blocks: tuple[str, ...]
    variables: frozenset[int]


def steps(model: keras.Model, by: str = "block", *, norms: bool = False) -> tuple[Step, ...]:
    """The steps from the top of a model down; what cannot learn is in none of them.

    Args:
        model: a built ``keras.Model``.
        by: ``"block"``, or ``"stage"`` for all blocks of one stride at once.
        norms: whether normalisation layers are thawed too.

    Raises:
        ValueError: if the model has no two stages to tell apart.

    Examples:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), dense(8, name="a"), dense(8, name="b"), dense(2, name="c")])
        >>> [step.blocks for step in steps(model)]
        [('b',), ('a',)]
    """
    divided = parts.parts(model)
    found = blocks.blocks_of(divided.opened, divided.head_calls)
    groups = [[b] for b in found] if by == "block" else _stages(model, divided.opened, found)
    made = (_step(group[::-1], norms) for group in reversed(groups))
    return tuple(s for s in made if s.variables)


def _step(group: list[blocks.Block], norms: bool) -> Step:
    mine = flags.switches(u for b in group for u in b.units)
    can = [u for u in mine if not getattr(u.layer, "ftk_fixed", "")]
    can = [u for u in can if norms or not blocks.is_norm(u.layer)]
    return Step(tuple(b.name for b in group), frozenset(id(u.variable) for u in can))


def _stages(
    model: keras.Model, seen: graph.Opened, found: tuple[blocks.Block, ...]
) -> list[list[blocks.Block]]:
    """Runs of blocks whose outputs have one stride."""
    strides = [_stride(seen, b) for b in found]
    if None in strides:
        raise ValueError(
            f"by='stage' goes by the size of maps, and {model.name!r} has maps of unknown size: "
            "give the backbone an input_shape, or by='block'"
        )
    if len(set(strides)) < 2:
        raise ValueError(
            f"by='stage' goes by the size of maps or sequences, which all blocks of {model.name!r} "
            "have in common, as those of a transformer do: by='block' thaws one after the other"
        )
    groups: list[list[blocks.Block]] = []
    for i, block in enumerate(found):
        if i and strides[i] == strides[i - 1]:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def _stride(seen: graph.Opened, block: blocks.Block) -> int | None:
    """How many times smaller than the input the last map in a block is along an edge, as a power
    of two: unpadded convolutions give 149 for 299 / 2. ``None`` where a size is unknown.
    """
    made = [_size(seen.shapes[t]) for i in block.calls for t in seen.calls[i].outputs]
    maps = [size for size in made if size]  # a pooled vector is of the stage that it pools
    given = _size(seen.shapes[seen.inputs[0]]) if seen.inputs else ()
    if not maps or not given:
        return 0
    if None in maps[-1] or None in given:
        return None
    edges = (math.prod(size) ** (1 / len(size)) for size in (given, maps[-1]))
    return round(math.log2(next(edges) / next(edges)))


def _size(shape: tuple) -> tuple:
    """Of a map or a sequence, without batch and channels; empty for vectors."""
    first = keras.config.image_data_format() == "channels_first" and len(shape) > 3
    return tuple(shape[2:] if first else shape[1:-1])
