"""From a model and raw inputs to names and confidences."""

from __future__ import annotations

import numbers
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from finetune_keras import graph, outputs
from finetune_keras.arrays import splits
from finetune_keras.check import shapes
from finetune_keras.check.findings import Finding
from finetune_keras.predict import images
from finetune_keras.predict.predictions import Prediction, Predictions

__all__ = ["Prediction", "Predictions", "predict"]


def predict(
    model: keras.Model,
    data: Any,
    *,
    top: int = 3,
    batch_size: int = 32,
    resize: str = "squash",
    interpolation: str = "bilinear",
    verbose: int | str = 0,
) -> Predictions | dict[str, Predictions]:
    """What a model says of each example, by name and with its confidence.

    Class names come from the model's record, which also plain ``keras.models.load_model`` keeps;
    logits become probabilities. Of a model that was not built here, what the output means is read
    off its last activation and its loss, and classes are called ``"0"``, ``"1"``, ...

    Args:
        model: a ``keras.Model``, compiled or not.
        data: what ``model.predict`` takes: arrays, a dict of arrays, a data set or generator of
            batches (labels in it are left out, in ``(x, y)`` too); one example without the batch
            axis; the path of an image or of a folder of images (all below it, sorted by
            folder and name), or a list of such paths. Strings for a model of text are texts.
        top: how many classes to name at most.
        batch_size: for arrays and files.
        resize: how image files are brought to the model's size, as in `finetune_keras.data.images`:
            ``"squash"``, ``"crop"`` or ``"pad"``. It should be what the model was trained with.
        interpolation: a name of Keras', such as ``"nearest"``. The defaults are those of
            ``keras.utils.image_dataset_from_directory``.
        verbose: 1 shows a progress bar.

    Returns:
        `Predictions`; of a model with several outputs a dict of them by the name of the output.

    Raises:
        TypeError: if ``model`` is no Keras model.
        ValueError: for inputs of another shape than the model's, a file that is missing or no
            image, a number out of range, and an output of which nothing tells what it means.

    Examples:
        >>> from finetune_keras import backbone, build, heads
        >>> head = heads.Classification(3, class_names=["cat", "dog", "fox"])
        >>> model = build(backbone("letters_resnet", input_shape=(24, 24, 3)), head)
        >>> found = predict(model, np.zeros((5, 24, 24, 3)), top=2)
        >>> len(found), len(found[0]), found.probabilities.shape
        (5, 2, (5, 3))
        >>> predict(model, np.zeros((24, 24, 3))).names[0] in head.class_names
        True
    """
    if not isinstance(model, keras.Model):
        hint = "; pass its .model" if isinstance(getattr(model, "model", None), keras.Model) else ""
        raise TypeError(f"expected a keras.Model; given a {type(model).__name__}{hint}")
    for what, value in (("top", top), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{what} must be an integer of 1 or more; given {value!r}")
    top, batch_size = int(top), int(batch_size)
    if several := splits(data):
        raise TypeError(f"the data are {several}")
    names: tuple[str, ...] | None = None
    if images.are_paths(data) and _takes_images(model):
        names, paths = images.files(data)
        parts = [
            model.predict(x, batch_size=batch_size, verbose=verbose)
            for x in images.batches(
                paths, _image_shape(model), batch_size, resize=resize, interpolation=interpolation
            )
        ]
        predicted = keras.tree.map_structure(lambda *p: np.concatenate(p), *parts)
    else:
        x, arrays = _inputs(model, data)
        size = {"batch_size": batch_size} if arrays else {}
        predicted = model.predict(x, verbose=verbose, **size)
    found = {
        output.name: _decoded(model, output, np.asarray(value), names, top)
        for output, (_, value) in zip(
            outputs.outputs(model, predicted),
            outputs.pairs(predicted),
            strict=True,
        )
    }
    several = isinstance(predicted, dict | list | tuple)
    if not several:
        return next(iter(found.values()))
    own = getattr(model, "output", None)  # in the order in which the model was made
    order = [k for k in own if k in found] if isinstance(own, dict) else []
    return {k: found[k] for k in [*order, *(k for k in found if k not in order)]}


def _takes_images(model: keras.Model) -> bool:
    return graph.is_functional(model) and len(model.inputs) == 1 and len(model.inputs[0].shape) == 4


def _image_shape(model: keras.Model) -> tuple:
    """Of the input; a KerasHub task that takes any size has one in its preprocessor."""
    shape = tuple(model.inputs[0].shape)
    size = getattr(getattr(model, "preprocessor", None), "image_size", None)
    if size is None:
        return shape
    last = keras.config.image_data_format() == "channels_last"
    return (None, *size, shape[-1]) if last else (None, shape[1], *size)


def _inputs(model: keras.Model, data: Any) -> tuple[Any, bool]:
    """What to give to ``model.predict``, and whether it is arrays."""
    own = getattr(model, "preprocessor", None) is not None  # a KerasHub task: raw inputs
    if isinstance(data, tuple) and len(data) in (2, 3) and _has_labels(model, data):
        data = _first(data)
    if images.are_paths(data):
        texts = [data] if isinstance(data, str) else list(data)
        if not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{model.name!r} takes no images, so that a path means nothing to it")
        if not own:
            _refuse(shapes.text(model, texts))
        return (texts if own else np.array(texts, dtype=object)), True
    leaves = keras.tree.flatten(data) if isinstance(data, dict | list | tuple) else [data]
    if leaves and all(np.isscalar(v) for v in leaves) and not isinstance(data, dict):
        data = np.asarray(data)  # nested lists of numbers
        leaves = [data]
    if not leaves or not all(hasattr(v, "shape") for v in leaves):
        if isinstance(data, dict | list | tuple):
            kind = type(next((v for v in leaves if not hasattr(v, "shape")), data)).__name__
            raise ValueError(f"the inputs are arrays, paths or texts; given a {kind} among them")
        if not (hasattr(data, "__iter__") or isinstance(data, keras.utils.PyDataset)):
            raise ValueError(
                f"the inputs are arrays, a data set, paths or texts; given a {type(data).__name__}"
            )
        if isinstance(data, types.GeneratorType):  # of which Keras takes tuples only
            return (b if isinstance(b, tuple) else (b,) for b in data), False
        if hasattr(data, "element_spec") and not own:  # a tf.data.Dataset tells without reading
            _check_shapes(model, _first(data.element_spec))
        return data, False
    if own or not graph.is_functional(model):
        return data, True
    if _single(model, data):
        data = keras.tree.map_structure(lambda v: keras.ops.convert_to_numpy(v)[None], data)
    _check_shapes(model, data)
    if any(not v.shape[0] for v in keras.tree.flatten(data)):
        raise ValueError("the inputs are empty: there are 0 examples")
    return data, True


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def _check_shapes(model: keras.Model, x: Any) -> None:
    _refuse(shapes.inputs(model, x))


def _refuse(found: Iterator[Finding]) -> None:
    for wrong in found:
        raise ValueError(f"{wrong.message}: {wrong.fix}")


def _has_labels(model: keras.Model, data: tuple) -> bool:
    """Whether a tuple is ``(x, y)`` rather than several inputs."""
    inputs = len(model.inputs) if graph.is_functional(model) else 1
    return inputs == 1 or isinstance(data[0], dict | list | tuple)


def _single(model: keras.Model, data: Any) -> bool:
    """Whether every input is of one example, without the batch axis."""
    wanted = {t.name: tuple(t.shape) for t in model.inputs}
    given = outputs.pairs(data, list(wanted))
    if len(given) != len(wanted):
        return False
    pairs = [
        (tuple(v.shape), wanted.get(name, shape))
        for (name, v), shape in zip(given, wanted.values(), strict=True)
    ]
    return all(len(g) == len(w) - 1 and shapes.fits((1, *g), w) for g, w in pairs) and not all(
        shapes.fits(g, w) for g, w in pairs
    )


def _decoded(
    model: keras.Model,
    output: outputs.Output,
    values: np.ndarray,
    names: tuple[str, ...] | None,
    top: int,
) -> Predictions:
    where = f"the output {output.name!r}" if output.name else "the output"
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(
            f"predict names one answer an example, and {where} of {model.name!r} has shape "
            f"{values.shape}: use model.predict"
        )
    if not output.kind or (output.kind != "regression" and not output.gives):
        raise ValueError(
            f"nothing tells what {where} of {model.name!r} means: it has no softmax or sigmoid at "
            "its end and no loss of Keras'; compile the model, or use model.predict"
        )
    values = values.astype("float32")
    if output.kind != "regression":
        values = _probabilities(output, values)
    return Predictions(
        kind=output.kind,
        values=values,
        class_names=_names(output, values.shape[1]),
        examples=names or tuple(map(str, range(len(values)))),
        top=top,
    )


def _probabilities(output: outputs.Output, values: np.ndarray) -> np.ndarray:
    if output.kind in ("binary", "multi_label"):
        if output.gives == "logits":
            values = np.exp(-np.logaddexp(0, -values))  # 1 / (1 + exp(-x)) without overflow
        return np.hstack([1 - values, values]) if output.kind == "binary" else values
    if output.gives == "logits":
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        values /= values.sum(axis=-1, keepdims=True)
    return values


def _names(output: outputs.Output, columns: int) -> tuple[str, ...]:
    names = output.recorded.class_names if output.recorded is not None else ()
    if output.kind == "binary" and len(names) == 1:
        return (f"not {names[0]}", names[0])
    return names if len(names) == columns else tuple(map(str, range(columns)))
