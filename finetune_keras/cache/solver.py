"""A linear probe solved, not trained.

Where one dense layer learns on features that do not change, its loss is convex. scikit-learn finds
the optimum, with a penalty chosen from a small grid, and nobody has to choose rate and epochs.

The penalty is ``l2 / 2 * sum(kernel**2)`` beside the *sum* of the losses of all examples (scikit-
learn's ``C`` is ``1 / l2``; of a squared error half is meant, and ``l2`` is the ``alpha`` of
``Ridge``). It acts on the kernel for features that are centred and divided by one number, their
root mean square deviation, so that one grid fits all backbones; both are then folded into kernel
and bias. Not divided each by its own: among the features of a network those that hardly vary tell
least, and with few examples they would be blown up to the size of the others.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from finetune_keras.cache.answers import features, labelled, loss
from finetune_keras.cache.probe import Probe, solvable

__all__ = ["GRID", "Probe", "Solution", "solvable", "solve"]

GRID = (1e4, 1e3, 1e2, 1e1, 1e0, 1e-1, 1e-2)

_FOLDS = 5
_MANY = 20_000  # examples, from which one fold of the five is scored
_LARGE = 1 << 26  # numbers in the features, above which they are not copied to float64
_THIN = 1 << 22  # numbers in the features, below which products are too small for two threads
_STEPS = 5000  # after which scikit-learn gives up
_NEVER = 30.0  # in place of infinity: a logit that is as good as impossible, e**-30


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """The optimum.

    Attributes:
        kernel: float32, shape ``(features, units)``, for features as they are.
        bias: float32, shape ``(units,)``; ``None`` for a layer without.
        l2: the penalty that was chosen.
        scores: each penalty with its loss on examples left out (log loss, or mean squared error),
            in the order tried; empty if there was nothing to score on.
        folds: of the cross-validation; 1 if one fifth was left out; 0 if validation data were
            given, or there was nothing to score on.
        iterations: of the last fit.
        converged: whether it came to its end.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    l2: float
    scores: tuple[tuple[float, float], ...]
    folds: int
    iterations: int
    converged: bool

    def __str__(self) -> str:
        """What was chosen and by what."""
        if not self.scores:
            by = "the middle of the grid, as no class has two examples to leave one out"
        else:
            where = {0: "validation data", 1: "a fifth left out"}
            on = where.get(self.folds, f"{self.folds} folds")
            by = f"loss {dict(self.scores)[self.l2]:.4g} on {on}, best of {len(self.scores)}"
        end = "converged" if self.converged else "not converged"
        return f"solved with l2={self.l2:g} ({by}); {end} after {self.iterations} iterations"

    def put(self, probe: Probe) -> None:
        """Writes kernel and bias into the layer.

        Raises:
            ValueError: if the layer has another shape.
        """
        layer = probe.layer
        shapes = [tuple(v.shape) for v in layer.weights]
        values = [v for v in (self.kernel, self.bias) if v is not None]
        if shapes != [v.shape for v in values]:
            raise ValueError(
                f"the solution has shapes {[v.shape for v in values]}; the layer {layer.name!r} "
                f"has {shapes}: solve for this layer"
            )
        for variable, value in zip(layer.weights, values, strict=True):
            variable.assign(value.copy())


def solve(
    probe: Probe,
    x: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    validation: tuple | None = None,
    grid: Sequence[float] | None = None,
    seed: int = 0,
) -> Solution:
    """The kernel and bias that minimise the loss of a `Probe` and an L2 penalty.

    Penalties are compared by the loss on ``validation``, or by cross-validation, in five folds
    with the shares of the classes kept (fewer where a class has fewer examples; one fifth left
    out from 20,000 examples on). Examples of a class that the others lack are not scored. Then it
    is fitted on all of ``x``, never on the validation data.

    The penalty is on the kernel for features that are centred and of deviation 1 over all, see
    `finetune_keras.cache.solver`; the layer's own regularisers are ignored. Without a bias,
    features are not centred.

    A class that has no example gets a kernel of 0 and a bias that makes it improbable: no more
    than e**-30 as likely as the likeliest class (without a bias it is only never the likeliest).

    Args:
        probe: from `solvable`.
        x: features, shape ``(examples, ...)``, flattened; any float dtype.
        y: labels as the loss takes them.
        sample_weight: one an example; multiplies the class weights of the loss.
        validation: features and labels, and weights if there are any, to choose the penalty by.
        grid: penalties; by default seven from 1e4 to 1e-2.
        seed: of the folds.

    Returns:
        The solution; `Solution.put` writes it into the layer.

    Raises:
        ValueError: if features, labels or grid do not fit.

    Examples:
        >>> import keras
        >>> suffix = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> probe = solvable(suffix, "mse")
        >>> x = np.arange(20.0)[:, None]
        >>> solution = solve(probe, x, 3 * x + 1, grid=[1e-6])
        >>> solution.put(probe)
        >>> float(suffix.predict(np.array([[100.0]]), verbose=0)[0, 0].round(2))
        301.0
    """
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    x = features(probe, x)
    target, weight = labelled(probe, x, y, sample_weight)
    grid = _checked(grid)
    # Thousands of products with a few columns: threads would wait for each other in each, on a
    # busy machine for a hundred times as long as the products take.
    with threadpool_limits(1 if x.size < _THIN else None, user_api="blas"):
        return _solved(probe, x, target, weight, validation, grid, seed)


