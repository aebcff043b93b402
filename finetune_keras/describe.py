"""A table of a model by depth: what there is, what learns, and at which rate."""

from __future__ import annotations

import dataclasses
import html

import keras

from finetune_keras import blocks, depth, flags, graph, optimizers, parts, record
from finetune_keras.regularize import l2sp
from finetune_keras.tape import is_random

__all__ = ["Description", "Row", "describe"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One block, or one layer of the head.

    Attributes:
        name: name of the block's last layer, which ``select.up_to`` and ``select.after`` take.
        part: ``"backbone"`` or ``"head"``.
        layers: number of layers that own variables.
        parameters: number of scalars, statistics included.
        learning: how many of them a training step changes by a gradient.
        state: ``"frozen"``, ``"learning"``, or ``"partly"``.
        rate: the learning rate in force, the highest where they differ; ``None`` where nothing
            learns or nothing is compiled.
    """

    name: str
    part: str
    layers: int
    parameters: int
    learning: int
    state: str
    rate: float | None


@dataclasses.dataclass(frozen=True)
class Description:
    """What `describe` returns; its text is a table, and in a notebook it shows as one."""

    model: str
    rows: tuple[Row, ...]
    optimizer: str
    notes: tuple[str, ...]
    origin: str = ""
    labels: str = ""
    class_names: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of scalars in the model."""
        return sum(r.parameters for r in self.rows)

    @property
    def learning(self) -> int:
        """Number of scalars that learn."""
        return sum(r.learning for r in self.rows)

    def to_dict(self) -> dict:
        """The description as plain Python values, ready for JSON."""
        return {
            **dataclasses.asdict(self),
            "rows": [dataclasses.asdict(r) for r in self.rows],
            "class_names": list(self.class_names),
            "notes": list(self.notes),
            "parameters": self.parameters,
            "learning": self.learning,
        }

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("", "block", "layers", "parameters", "learning", "state", "rate")
        count = {"backbone": 0}
        table = [head]
        for row in self.rows:
            number = "head"
            if row.part == "backbone":
                number = str(count["backbone"])
                count["backbone"] += 1
            rate = "" if row.rate is None else f"{row.rate:.3g}"
            table.append(
                (
                    number,
                    row.name,
                    str(row.layers),
                    f"{row.parameters:,}",
                    f"{row.learning:,}",
                    row.state,
                    rate,
                )
            )
        total = sum(r.layers for r in self.rows)
        table.append(
            ("", "total", str(total), f"{self.parameters:,}", f"{self.learning:,}", "", "")
        )
        return table

    def _lines(self) -> list[str]:
        lines = [f"optimizer: {self.optimizer}"] if self.optimizer else ["not compiled"]
        if self.origin:
            lines.append(f"backbone: {self.origin}")
        if self.labels:
            lines.append(f"labels: {self.labels}")
        if self.class_names:
            shown = ", ".join(self.class_names[:6])
            more = f", ... ({len(self.class_names)} in all)" if len(self.class_names) > 6 else ""
            lines.append(f"classes: {shown}{more}")
        return [*lines, *self.notes]

    def __str__(self) -> str:
        table = self._cells()
        widths = [max(len(r[i]) for r in table) for i in range(len(table[0]))]
        left = (0, 1, 5)  # number, name and state; the rest are numbers

        def line(cells) -> str:
            return "  ".join(
                c.ljust(w) if i in left else c.rjust(w)
                for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()

        body = [line(r) for r in table]
        rule = "-" * max(map(len, body))
        return "\n".join(
            [self.model, rule, body[0], rule, *body[1:-1], rule, body[-1], "", *self._lines()]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = self._cells()

        def row(cells, tag) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        lines = "<br>".join(html.escape(x) for x in self._lines())
        body = "".join(row(r, "td") for r in table[1:])
        return (
            f"<table><caption>{html.escape(self.model)}</caption><thead>{row(table[0], 'th')}"
            f"</thead><tbody>{body}</tbody></table><p>{lines}</p>"
        )


def describe(model: keras.Model) -> Description:
    """A table by block: layers, parameters, what is frozen and what learns, and the rate.

    Args:
        model: any built ``keras.Model``.

    Returns:
        A `Description`: text by ``print``, a table in a notebook, values by ``to_dict()``.

    Examples:
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)),
        ...     keras.layers.Conv2D(4, 3, name="a"),
        ...     keras.layers.GlobalAveragePooling2D(name="pool"),
        ...     keras.layers.Dense(2, name="b"),
        ... ], name="small")
        >>> print(describe(model))
        small
        ---------------------------------------------------------
              block  layers  parameters  learning  state     rate
        ---------------------------------------------------------
        0     pool        1         112       112  learning
        head  b           1          10        10  learning
        ---------------------------------------------------------
              total       2         122       122
        <BLANKLINE>
        not compiled
        head: what follows 'pool'
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    divided = parts.parts(model)
    compiled = model.compiled and model.optimizer is not None
    rate = optimizers.rate(model.optimizer) if compiled else None
    found_blocks = blocks.blocks_of(divided.opened, divided.head_calls)
    scaled = optimizers.layerwise_of(model.optimizer) if compiled else None
    rows = [_row(b.name, "backbone", b.units, model, rate, scaled) for b in found_blocks]
    heads: dict[str, list[graph.Unit]] = {}
    for unit in divided.head_units:
        heads.setdefault(unit.path.rsplit("/", 1)[0], []).append(unit)
    rows += [_row(name, "head", tuple(units), model, rate, scaled) for name, units in heads.items()]
    found = record.read(model)
    return Description(
        model=model.name,
        rows=tuple(rows),
        optimizer=_optimizer(model, rate) if compiled else "",
        notes=(*_whole(divided, found_blocks), *_notes(divided)),
        origin=found.origin if found else "",
        labels=found.labels if found else "",
        class_names=found.class_names if found else (),
    )


def _row(name: str, part: str, units, model: keras.Model, rate: float | None, scaled) -> Row:
    learners = [u for u in units if u.learnable]
    live = [u for u in learners if flags.is_on(u, model)]
    state = "frozen" if not live else "learning" if len(live) == len(learners) else "partly"
    if live and scaled is not None:
        rate = rate * max(scaled.multiplier(u.variable) for u in live)
    return Row(
        name=name,
        part=part,
        layers=len({id(u.layer) for u in units}),
        parameters=sum(u.size for u in units),
        learning=sum(u.size for u in live),
        state=state,
        rate=rate if live else None,
    )


def _optimizer(model: keras.Model, rate: float) -> str:
    kind = type(optimizers.innermost(model.optimizer)).__name__
    schedule = optimizers.schedule(model.optimizer)
    now = f" now, by {schedule}" if schedule else ""
    if optimizers.layerwise_of(model.optimizer) is not None:
        now += ", scaled by layer"
    average = optimizers.averaging_of(model.optimizer)
    if average is not None:
        now += f"; weights averaged with momentum {average.momentum:g}"
    return f"{kind}, learning rate {rate:.3g}{now}"


def _whole(divided: parts.Parts, found: tuple[blocks.Block, ...]) -> tuple[str, ...]:
    """A word on a block that is most of the backbone: depth cannot be told inside it."""
    counts = [sum(not blocks.is_norm(x) for x in b.layers) for b in found]
    layers = sum(counts)
    for block, count in zip(found, counts, strict=True):
        if divided.opened.closed or count < 5 or 2 * count <= layers:
            continue  # a residual block has four convolutions at most
        span = depth.longest_lived(divided.opened, list(block.calls))
        between = f": {span[1]!r} reads {span[0]!r} across them" if span else ""
        return (
            f"{count} of {layers} layers are one block, {block.name!r}{between}; "
            "choose inside it by select.up_to, after, named or first",
        )
    return ()


def _notes(divided: parts.Parts) -> tuple[str, ...]:
    model, seen = divided.model, divided.opened
    notes = []
    if seen.closed:
        notes.append(
            "a subclassed model: its graph cannot be read, so it is one block; choose by "
            "select.named, first, last, of_type, norms, biases or where (up_to, after, head and "
            "cut_at need a graph)"
        )
    elif not divided.rule:
        notes.append("no head found: select.head() has nothing to choose")
    elif not divided.rule.startswith("layers named"):
        notes.append(f"head: {divided.rule}")
    on = [u for u in seen.units if u.learnable and flags.is_on(u, model)]
    if not on:
        notes.append("nothing learns")
    norms = [x for _, x in seen.layers if isinstance(x, keras.layers.BatchNormalization)]
    still = sum(not x.trainable for x in norms)
    if still:
        notes.append(f"{still} batch normalisations are frozen and run in inference mode")
    if len(norms) > still:
        notes.append(
            f"{len(norms) - still} batch normalisations learn: fit normalises by the batch and "
            "moves their statistics"
        )
    notes += [note for _, x in seen.layers if (note := getattr(x, "ftk_note", ""))]
    notes += filter(None, [l2sp.note(model)])
    dropped = _frozen_random(divided)
    if dropped:
        notes.append(
            f"{dropped} random layers inside the frozen part, such as dropout, stay on in "
            "model.fit; finetune_keras.fit runs that part once, in inference mode"
        )
    return tuple(notes)


def _frozen_random(divided: parts.Parts) -> int:
    """How many random calls lie in the frozen part, behind weights and before others."""
    seen, model = divided.opened, divided.model
    frozen = {
        i
        for i, call in enumerate(seen.calls)
        if call.units and not any(u.learnable and flags.is_on(u, model) for u in call.units)
    }
    learns = {i for i, call in enumerate(seen.calls) if call.units} - frozen
    inside = graph.descendants(seen, frozen) - graph.descendants(seen, learns)
    inside &= graph.ancestors(seen, frozen) - divided.head_calls
    # A frozen normalisation draws nothing.
    ops = [seen.calls[i].op for i in inside if not blocks.is_norm(seen.calls[i].op)]
    return sum(map(is_random, ops))
