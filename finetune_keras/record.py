"""What travels in the file of a model: class names, kind of labels, origin, flags.

Keras keeps neither of them: attributes, extra config keys and extra members of the archive are
lost or refused on load. A layer's *name* survives load, save, clone and nesting, so a model built
here has, before its last dense layer, an ``Identity`` whose name is a record: JSON, deflated, in
base 32. Plain Keras carries it along without knowing.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence

import keras

from finetune_keras import flags, graph, parts
from finetune_keras.optimizers import innermost, newcomers

__all__ = ["Output", "Record", "layer", "placed", "read", "refresh"]

_PREFIX = f"{parts.HEAD}record_"
_LIMIT = 4 << 20  # bytes of JSON; a file cannot make us inflate more


@dataclasses.dataclass(frozen=True)
class Output:
    """One output of a head: what it gives, and the labels it takes.

    Attributes:
        name: its key where the model's output is a dict; empty for the only output.
        kind: ``"classification"``, ``"binary"``, ``"multi_label"``, ``"ordinal"`` or
            ``"regression"``.
        size: number of classes, or of values for regression.
        from_logits: whether it gives logits rather than probabilities.
        labels: the labels it takes, in words.
        class_names: names of the classes in the order of the labels; empty if none were given.
    """

    name: str = ""
    kind: str = ""
    size: int = 0
    from_logits: bool = False
    labels: str = ""
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """What a built model knows about itself.

    Attributes:
        origin: where the backbone came from, such as ``"resnet50, weights='imagenet'"``.
        outputs: what the head gives, one `Output` each.
        frozen: paths of frozen variables that Keras' own file would bring back learning: single
            variables of a layer, and layers inside a layer.
        newcomers: for each later thaw the optimizer's step at that time and the paths of the
            variables that joined.
        places: where each of the paths in ``frozen``, then of those in ``newcomers``, stands among
            the variables of the graph: some networks of KerasHub number their layers anew
            whenever they are made, and their paths then mean others.
    """

    origin: str = ""
    outputs: tuple[Output, ...] = ()
    frozen: tuple[str, ...] = ()
    newcomers: tuple[tuple[int, tuple[str, ...]], ...] = ()
    places: tuple[int, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes where there is one output; empty otherwise."""
        return self.outputs[0].class_names if len(self.outputs) == 1 else ()

    @property
    def labels(self) -> str:
        """The labels in words, of each output by its name where there are several."""
        if len(self.outputs) == 1:
            return self.outputs[0].labels
        return "; ".join(f"{o.name}: {o.labels}" for o in self.outputs)


def _encode(record: Record) -> str:
    text = json.dumps(dataclasses.asdict(record), separators=(",", ":"), ensure_ascii=False)
    packed = base64.b32encode(zlib.compress(text.encode(), 9)).decode()
    return _PREFIX + packed.rstrip("=")


def _decode(name: str) -> Record | None:
    packed = name[len(_PREFIX) :]
    try:
        data = base64.b32decode(packed + "=" * (-len(packed) % 8))
        text = zlib.decompressobj().decompress(data, _LIMIT)
        fields = json.loads(text)
        return Record(
            origin=str(fields["origin"]),
            outputs=tuple(map(_output, fields["outputs"])),
            frozen=tuple(map(str, fields["frozen"])),
            newcomers=tuple((int(n), tuple(map(str, p))) for n, p in fields["newcomers"]),
            places=tuple(map(int, fields.get("places", ()))),
        )
    except (ValueError, KeyError, TypeError, zlib.error):
        return None  # not one of ours, or of a version that this one cannot read


def _output(fields: dict) -> Output:
    return Output(
        name=str(fields["name"]),
        kind=str(fields["kind"]),
        size=int(fields["size"]),
        from_logits=bool(fields["from_logits"]),
        labels=str(fields["labels"]),
        class_names=tuple(map(str, fields["class_names"])),
    )


def layer(record: Record) -> keras.layers.Layer:
    """The layer that carries a record; it returns its input."""
    return keras.layers.Identity(name=_encode(record))


def _carrier(model: keras.Model) -> keras.layers.Layer | None:
    return next((x for x in model.layers if x.name.startswith(_PREFIX)), None)


def _carriers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The carrier of a model, and of models nested in it."""
    for x in model.layers:
        if isinstance(x, keras.Model):
            yield from _carriers(x)
        elif x.name.startswith(_PREFIX):
            yield x


def read(model: keras.Model) -> Record | None:
    """The record of a model built by this library, also after plain Keras loaded or cloned it.

    Returns:
        The record, of a model nested inside if it has none itself, or ``None``.

    Examples:
        >>> read(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])) is None
        True
    """
    found = _carrier(model) or next(_carriers(model), None)
    return None if found is None else _decode(found.name)


def refresh(model: keras.Model) -> None:
    """Writes the flags and newcomers as they are now into the model's record, if it has one."""
    found = _carrier(model)
    old = None if found is None else _decode(found.name)
    if old is None:
        return
    units = graph.opened(model).units
    paths = {id(u.variable): u.path for u in units}
    joined = ()
    if model.compiled and model.optimizer is not None:
        joined = tuple(
            (g.since, tuple(paths[id(v)] for v in g.variables if id(v) in paths))
            for g in newcomers.groups(innermost(model.optimizer))
        )
    frozen = _not_in_file(model, units)
    order = {u.path: i for i, u in enumerate(units)}
    listed = (*frozen, *(p for _, paths in joined for p in paths))
    places = tuple(order[p] for p in listed)
    new = dataclasses.replace(old, frozen=frozen, newcomers=joined, places=places)
    if new != old:
        found.name = _encode(new)


def placed(record: Record, units: Sequence[graph.Unit]) -> Record:
    """The record with the paths that its variables have in this model."""
    listed = (*record.frozen, *(p for _, paths in record.newcomers for p in paths))
    if len(record.places) != len(listed) or any(not 0 <= i < len(units) for i in record.places):
        return record  # of a file from before places
    paths = iter([units[i].path for i in record.places])
    return dataclasses.replace(
        record,
        frozen=tuple(next(paths) for _ in record.frozen),
        newcomers=tuple((n, tuple(next(paths) for _ in group)) for n, group in record.newcomers),
    )


def _not_in_file(model: keras.Model, units) -> tuple[str, ...]:
    """Paths of what is off but would come back on from Keras' config, which has one flag for
    each layer of a functional or sequential model and none for what such a layer holds.
    """
    kept = _flagged_in_config(model)
    return tuple(
        u.path
        for u in flags.switches(units)
        if not flags.is_on(u, model) and not (id(u.layer) in kept and not u.layer.trainable)
    )


def _flagged_in_config(model: keras.Model) -> set[int]:
    kept: set[int] = set()
    # A subclass with a constructor of its own is rebuilt from that constructor's arguments.
    if type(model) is keras.Sequential or _is_plain(model):
        for x in model.layers:
            kept |= _flagged_in_config(x) if isinstance(x, keras.Model) else {id(x)}
    return kept


def _is_plain(model: keras.Model) -> bool:
    return isinstance(model, keras.Function) and type(model).__module__.startswith("keras.src.")
