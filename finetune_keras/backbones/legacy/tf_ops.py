"""TensorFlow's functions that Keras 2 wrapped into layers, as operations of Keras 3.

``x / 127.5 - 1`` on a symbolic tensor became a layer ``TFOpLambda`` with the function's name and
its keyword arguments, and ``x[..., ::-1]`` a ``SlicingOpLambda``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from finetune_keras._errors import WeightsError, nearest, sentence

__all__ = ["KINDS", "call"]

KINDS = ("TFOpLambda", "SlicingOpLambda", "InstanceProperty", "ClassMethod", "InstanceMethod")


def _reduce(operation: Callable) -> Callable:
    # The names of TensorFlow's arguments; `input_tensor` is what the layer was called on.
    return lambda x, axis=None, keepdims=False: operation(
        x, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims
    )


def _same(operation: Callable) -> Callable:
    return lambda x, **same: operation(x, **same)


def _bias_add(value, bias, data_format=None):
    if data_format not in (None, "NHWC", "NWC", "NDHWC"):
        raise WeightsError(f"tf.nn.bias_add with data_format={data_format!r} cannot be read")
    return ops.add(value, _array(bias))


def _resize(images, size, method="bilinear", preserve_aspect_ratio=False, antialias=False):
    if preserve_aspect_ratio:
        raise WeightsError("tf.image.resize with preserve_aspect_ratio cannot be read")
    return ops.image.resize(
        images, tuple(size), interpolation=method, antialias=antialias, data_format="channels_last"
    )


def _matmul(a, b, transpose_a=False, transpose_b=False):
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _items(x, slice_spec):
    def one(item):
        if isinstance(item, dict) and "start" in item:
            return slice(item["start"], item["stop"], item["step"])
        if isinstance(item, dict):
            return {"__ellipsis__": Ellipsis}[item["class_name"]]
        return item

    items = [one(item) for item in slice_spec]
    back = [i for i, item in enumerate(items) if item == slice(None, None, -1)]
    if back:  # PyTorch has no negative steps
        dots = items.index(Ellipsis) if Ellipsis in items else len(items)
        x = ops.flip(x, axis=tuple(i if i < dots else i - len(items) for i in back))
        items = [slice(None) if i in back else item for i, item in enumerate(items)]
    return x if all(i is Ellipsis or i == slice(None) for i in items) else x[tuple(items)]


_TWO = {
    ("add", "__operators__.add", "math.add"): ops.add,
    ("subtract", "math.subtract", "__operators__.sub"): ops.subtract,
    ("multiply", "math.multiply", "__operators__.mul"): ops.multiply,
    ("divide", "math.divide", "math.truediv", "realdiv"): ops.divide,
    ("math.floordiv",): ops.floor_divide,
    ("pow", "math.pow"): ops.power,
    ("math.maximum", "maximum"): ops.maximum,
    ("math.minimum", "minimum"): ops.minimum,
}
_ONE = {
    ("nn.relu",): ops.relu,
    ("nn.relu6",): ops.relu6,
    ("nn.elu",): ops.elu,
    ("nn.selu",): ops.selu,
    ("nn.silu", "nn.swish"): ops.silu,
    ("nn.softplus", "math.softplus"): ops.softplus,
    ("nn.sigmoid", "math.sigmoid", "sigmoid"): ops.sigmoid,
    ("nn.tanh", "math.tanh", "tanh"): ops.tanh,
    ("math.sqrt", "sqrt"): ops.sqrt,
    ("math.rsqrt",): ops.rsqrt,
    ("math.square", "square"): ops.square,
    ("math.exp", "exp"): ops.exp,
    ("math.log",): ops.log,
    ("math.abs", "abs"): ops.abs,
    ("math.negative", "negative"): ops.negative,
    ("math.sign", "sign"): ops.sign,
    ("identity", "convert_to_tensor", "stop_gradient"): lambda x: x,
}
_MORE: dict[tuple[str, ...], Callable] = {
    ("nn.softmax",): lambda logits, axis=-1: ops.softmax(logits, axis=-1 if axis is None else axis),
    ("nn.leaky_relu",): lambda features, alpha=0.2: ops.leaky_relu(features, negative_slope=alpha),
    ("nn.gelu",): lambda features, approximate=False: ops.gelu(features, approximate=approximate),
    ("nn.bias_add",): _bias_add,
    ("math.reduce_mean", "reduce_mean"): _reduce(ops.mean),
    ("math.reduce_sum", "reduce_sum"): _reduce(ops.sum),
    ("math.reduce_max", "reduce_max"): _reduce(ops.max),
    ("math.reduce_min", "reduce_min"): _reduce(ops.min),
    ("math.l2_normalize", "nn.l2_normalize", "linalg.l2_normalize"): (
        lambda x, axis=None, epsilon=1e-12: ops.normalize(x, axis=axis, order=2)
    ),
    ("concat",): lambda values, axis: ops.concatenate(values, axis=axis),
    ("stack",): lambda values, axis=0: ops.stack(values, axis=axis),
    ("reshape",): lambda tensor, shape: ops.reshape(tensor, shape),
    ("transpose",): lambda a, perm=None: ops.transpose(a, perm),
    ("expand_dims",): lambda input, axis=None: ops.expand_dims(input, axis),  # noqa: A006
    ("squeeze",): lambda input, axis=None: ops.squeeze(input, axis),  # noqa: A006
    ("tile",): lambda input, multiples: ops.tile(input, multiples),  # noqa: A006
    ("cast",): lambda x, dtype: ops.cast(x, dtype),
    ("clip_by_value",): lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    ("image.resize",): _resize,
    ("linalg.matmul", "matmul"): _matmul,
    ("__operators__.getitem",): _items,
}
_ALL = {
    name.lower(): (function, two)
    for table, two in ((_TWO, True), (_ONE, False), (_MORE, False))
    for names, function in table.items()
    for name in names
}


def call(spec: dict[str, Any], x: Any, arguments: dict[str, Any], name: str) -> Any:
    """What the layer of ``spec`` computes on ``x``: a symbolic tensor, several, or a number.

    The operation stands in a small nested model, which can bear the layer's name.

    Raises:
        WeightsError: if the function is not known.

    Examples:
        >>> import keras
        >>> spec = {"class_name": "TFOpLambda", "config": {"function": "math.truediv"}}
        >>> x = keras.Input((3,))
        >>> keras.Model(x, call(spec, x, {"y": 4.0, "name": None}, "scaled")).layers[-1].name
        'scaled'
    """
    config = spec["config"]
    wanted = str(config.get("function", spec["class_name"]))
    known = wanted.removeprefix("compat.v1.")
    if known not in _ALL:
        raise WeightsError(
            f"the layer {name!r} calls tf.{wanted}, for which no operation of Keras is known; "
            f"{nearest(known, _ALL)}"
        )
    function, two = _ALL[known]
    arguments = {k: v for k, v in arguments.items() if k != "name"}
    both = (x, arguments)
    outside = [t for t in keras.tree.flatten(both) if keras.utils.is_keras_tensor(t)]
    outside = list({id(t): t for t in outside}.values())
    inside = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in outside]
    swap = {id(t): new for t, new in zip(outside, inside, strict=True)}
    x, arguments = keras.tree.map_structure(lambda t: swap.get(id(t), t), both)
    try:
        output = function(_array(x), _array(arguments["y"])) if two else function(x, **arguments)
    except (TypeError, KeyError, ValueError) as e:
        raise WeightsError(
            f"the layer {name!r} calls tf.{wanted} with {sorted(arguments)}: {sentence(e)}"
        ) from e
    single = len(inside) == 1
    model = keras.Model(inside[0] if single else inside, output, name=name)
    return model(outside[0] if single else outside)


def _array(x: Any) -> Any:
    """Lists of numbers as arrays, which operations take."""
    return np.array(x, "float32") if isinstance(x, list) else x
