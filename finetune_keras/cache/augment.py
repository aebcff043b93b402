"""The random layers at the start of a model, which augment its inputs."""

from __future__ import annotations

import keras

from finetune_keras import graph
from finetune_keras.cache.cut import cut
from finetune_keras.tape import is_random

__all__ = ["augmented", "augments"]


def augments(model: keras.Model) -> tuple[str, ...]:
    """Paths of the random operations before all weights of a functional model."""
    seen = graph.opened(model)
    return tuple(seen.calls[i].path for i in sorted(_found(seen)))


def augmented(model: keras.Model) -> tuple[keras.Model | None, keras.Model]:
    """A model in two: the augmentation at its start, and the rest.

    Returns:
        ``(augmentation, rest)``; the first is ``None`` if there is no augmentation.
    """
    seen = graph.opened(model)
    random = _found(seen)
    if not random:
        return None, model
    first, rest, _ = cut(model, graph.ancestors(seen, random))
    return first, rest


def _found(seen: graph.Opened) -> set[int]:
    random = {i for i, call in enumerate(seen.calls) if is_random(call.op)}
    weighted = [i for i, call in enumerate(seen.calls) if call.units]
    return random - graph.descendants(seen, weighted)
