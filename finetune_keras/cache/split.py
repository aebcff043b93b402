"""A model in two: all that is frozen, and what learns.

An operation is closed if nothing in it learns and all that it reads is closed. What closed
operations hand to the others is the frontier: the outputs of the prefix, the inputs of the suffix.
Both are made of the model's own layers, so that they share its variables.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import weakref

import keras

from finetune_keras import flags, graph, parts
from finetune_keras.cache.cut import cut
from finetune_keras.tape import is_random

__all__ = ["Division", "divide", "keep", "kept", "split"]


@dataclasses.dataclass(frozen=True)
class Division:
    """A model in two.

    Attributes:
        prefix: from the model's inputs to the frontier; a tensor, or a list of them.
        suffix: from there to the model's outputs.
        paths: what makes each tensor of the frontier, a layer's path or an input's name.
        frozen: number of scalars in the variables of the prefix.
        batched: whether the first axis of all that the prefix gives is the batch.
        random: paths of the random operations that are in the prefix behind some weights, such as
            the dropout of a frozen network: they are off in the prefix.
    """

    prefix: keras.Model
    suffix: keras.Model
    paths: tuple[str, ...]
    frozen: int
    batched: bool
    random: tuple[str, ...]


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Divides a model at the frontier between what is frozen and what learns.

    The prefix is all that no training step changes, up to the first layers that learn; the suffix
    is the rest. They share the layers and variables of ``model``, which stays as it is, so that
    training the suffix trains the model.

    Layers without weights belong to the prefix as far as they read nothing that learns (the
    pooling of a head, for one), unless that makes its outputs larger. Dropout inside the frozen
    part is in the prefix, where it is off; dropout of the head is in the suffix.

    Args:
        model: a functional or sequential ``keras.Model``, models nested in it or not, with any
            number of inputs and outputs; compiled or not. A KerasHub task is one.

    Returns:
        ``(prefix, suffix)``. The prefix takes what ``model`` takes; its output is one tensor or a
        list of them, which the suffix takes; the suffix gives what ``model`` gives. Neither is
        compiled. Where no weight is frozen before the first that learns, the prefix is empty: its
        outputs are its inputs.

    Raises:
        ValueError: if the model's graph cannot be read (a subclass of ``keras.Model`` with a
            ``call`` of its own), if it is not built, or if nothing in it learns.

    Examples:
        >>> import finetune_keras as ftk
        >>> from finetune_keras import heads, select
        >>> base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
        >>> model = ftk.build(base, heads.Classification(10), freeze=select.backbone())
        >>> prefix, suffix = split(model)
        >>> prefix.output_shape, [v.path for v in suffix.weights]
        ((None, 96), ['ftk_head_output/kernel', 'ftk_head_output/bias'])
    """
    division = divide(model, fresh=True)
    return division.prefix, division.suffix


_Kept = tuple[tuple, Division]
_KEPT: weakref.WeakKeyDictionary[keras.Model, _Kept] = weakref.WeakKeyDictionary()


def kept(model: keras.Model) -> _Kept | None:
    """The last division of a model, with what it goes with."""
    return _KEPT.get(model)


def keep(model: keras.Model, last: _Kept) -> None:
    """Puts back what `kept` gave: `divide` gives it where it goes with the model."""
    _KEPT[model] = last


