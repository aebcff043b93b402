"""The cut: a graph of calls as a row of chunks, nearest the input first.

Calls are grouped by the sources they depend on (a source is a weight that is computed from no
other), so that two towers, or an encoder and a decoder, are each walked for themselves. In a
group the walk keeps the set of live tensors: those that depend on a weight and are still to be
read there. Wherever at most one is live, the group is cut. Depth is then counted from the end, by
the longest way, and chunks of equal depth are one.
"""

from __future__ import annotations

import re

import keras

from finetune_keras import graph, tape

__all__ = ["cut", "is_norm", "longest_lived", "waists"]

Chunk = list[int]


def cut(seen: graph.Opened, head: frozenset[int] = frozenset()) -> list[Chunk]:
    """The calls of an opened graph in depth order.

    Args:
        seen: the graph.
        head: indices of calls to leave out.

    Returns:
        Lists of indices into ``seen.calls``; each holds a weight.
    """
    chunks: list[Chunk] = []
    for group in _groups(seen, head):
        parts = [part for chunk in _walk(seen, group) for part in _split(seen, chunk)]
        chunks += _with_previous(seen, parts)
    row = _with_previous(seen, _by_depth(seen, chunks), leading=True)
    row = _factored(seen, row)
    return [chunk for chunk in row if _kind(seen, chunk) != "nothing"]


def waists(seen: graph.Opened) -> list[graph.Call]:
    """The calls whose one output is all that the rest of the model reads of what came before."""
    last: dict[int, int] = {t: len(seen.calls) for t in seen.outputs}
    for i, call in enumerate(seen.calls):
        for t in call.inputs:
            last[t] = max(i, last.get(t, 0))
    weighted = _weighted(seen)
    live: set[int] = set()
    found = []
    for i, call in enumerate(seen.calls):
        live = {t for t in live if last[t] > i}
        live.update(t for t in call.outputs if t in weighted and last.get(t, 0) > i)
        if len(live) == 1 and len(call.outputs) == 1:
            found.append(call)
    return found


def longest_lived(seen: graph.Opened, chunk: Chunk) -> tuple[str, str] | None:
    """Paths of the two calls between which a tensor holds a chunk together: the one that makes
    it and the last that reads it.
    """
    made_by = {t: i for i, c in enumerate(seen.calls) for t in c.outputs}
    weighted = _weighted(seen)
    spans = [
        (i - made_by[t], made_by[t], i)
        for i in chunk
        for t in seen.calls[i].inputs
        if t in weighted
    ]
    if not spans:
        return None
    _, start, end = max(spans)
    return seen.calls[start].path, seen.calls[end].path


def _weighted(seen: graph.Opened) -> set[int]:
    """Tensors that depend on a weight. (One that depends on inputs alone, such as a padding
    mask, passes by whatever is computed.)
    """
    weighted: set[int] = set()
    for call in seen.calls:
        if call.units or weighted.intersection(call.inputs):
            weighted.update(call.outputs)
    return weighted


def _groups(seen: graph.Opened, head: frozenset[int]) -> list[list[int]]:
    """Calls by the set of sources that they depend on, fewest sources first."""
    roots: dict[int, frozenset[int]] = {}
    of: list[frozenset[int]] = []
    for i, call in enumerate(seen.calls):
        below = frozenset().union(*(roots.get(t, frozenset()) for t in call.inputs))
        if not below and call.units:
            below = frozenset([i])
        of.append(below)
        roots.update(dict.fromkeys(call.outputs, below))
    # What comes before any weight belongs to the first that reads it.
    reader: dict[int, frozenset[int]] = {}
    for i in reversed(range(len(seen.calls))):
        if not of[i]:
            of[i] = next((reader[t] for t in seen.calls[i].outputs if t in reader), of[i])
        reader.update(dict.fromkeys(seen.calls[i].inputs, of[i]))
    groups: dict[frozenset[int], list[int]] = {}
    for i, below in enumerate(of):
        if i not in head:
            groups.setdefault(below, []).append(i)
    return [groups[key] for key in sorted(groups, key=len)]


