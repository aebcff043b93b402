"""Gradient checkpointing: blocks whose activations are computed again for the backward pass.

After Chen, Xu, Zhang and Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost"
(arXiv:1604.06174). ``keras.RematScope`` does this by layer, but in Keras 3.15 it fails on
TensorFlow and JAX for layers that are called with ``training=``, as blocks are. Here the block is
made a pure function of its inputs and variables first, which ``keras.remat`` takes on every
backend; the states that it moves (seeds of dropout, statistics) come out as values, so that
computing it twice moves them once.
"""

from __future__ import annotations

import weakref
from typing import Any

import keras

from finetune_keras import _private, graph, tape

__all__ = ["recompute"]


def recompute(network: keras.Model) -> None:
    """Makes the blocks of ``network`` give up their activations after the forward pass.

    A block is a layer that holds layers, such as an encoder layer of a transformer. Nothing of it
    is kept in files.

    Raises:
        ValueError: if the network has no such layers, or computes in half precision on TensorFlow.
    """
    layers = [call.op for call in graph.opened(network).calls if tape.is_block(call.op)]
    if not layers:
        raise ValueError(
            f"remat=True computes the blocks of a transformer again, and {network.name!r} has no "
            "layer that holds a block: use a smaller batch with gradient_accumulation_steps=, "
            "freeze more, or dtype='mixed_bfloat16'"
        )
    halves = {"float16", "bfloat16"}.intersection(layer.compute_dtype for layer in layers)
    if halves and keras.backend.backend() == "tensorflow":
        # It ends the process where a block mixes precisions, as those of T5 and DINOv2 do.
        raise ValueError(
            f"remat=True and {halves.pop()} do not go together on TensorFlow, whose recompute_grad "
            "fails on blocks of mixed precision: use one of the two, or the JAX or PyTorch backend"
        )
    for layer in {id(layer): layer for layer in layers}.values():
        layer.call = _Recomputed(layer)


class _Recomputed:
    """Stands in for ``layer.call``."""

    def __init__(self, layer: keras.layers.Layer):
        self._layer = weakref.ref(layer)
        self._plain = type(layer).call
        self._inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        layer = self._layer()
        flat = keras.tree.flatten((args, kwargs))
        if self._inside or any(isinstance(x, keras.KerasTensor) for x in flat):
            return self._plain(layer, *args, **kwargs)
        at = [i for i, x in enumerate(flat) if keras.ops.is_tensor(x)]
        training = kwargs.get("training", _private.training_now(layer))
        variables = layer.variables
        learning = {id(v) for v in layer.trainable_variables}
        states = [v for v in variables if id(v) not in learning]

        def pure(values, *tensors):
            now = dict(zip(at, tensors, strict=True))
            given = [now.get(i, x) for i, x in enumerate(flat)]
            args_, kwargs_ = keras.tree.pack_sequence_as((args, kwargs), given)
            mapping = list(zip(variables, values, strict=True))
            self._inside = True
            try:
                with keras.StatelessScope(state_mapping=mapping) as scope:
                    # The whole layer, not its ``call``: the second time nobody else tells it
                    # whether this is training, and in which precision.
                    outputs = layer(*args_, **{**kwargs_, "training": training})
            finally:
                self._inside = False
            return outputs, [scope.get_current_value(v) for v in states]

        # Copies of the states: PyTorch assigns in place, and the second time needs the old ones.
        values = [
            value if id(v) in learning else keras.ops.copy(value)
            for v, value in zip(variables, _private.uncast(variables), strict=True)
        ]
        outputs, moved = keras.remat(pure)(values, *(flat[i] for i in at))
        for variable, value in zip(states, moved, strict=True):
            if value is not None:
                variable.assign(value)
        return outputs