def _solved(
    probe: Probe,
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    validation: tuple | None,
    grid: Sequence[float],
    seed: int,
) -> Solution:
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) not in (2, 3):
            raise ValueError(
                "validation is features and labels, and weights if there are any; given "
                f"{type(validation).__name__}"
            )
        other = features(probe, validation[0])
        pairs = [(x, target, weight, other, *labelled(probe, other, *validation[1:]))]
        folds = 0
    else:
        rows = _folds(probe, target, weight, seed)
        # One at a time: each is a copy of the features.
        pairs = ((x[a], target[a], weight[a], x[b], target[b], weight[b]) for a, b in rows)
        folds = len(rows)
    totals = np.zeros((2, len(grid)))
    for train_x, train_y, train_w, test_x, test_y, test_w in pairs:
        standard = _Standard(train_x, train_w, probe.layer.use_bias)
        test_x = standard(test_x)
        fits = _path(probe, standard(train_x), train_y, train_w, grid, tol=1e-6)
        for i, fit in enumerate(fits):
            logits = test_x @ fit.kernel + fit.bias
            totals[:, i] += loss(probe, logits, test_y, test_w, train_y[train_w > 0])
    scored = totals[1].min() > 0
    scores = totals[0] / np.where(totals[1] > 0, totals[1], 1.0)
    best = int(np.argmin(scores)) if scored else len(grid) // 2
    standard = _Standard(x, weight, probe.layer.use_bias)
    if x.size <= _LARGE:
        x = x.astype("float64")
    (fit,) = _path(probe, standard(x), target, weight, grid[best : best + 1], tol=1e-8)
    kernel, bias = standard.folded(fit)
    return Solution(
        kernel=kernel.astype("float32"),
        bias=bias.astype("float32") if probe.layer.use_bias else None,
        l2=grid[best],
        scores=tuple(zip(grid, map(float, scores), strict=True)) if scored else (),
        folds=folds if scored else 0,
        iterations=fit.iterations,
        converged=fit.converged,
    )


@dataclasses.dataclass(frozen=True)
class _Fit:
    kernel: np.ndarray
    bias: np.ndarray
    iterations: int
    converged: bool


class _Standard:
    """To mean 0, each feature, and a mean square of 1 over all of them."""

    def __init__(self, x: np.ndarray, weight: np.ndarray, centred: bool) -> None:
        weight = weight.sum(axis=1) if weight.ndim > 1 else weight
        share = weight / weight.sum()
        self.centred = centred
        self.mean = share.astype(x.dtype) @ x
        rest = x - self.mean
        square = np.einsum("ij,ij->i", rest, rest, dtype=x.dtype) @ share / x.shape[1]
        self.scale = float(np.sqrt(square)) or 1.0  # nothing changes: nothing to scale

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean if self.centred else x) / x.dtype.type(self.scale)

    def folded(self, fit: _Fit) -> tuple[np.ndarray, np.ndarray]:
        kernel = fit.kernel / self.scale
        return kernel, fit.bias - self.mean @ kernel if self.centred else fit.bias


def _path(
    probe: Probe, x: np.ndarray, y: np.ndarray, w: np.ndarray, grid: Sequence[float], tol: float
) -> Iterator[_Fit]:
    """A fit for each penalty, from strong to weak, each started from the one before."""
    if probe.task == "regression":
        yield from (_ridge(probe, x, y, w, l2) for l2 in grid)
        return
    x, basis = _coordinates(x)
    classes = probe.layer.units if probe.task == "classification" else 2
    # Sigmoids do not know of each other.
    columns = [(y, w)] if y.ndim == 1 else list(zip(y.T.astype("int64"), w.T, strict=True))
    problems = [_Logistic(probe, x, *c, classes, tol) for c in columns]
    for l2 in grid:
        fits = [p(l2) for p in problems]
        if y.ndim > 1:  # the logit of yes against no
            fits = [
                dataclasses.replace(
                    f, kernel=f.kernel[:, 1:] - f.kernel[:, :1], bias=f.bias[1:] - f.bias[:1]
                )
                for f in fits
            ]
        kernel = np.concatenate([f.kernel for f in fits], axis=1)
        yield _Fit(
            kernel if basis is None else basis @ kernel,
            np.concatenate([f.bias for f in fits]),
            max(f.iterations for f in fits),
            all(f.converged for f in fits),
        )