def divide(model: keras.Model, *, fresh: bool = False) -> Division:
    """`split`, with what is known of the two.

    Args:
        model: as there.
        fresh: whether to make new ones, which nobody else compiles. Otherwise they are those of
            the last time unless the model's flags or layers changed, since compiled functions go
            with them.
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    divided = parts.parts(model)
    seen = divided.opened
    if seen.closed:
        raise ValueError(
            f"the graph of {model.name!r} cannot be read: {type(model).__name__} is a subclass of "
            "keras.Model with a call of its own; train it with model.fit, or hand in the "
            "functional model in it"
        )
    random = {i for i, call in enumerate(seen.calls) if is_random(call.op)}
    closed = _closed(divided, random)
    if all(i in closed for i in _makers(seen, seen.outputs)):
        raise ValueError(
            f"nothing learns in the model {model.name!r}: thaw something first, for example "
            "finetune_keras.thaw(model, select.head())"
        )
    behind = graph.descendants(seen, [i for i in closed if seen.calls[i].units])
    if not behind & closed:
        closed = set()
    _retreat(seen, closed)
    masked = graph.descendants(seen, [i for i in closed if _masks(seen.calls[i].op)]) & closed
    ops = tuple(id(call.op) for call in seen.calls)
    state = (ops, frozenset(closed), tuple(id(v) for v in model.trainable_variables))
    if not fresh and model in _KEPT and _KEPT[model][0] == state:
        return _KEPT[model][1]
    prefix, suffix, paths = cut(model, closed, masked)
    units = {id(u.variable): u for i in closed for u in seen.calls[i].units}
    division = Division(
        prefix=prefix,
        suffix=suffix,
        paths=paths,
        frozen=sum(u.size for u in units.values()),
        batched=all(_batched(t, model) for t in prefix.outputs),
        random=tuple(seen.calls[i].path for i in sorted(random & closed & behind)),
    )
    if not fresh:
        _KEPT[model] = (state, division)
    return division


def _batched(t: keras.KerasTensor, model: keras.Model) -> bool:
    sizes = {i.shape[0] for i in model.inputs}
    return len(t.shape) > 0 and t.shape[0] in sizes


def _closed(divided: parts.Parts, random: set[int]) -> set[int]:
    """Indices of the calls that no training step changes and that read nothing it does."""
    seen = divided.opened
    on = flags.on(seen.units, divided.model)
    makers = {t: i for i, call in enumerate(seen.calls) for t in call.outputs}

    def reach(barred: set[int]) -> set[int]:
        closed: set[int] = set()
        for i, call in enumerate(seen.calls):
            before = {makers[t] for t in call.inputs if t in makers}
            if i not in barred and before <= closed and not _changes(call, on):
                closed.add(i)
        return closed

    closed = reach(set())
    weighted = [i for i in closed if seen.calls[i].units]
    behind = graph.descendants(seen, weighted)
    before = graph.ancestors(seen, weighted)
    # Dropout at the end of the frozen part is the head's own, and stays random; so does what a
    # built model calls its head. What comes before all weights is augmentation.
    own = {i for i in random & behind if i not in before and "/" not in seen.calls[i].path}
    own |= random & behind & divided.head_calls
    # What a head varies features by is a small model without weights: all of it, or its scales
    # would be kept too.
    holders = {seen.calls[i].path.rpartition("/")[0] for i in own} - {""}
    weighted = {c.path for c in seen.calls if c.units}
    holders = {h for h in holders if not any(p.startswith(f"{h}/") for p in weighted)}
    return reach(
        own
        | {i for i, c in enumerate(seen.calls) if any(c.path.startswith(f"{h}/") for h in holders)}
    )


def _changes(call: graph.Call, on: frozenset[int]) -> bool:
    """Whether a training step changes a variable of the call: by a gradient, or statistics of a
    layer that knows of ``training`` (those of ``Normalization`` are from ``adapt``).
    """
    return any(
        id(u.variable) in on
        if u.learnable
        else u.layer.trainable and "training" in inspect.signature(u.layer.call).parameters
        for u in call.units
    )


def _makers(seen: graph.Opened, numbers) -> list[int]:
    makers = {t: i for i, call in enumerate(seen.calls) for t in call.outputs}
    return [makers[t] for t in numbers if t in makers]


def _retreat(seen: graph.Opened, closed: set[int]) -> None:
    """Leaves to the suffix what only makes the frontier larger, such as upsampling at its end."""
    for i in sorted(closed, reverse=True):
        call = seen.calls[i]
        if call.units or not call.inputs or is_random(call.op):
            continue
        read = [j for j, c in enumerate(seen.calls) if set(call.outputs) & set(c.inputs)]
        if any(j in closed for j in read):
            continue
        held = {t for j, c in enumerate(seen.calls) if j not in closed for t in c.inputs}
        new = set(call.inputs) - held - set(seen.outputs)
        if _size(seen, new) < _size(seen, call.outputs):
            closed.discard(i)


def _size(seen: graph.Opened, numbers) -> int:
    """Scalars an example, those of unknown shape left out."""
    return sum(math.prod(n or 1 for n in seen.shapes[t][1:]) for t in numbers)


def _masks(op: keras.Operation) -> bool:
    """Whether a layer makes a mask that those after it read, as an embedding may."""
    if not isinstance(op, keras.layers.Layer):
        return False
    try:
        return op.compute_mask(op.input, None) is not None
    except (AttributeError, TypeError, ValueError):  # several inputs, or used several times
        return type(op).compute_mask is not keras.layers.Layer.compute_mask
