"""Depth, read off the graph: the blocks of a model.

A block is what lies between two cuts of `finetune_keras.depth`: a residual block, a dense block's
layer, an encoder layer, a plain convolution. No table of layer names is needed.
"""

from __future__ import annotations

import dataclasses

import keras

from finetune_keras import depth, graph, parts
from finetune_keras.depth import is_norm, waists

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
    result = []
    taken: set[int] = set()
    paths = [call.path for call in seen.calls]
    for chunk in depth.cut(seen, head):
        index = len(result)
        units = []
        for i in chunk:
            for unit in seen.calls[i].units:
                if id(unit.variable) not in taken:
                    taken.add(id(unit.variable))
                    units.append(unit)
        end = _end(seen, chunk)
        before = [i for i in chunk if i <= end]
        if not units and result:  # the same layers once more, as in ALBERT: no deeper weights
            last = result.pop()
            index, units, chunk = last.index, list(last.units), [*last.calls, *chunk]
        inner = _stages(seen, chunk, units)
        if inner:
            names = [*paths, *(path for path, _ in seen.layers)]
            out = seen.calls[end].outputs[0]
            for path, own in inner:
                result.append(Block(len(result), _short(path, names), tuple(chunk), own, out))
            continue
        named = [i for i in before if isinstance(seen.calls[i].op, keras.layers.Layer)]
        name = _short(paths[named[-1] if named else end], paths)
        result.append(Block(index, name, tuple(chunk), tuple(units), seen.calls[end].outputs[0]))
    return tuple(result)


def later(seen: graph.Opened, path: str) -> frozenset[int]:
    """``id``s of the variables that come after ``path`` in the layer that it is inside of; empty
    unless that layer says in which order its parts compute.
    """
    for call in seen.calls:
        stages = _ordered(call)
        if stages and path.startswith(f"{call.path}/"):
            mine = {id(u.variable) for u in call.units if u.path.startswith(f"{path}/")}
            last = max((i for i, (_, ids) in enumerate(stages) if ids & mine), default=len(stages))
            return frozenset().union(*(ids for _, ids in stages[last + 1 :]))
    return frozenset()


def _ordered(call: graph.Call) -> tuple[tuple[str, frozenset[int]], ...]:
    """The blocks inside a layer that cannot be opened, where it tells them as ``ftk_stages``:
    paths in it and ``id``s of variables, in depth order.
    """
    return getattr(call.op, "ftk_stages", ())


def _stages(seen: graph.Opened, chunk: list[int], units: list[graph.Unit]) -> list:
    """Paths and units of the blocks inside the one layer of a chunk, if it tells them."""
    told = {id(seen.calls[i].op): seen.calls[i] for i in chunk if _ordered(seen.calls[i])}
    if len(told) != 1:
        return []
    [call] = told.values()
    found = []
    rest = list(units)
    for path, ids in _ordered(call):
        own = tuple(u for u in rest if id(u.variable) in ids)
        rest = [u for u in rest if id(u.variable) not in ids]
        found.append((f"{call.path}/{path}", own))
    path, own = found.pop()
    return [*(pair for pair in found if pair[1]), (path, (*own, *rest))]


def _end(seen: graph.Opened, chunk: list[int]) -> int:
    """The call in which a block ends; of several side by side the one that most comes before."""
    read = {t for i in chunk for t in seen.calls[i].inputs}
    ends = [i for i in chunk if not read.intersection(seen.calls[i].outputs)]
    # A table of angles, as of rotary positions, has no weights before it.
    weighted = [i for i in ends if any(seen.calls[j].units for j in graph.ancestors(seen, [i]))]
    ends = weighted or ends
    if len(ends) == 1:
        return ends[0]
    return max(ends, key=lambda i: (len(graph.ancestors(seen, [i])), i))


def _short(path: str, paths: list[str]) -> str:
    """The end of a path that means no other call: the last name, mostly."""
    names = path.split("/")
    for k in range(1, len(names)):
        end = "/".join(names[-k:])
        if not any(p != path and (p == end or p.endswith(f"/{end}")) for p in paths):
            return end
    return path
