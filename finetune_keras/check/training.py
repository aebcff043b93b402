"""What the next ``fit`` would train, and how."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from finetune_keras import _private, graph, optimizers, record
from finetune_keras.check.findings import Finding
from finetune_keras.compile import backbone_learns

__all__ = ["compiled", "flags", "norms", "rate"]

# Of ImageNet's error with ResNet-50, 23.6 % at 32 images a normalisation, 16 cost 0.1 points, 8
# cost 1.2 and 4 cost 3.7 (Wu and He 2018, table 2, arXiv:1803.08494).
_SMALL = 16


def compiled(model: keras.Model) -> Iterator[Finding]:
    """A model that cannot be fitted, or of which nothing would learn."""
    if not model.compiled or model.optimizer is None:
        yield Finding(
            "compile",
            "the model is not compiled, so fit raises",
            "finetune_keras.compile(model, loss=...), or model.compile",
        )
    if not model.trainable_variables:
        yield Finding(
            "frozen",
            "nothing learns: all layers are frozen",
            "finetune_keras.thaw(model, select.head())",
        )


def flags(model: keras.Model) -> Iterator[Finding]:
    """``trainable`` flags and LoRA, changed since the optimizer was built."""
    if not model.compiled or model.optimizer is None or not model.optimizer.built:
        return
    units = graph.opened(model).units
    known = {id(v) for v in _private.built_on(optimizers.innermost(model.optimizer))}
    now = {id(v) for v in model.trainable_variables}
    if not now:
        return  # said already
    lora = _lora_variables(model)
    joined = [u for u in units if id(u.variable) in now - known]
    late = _layers(u for u in joined if id(u.variable) in lora)
    fix = "finetune_keras.compile(model)"
    if late:
        yield Finding(
            "lora",
            f"LoRA was enabled after compile in {_shown(late)}: the optimizer does not know its "
            "weights, so that they never learn or fit raises",
            fix,
        )
    thawed = _layers(u for u in joined if id(u.variable) not in lora)
    # LoRA freezes the kernel beside it; that is no change of the user's.
    with_lora = {name for name, _ in _lora_layers(model)}
    gone = (u for u in units if id(u.variable) in known - now)
    frozen = [name for name in _layers(gone) if name not in with_lora]
    if thawed or frozen:
        what = [
            f"{word} {_shown(names)}"
            for word, names in (("thawed", thawed), ("frozen", frozen))
            if names
        ]
        yield Finding(
            "flags",
            f"trainable was changed by hand since compile ({'; '.join(what)}): fit ignores that or "
            "raises",
            fix,
        )


def _lora_layers(model: keras.Model) -> list[tuple[str, keras.layers.Layer]]:
    return [
        (path, layer)
        for path, layer in graph.opened(model).layers
        if getattr(layer, "lora_enabled", False)
    ]


def _lora_variables(model: keras.Model) -> set[int]:
    return {
        id(v) for _, x in _lora_layers(model) for v in x.trainable_variables if "lora" in v.name
    }


def _layers(units) -> list[str]:
    return list(dict.fromkeys(u.path.rsplit("/", 1)[0] for u in units))


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - 3} more layers" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def norms(model: keras.Model, batch: int) -> Iterator[Finding]:
    """Batch normalisations that would learn from batches too small for statistics."""
    if batch >= _SMALL or not model.trainable_variables:
        return
    live = [
        path
        for path, layer in graph.opened(model).layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    if live and model.trainable:
        yield Finding(
            "norms",
            f"{len(live)} batch normalisations ({_shown(live[:1])}"
            f"{', ...' if len(live) > 1 else ''}) learn from batches of {batch}, whose statistics "
            f"are noise: from {_SMALL} on they are good enough",
            "finetune_keras.freeze(model, select.norms()), thaw(..., norms=False), or a larger "
            "batch",
        )


def rate(model: keras.Model) -> Iterator[Finding]:
    """A learning rate at which nothing learns, or at which what was pretrained is lost."""
    if not model.compiled or model.optimizer is None or not model.trainable_variables:
        return
    now, kind = optimizers.rate(model.optimizer), type(optimizers.innermost(model.optimizer))
    if now == 0 and not optimizers.scheduled(model.optimizer):
        yield Finding(
            "rate",
            "the learning rate is 0, so nothing learns",
            "finetune_keras.compile(model, learning_rate=1e-3)",
        )
    found = record.read(model)
    pretrained = found is not None and found.origin and "weights=None" not in found.origin
    # Of Adam and its kin a step is as long as the rate, whatever the gradient; networks have been
    # fine-tuned by SGD at any rate up to 0.1. Many survive Adam's default itself.
    long = issubclass(kind, keras.optimizers.Adam | keras.optimizers.Nadam | keras.optimizers.Lion)
    too_high = now > 1.001 * optimizers.default_rate(model.optimizer)
    if pretrained and long and too_high and backbone_learns(model):
        low = optimizers.open_rate(model.optimizer)
        yield Finding(
            "rate",
            f"{kind.__name__} at a learning rate of {now:.3g} on a pretrained backbone that "
            "learns: a few steps undo the pretraining",
            f"finetune_keras.compile(model, learning_rate={low:.3g})",
        )