def _walk(seen: graph.Opened, group: list[int]) -> list[Chunk]:
    """Cuts a group wherever at most one tensor of its own is still to be read in it."""
    last = {t: i for i in group for t in seen.calls[i].inputs}
    weighted = _weighted(seen)
    live: set[int] = set()
    chunks: list[Chunk] = [[]]
    for i in group:
        live = {t for t in live if last[t] > i}
        live.update(t for t in seen.calls[i].outputs if t in weighted and last.get(t, 0) > i)
        chunks[-1].append(i)
        if len(live) <= 1:
            chunks.append([])
    return [c for c in chunks if c]


def _split(seen: graph.Opened, chunk: Chunk) -> list[Chunk]:
    """A chunk in which several blocks stand in a row, held together by a tensor that all of them
    read (the position bias of T5) or by each reading the two before it (the cells of NASNet).
    """
    ends = [i for i in chunk if tape.is_block(seen.calls[i].op)]
    if len(ends) < 2:
        ends = _cells(seen, chunk)
    if len(ends) < 2:
        return [chunk]
    starts, ends = [chunk[0], *(end + 1 for end in ends)], [*ends, chunk[-1]]
    row = [[i for i in chunk if a <= i <= b] for a, b in zip(starts, ends, strict=True)]
    return [part for part in row if part]


def _cells(seen: graph.Opened, chunk: Chunk) -> list[int]:
    """Ends of cells that each read the outputs of the two before: just two tensors are live
    there, one made by this cell and one by the last. A tensor that was padded, pooled or
    activated since counts as the same.
    """
    origin: dict[int, int] = {}
    last: dict[int, int] = {}
    reads: dict[int, int] = {}
    for i in chunk:
        call = seen.calls[i]
        sources = {origin.get(t, t) for t in call.inputs}
        for t in sources:
            last[t] = i
        if not call.units and len(sources) == 1:
            origin.update(dict.fromkeys(call.outputs, sources.pop()))
        else:
            reads.update((t, reads.get(t, 0) + 1) for t in sources)
    weighted = _weighted(seen)
    mine = {t for i in chunk for t in seen.calls[i].outputs}
    live = sorted(t for t in last if t in weighted and t not in mine)
    best: dict[int, list[int]] = {}  # by the tensor that ends them, the longest rows of cells
    for i in chunk:
        live = [t for t in live if last[t] > i]
        made = [t for t in seen.calls[i].outputs if t in weighted and t not in origin]
        live += [t for t in made if last.get(t, 0) > i]
        if len(live) == 2 and made and live[1] == made[0] and reads.get(live[0], 0) > 1:
            best[live[1]] = [*best.get(live[0], []), i]
    row = max(best.values(), key=len, default=[])
    return row if len(row) > 2 else []


def _by_depth(seen: graph.Opened, chunks: list[Chunk]) -> list[Chunk]:
    """Chunks of equal distance from the end as one, the farthest first."""
    owner = {i: k for k, chunk in enumerate(chunks) for i in chunk}
    made_by = {t: i for i, c in enumerate(seen.calls) for t in c.outputs}
    read_by: list[set[int]] = [set() for _ in chunks]
    for k, chunk in enumerate(chunks):
        for t in (t for i in chunk for t in seen.calls[i].inputs):
            before = owner.get(made_by.get(t, -1), k)
            if before != k:
                read_by[before].add(k)
    depth = [0] * len(chunks)
    for k in reversed(range(len(chunks))):  # a chunk is read by later ones only
        depth[k] = max((depth[j] + 1 for j in read_by[k]), default=0)
    row = [
        sorted(i for k, chunk in enumerate(chunks) if depth[k] == d for i in chunk)
        for d in range(max(depth, default=-1), -1, -1)
    ]
    return [chunk for chunk in row if chunk]