def _coordinates(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Far fewer examples than features, in an orthonormal basis of the space that they span.

    The optimum lies in that space, and loss and penalty are the same there: a problem of so many
    features as there are examples.

    Returns:
        The coordinates, and the basis; ``x`` as it is and ``None`` where little would be saved.
    """
    if 2 * len(x) > x.shape[1]:
        return x, None
    basis, coordinates = np.linalg.qr(x.T)
    return np.ascontiguousarray(coordinates.T), basis


class _Logistic:
    """One softmax; of two classes as the two halves of a sigmoid."""

    def __init__(self, probe, x, y, w, classes: int, tol: float) -> None:
        from sklearn.linear_model import LogisticRegression

        kept = w > 0
        self.x, self.y, self.w = (x, y, w) if kept.all() else (x[kept], y[kept], w[kept])
        self.classes = classes
        self.sigmoid = probe.task != "classification"
        self.seen = np.unique(self.y)
        self.model = LogisticRegression(
            fit_intercept=probe.layer.use_bias, tol=tol, max_iter=_STEPS, warm_start=True
        )

    def __call__(self, l2: float) -> _Fit:
        from sklearn.exceptions import ConvergenceWarning

        kernel = np.zeros((self.x.shape[1], self.classes))
        bias = np.full(self.classes, -_NEVER if self.model.fit_intercept else 0.0)
        if len(self.seen) < 2:
            bias[self.seen] = 0.0
            return _Fit(kernel, bias, 0, True)
        # A softmax of two halves has half the square of its difference.
        halves = len(self.seen) == 2 and not self.sigmoid
        self.model.set_params(C=(2.0 if halves else 1.0) / l2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            self.model.fit(self.x, self.y, sample_weight=self.w)
        coef, free = self.model.coef_, np.atleast_1d(self.model.intercept_)
        if len(self.seen) == 2:
            coef, free = np.stack([-coef[0], coef[0]]) / 2, np.array([-1.0, 1.0]) * free[0] / 2
        # The kernels of a softmax under L2 sum to 0. With biases that do so too, the greatest
        # logit is never below 0, and one of -30 stays improbable wherever the features lie.
        kernel[:, self.seen], bias[self.seen] = coef.T, free - free.mean()
        failed = any(issubclass(c.category, ConvergenceWarning) for c in caught)
        return _Fit(kernel, bias, int(np.max(self.model.n_iter_)), not failed)


def _ridge(probe: Probe, x: np.ndarray, y: np.ndarray, w: np.ndarray, l2: float) -> _Fit:
    from sklearn.linear_model import Ridge

    model = Ridge(l2, fit_intercept=probe.layer.use_bias).fit(x, y, sample_weight=w)
    bias = np.broadcast_to(model.intercept_, probe.layer.units).astype("float64")
    return _Fit(np.reshape(model.coef_, (probe.layer.units, -1)).T, bias, 0, True)


def _folds(
    probe: Probe, y: np.ndarray, w: np.ndarray, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows to train and to score on; none if that leaves nothing to learn from."""
    from sklearn.model_selection import KFold, StratifiedKFold

    rows = np.flatnonzero(w if w.ndim == 1 else w.any(axis=1))
    if probe.task in ("classification", "binary"):
        classes = y.reshape(len(y))[rows]
        counts = np.unique(classes, return_counts=True)[1]
        least = min(counts[counts > 1], default=0)  # a single one is trained on or not scored
        kind = StratifiedKFold
    else:
        least, kind, classes = len(rows), KFold, None
    if least < 2:
        return []
    folds = kind(min(_FOLDS, int(least)), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        found = [(rows[a], rows[b]) for a, b in folds.split(rows, classes)]
    return found[:1] if len(rows) > _MANY else found


def _checked(grid: Sequence[float] | None) -> tuple[float, ...]:
    values = GRID if grid is None else tuple(grid)
    fits = values and all(
        isinstance(v, int | float | np.number) and np.isfinite(v) and v > 0 for v in values
    )
    if not fits:
        raise ValueError(f"grid is penalties above 0, such as [10, 1, 0.1]; given {grid!r}")
    return tuple(sorted({float(v) for v in values}, reverse=True))
