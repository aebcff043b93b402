"""The first predictions: are they what the loss takes, and no worse than a guess?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import keras
import numpy as np

from finetune_keras import optimizers
from finetune_keras.check.findings import Finding
from finetune_keras.outputs import Output

__all__ = ["activation", "finite", "first_loss"]

# Random logits of deviation s cost s^2 / 2 more than a guess, so that 3 is s = 2.4: new layers on
# features of unit scale have about 1, and a fifth of such answers are wrong with certainty.
_WORSE = 3.0
# Predicting 0 costs variance + mean^2 of the targets: 10 is a mean of 3 deviations. The output's
# bias has to cover it, and with Adam it moves by one learning rate a step.
_FAR = 10.0
_FEW = 8  # examples; fewer have no variance to speak of


def activation(output: Output) -> Iterator[Finding]:
    """An output that is not what the loss takes it for."""
    loss = output.loss
    if loss is None or loss.family not in ("sparse", "one-hot", "binary"):
        return
    where = f"output {output.name!r}: " if output.name else ""
    squashed = output.activation in ("softmax", "sigmoid")
    if output.activation == "softmax" and output.size == 1:
        yield Finding(
            "activation",
            f"{where}a softmax over one value is always 1, so nothing is learned",
            "activation='sigmoid' for a yes-or-no question, or one output for each class",
        )
    if squashed and loss.from_logits:
        yield Finding(
            "activation",
            f"{where}the output is a {output.activation} and {loss.name} has from_logits=True: it "
            "is applied twice, and the loss stays high",
            f"{loss.name}(), or an output without activation",
        )
    elif output.activation == "linear" and not loss.from_logits:
        wanted = "sigmoid" if loss.family == "binary" else "softmax"
        yield Finding(
            "activation",
            f"{where}the output has no activation and {loss.name} takes probabilities: values "
            "outside 0 to 1 are cut off and get no gradient",
            f"{loss.name}(from_logits=True), or activation={wanted!r} on the output",
        )


def finite(outputs: list[tuple[Output, np.ndarray]]) -> Iterator[Finding]:
    """Predictions that are NaN though the inputs are not."""
    for output, predicted in outputs:
        if predicted.dtype.kind == "f" and not np.isfinite(predicted).all():
            where = f"output {output.name!r}" if output.name else "the output"
            yield Finding(
                "nan",
                f"{where} is NaN or infinite on inputs that are not: the weights are broken, or a "
                "value overflows in float16",
                "load the weights anew and lower the learning rate",
            )


def first_loss(
    model: keras.Model, output: Output, y: np.ndarray | None, predicted: np.ndarray
) -> Iterator[Finding]:
    """A first loss much worse than that of a guess; only before the first step."""
    loss = output.loss
    if loss is None or y is None or not len(y) or not model.compiled or model.optimizer is None:
        return
    if int(keras.ops.convert_to_numpy(optimizers.innermost(model.optimizer).iterations)):
        return
    where = f"output {output.name!r}: " if output.name else ""
    if loss.family == "regression":
        yield from _far(loss.name, where, y, predicted)
        return
    guess = {
        "SparseCategoricalCrossentropy": math.log(max(output.size, 1)),
        "CategoricalCrossentropy": math.log(max(output.size, 1)),
        "BinaryCrossentropy": math.log(2),
    }.get(loss.name)
    if guess is None:
        return
    if loss.family == "binary" and y.size == predicted.size:
        y = y.reshape(predicted.shape)  # (batch,) for (batch, 1)
    with keras.StatelessScope():
        value = loss.function(
            keras.ops.convert_to_tensor(y), keras.ops.convert_to_tensor(predicted)
        )
        value = float(np.mean(keras.ops.convert_to_numpy(value)))
    if value > guess + _WORSE:
        yield Finding(
            "first_loss",
            f"{where}the first loss is {value:.3g} where a guess has {guess:.3g}: inputs or "
            "features are of a large scale, or the labels in another order than the head's",
            "look at the preprocessing and the order of the classes; a last layer that starts near "
            "zero, as in heads.Classification, begins at a guess",
        )


def _far(name: str, where: str, y: np.ndarray, predicted: np.ndarray) -> Iterator[Finding]:
    if name not in ("MeanSquaredError", "MeanAbsoluteError", "Huber", "LogCosh"):
        return  # relative errors have another guess
    if len(y) < _FEW or y.size != predicted.size:
        return
    y, predicted = (a.astype("float64").reshape(len(y), -1) for a in (y, predicted))
    variance = float(y.var(axis=0).mean())
    error = float(((y - predicted) ** 2).mean())
    if variance > 0 and error > _FAR * variance:
        # Which of the two is large: what is to be predicted, or what is predicted?
        targets = float((y**2).mean()) > float((predicted**2).mean())
        yield Finding(
            "first_loss",
            f"{where}the first squared error is {error:.3g} where the mean of the targets would "
            f"have {variance:.3g} (their mean is {y.mean():.3g}, their deviation "
            f"{math.sqrt(variance):.3g})",
            "standardise the targets, (y - mean) / deviation"
            if targets
            else "look at the preprocessing: inputs or features are of a large scale",
        )