def _with_previous(seen: graph.Opened, row: list[Chunk], *, leading: bool = False) -> list[Chunk]:
    """What has no weights, a normalisation alone, and a table of positions are part of what they
    follow; the first of a row, with ``leading``, of what follows it.
    """
    result: list[Chunk] = []
    for chunk in row:
        joins = _kind(seen, chunk) != "weights"
        if leading and result:
            joins = joins or _kind(seen, result[-1]) in ("nothing", "norm")
        if result and joins:
            result[-1] = sorted(result[-1] + chunk)
        else:
            result.append(chunk)
    return result


def _kind(seen: graph.Opened, chunk: Chunk) -> str:
    """``"weights"``, or ``"norm"`` or ``"table"`` if only normalisations or embeddings have
    them, or ``"nothing"``.
    """
    layers = [u.layer for i in chunk for u in seen.calls[i].units]
    if not layers:
        return "nothing"
    if all(is_norm(layer) for layer in layers):
        return "norm"
    tables = all(is_norm(x) or type(x).__name__.endswith("Embedding") for x in layers)
    return "table" if tables else "weights"


def _factored(seen: graph.Opened, row: list[Chunk]) -> list[Chunk]:
    """Joins the factors of one convolution: a gate to what it scales (squeeze-and-excitation, Hu
    et al. 2018), a depthwise convolution to the pointwise one after it (Howard et al. 2017), and
    the pointwise one before it too, where they widen and narrow (Sandler et al. 2018).
    """
    result: list[Chunk] = []
    part = False  # whether the last of them is a depthwise convolution, still alone
    for chunk in row:
        if result and _is_gate(seen, result[-1], chunk):
            result[-1] = result[-1] + chunk
        elif part:
            wide = _pointwise(seen, result[-2]) if len(result) > 1 else None
            narrow = _pointwise(seen, chunk)
            bottleneck = wide and narrow and wide[1] > wide[0] and narrow[1] < narrow[0]
            before = result.pop(-2) if bottleneck else []
            result[-1] = before + result[-1] + chunk
            part = False
        else:
            result.append(chunk)
            part = _is_depthwise(seen, chunk)
    return result


def _is_gate(seen: graph.Opened, previous: Chunk, chunk: Chunk) -> bool:
    ends = {t for i in previous for t in seen.calls[i].outputs}
    return any(
        type(seen.calls[i].op).__name__ == "Multiply" and ends.intersection(seen.calls[i].inputs)
        for i in chunk
    )


def _convolutions(seen: graph.Opened, chunk: Chunk) -> list[keras.layers.Layer]:
    layers = {id(u.layer): u.layer for i in chunk for u in seen.calls[i].units}.values()
    return [x for x in layers if not is_norm(x)]


def _is_depthwise(seen: graph.Opened, chunk: Chunk) -> bool:
    layers = _convolutions(seen, chunk)
    return len(layers) == 1 and isinstance(layers[0], keras.layers.DepthwiseConv2D)


def _pointwise(seen: graph.Opened, chunk: Chunk) -> tuple[int, int] | None:
    """Channels in and out, if its one layer is a 1x1 convolution."""
    layers = _convolutions(seen, chunk)
    if len(layers) != 1 or not isinstance(layers[0], keras.layers.Conv2D):
        return None
    kernel = layers[0].kernel.shape
    return (kernel[2], kernel[3]) if tuple(kernel[:2]) == (1, 1) else None


_NORM = re.compile(r"norm(alization)?(v2)?$", re.IGNORECASE)


def is_norm(layer: keras.layers.Layer) -> bool:
    """Whether a layer normalises: its class, or one it derives from, is named ``...Norm`` or
    ``...Normalization``, as all of Keras' and KerasHub's are.
    """
    if isinstance(layer, keras.layers.Wrapper):
        return False  # SpectralNormalization holds the kernel of the layer that it wraps
    return any(_NORM.search(cls.__name__) for cls in type(layer).__mro__)
