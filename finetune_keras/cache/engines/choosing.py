"""Which engine computes the features: the one that was asked for, or the fastest that agrees."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import weakref
from collections.abc import Callable, Sequence

import keras
import numpy as np

from finetune_keras._errors import nearest
from finetune_keras.cache.engines import exact, exported
from finetune_keras.cache.engines.engine import Engine, EngineRecord, Run, relative_error
from finetune_keras.cache.fingerprint import weights

__all__ = ["NAMES", "choose"]

# By the speed that is to be expected, so that what is slower is stopped early.
_EXPORTED: dict[str, Callable[[exported.Exports], Run]] = {
    "openvino-bfloat16": functools.partial(exported.openvino, precision="bf16"),
    "openvino": functools.partial(exported.openvino, precision="f32"),
    "onnxruntime": exported.onnxruntime,
}

NAMES = ("keras", "auto", *_EXPORTED)
"""What `choose` takes as ``engine``."""

_SLOW = 3.0  # times the best so far: no further run
_ENOUGH = 2.0  # seconds spent on timing one engine


@dataclasses.dataclass(frozen=True)
class _Chosen:
    key: tuple
    record: EngineRecord
    run: Run | None  # none for Keras: it would hold the model, and the model would never go


# The last engine of each model: an export takes seconds, and holds a copy of the weights.
_chosen: weakref.WeakKeyDictionary[keras.Model, _Chosen] = weakref.WeakKeyDictionary()


def choose(
    prefix: keras.Model,
    probe: Sequence[np.ndarray],
    engine: str = "keras",
    tolerance: float = 0.01,
) -> Engine:
    """The engine that computes the outputs of ``prefix``.

    The last engine of each model is kept while its weights, the shapes and the arguments stay the
    same, so that asking again costs only a checksum of the weights.

    Args:
        prefix: a functional model. It computes in inference mode, and nothing on it changes.
        probe: a full batch of the data, one array for each flat input in the order of
            ``prefix.inputs``. Later batches have the same shapes.
        engine: ``"keras"`` (exact); ``"openvino"``, ``"openvino-bfloat16"`` or ``"onnxruntime"``;
            or ``"auto"``, the fastest of all these on the probe that is installed and agrees with
            Keras.
        tolerance: how far another engine may be from Keras, as the relative error
            ``||keras - engine|| / ||keras||`` of each output on the probe.

    Raises:
        ImportError: if the engine that is named is not installed; it says how to install it.
        ValueError: for a name that does not exist, a probe that does not fit the model, or an
            engine that cannot run this model or does not agree with Keras.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> chosen = choose(model, [np.ones((8, 4), "float32")])
        >>> chosen.run([np.ones((8, 4), "float32")])[0].shape, str(chosen.record)
        ((8, 2), 'engine: keras')
    """
    if engine not in NAMES:
        raise ValueError(f"there is no engine {engine!r}: {nearest(str(engine), NAMES)}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance is {tolerance!r}, and a positive number is expected: 0.01")
    _check(prefix, probe)
    if engine == "keras":
        return Engine(EngineRecord(), exact.runner(prefix))
    shapes = tuple((a.shape, str(a.dtype)) for a in probe)
    key = (engine, tolerance, shapes, weights(prefix))
    known = _chosen.get(prefix)
    if known is None or known.key != key:
        _chosen.pop(prefix, None)  # before another copy of the weights is made
        names = tuple(_EXPORTED) if engine == "auto" else (engine,)
        known = _Chosen(key, *_compared(prefix, probe, names, tolerance, engine == "auto"))
        _chosen[prefix] = known
    return Engine(known.record, known.run or exact.runner(prefix))


def _check(prefix: keras.Model, probe: Sequence[np.ndarray]) -> None:
    inputs = list(prefix.inputs)
    if len(probe) != len(inputs):
        raise ValueError(
            f"the probe has {len(probe)} arrays and the model {len(inputs)} inputs: give one array "
            f"for each of {[t.name for t in inputs]}"
        )
    for array, t in zip(probe, inputs, strict=True):
        fits = array.ndim == len(t.shape) and len(array) == len(probe[0])
        if not fits or any(b not in (None, a) for a, b in zip(array.shape, t.shape, strict=True)):
            raise ValueError(
                f"the probe for input {t.name!r} has shape {array.shape}, and {tuple(t.shape)} is "
                f"expected with {len(probe[0])} examples, as in the first"
            )


def _compared(
    prefix: keras.Model,
    probe: Sequence[np.ndarray],
    names: Sequence[str],
    tolerance: float,
    auto: bool,
) -> tuple[EngineRecord, Run | None]:
    """The fastest of Keras and ``names``, or the one that was asked for."""
    own = exact.runner(prefix)
    expected = own(probe)
    dtypes = [x.dtype for x in expected]
    # Keras has had its first run. By name there is nothing to compare the speed to.
    best = _seconds(own, probe, math.inf) if auto else math.inf
    rate = len(probe[0]) / best
    chosen, run, agrees = EngineRecord("keras", 0.0, rate), None, False
    tried = [("keras", f"{rate:.1f} examples/s, exact")] if auto else []
    with exported.Exports(prefix, probe) as exports:
        for name in names:
            if auto and name == "onnxruntime" and agrees:
                # It is near OpenVINO in speed, and its export takes minutes and gigabytes.
                tried.append((name, "not tried, since OpenVINO agrees"))
                continue
            try:
                theirs = _like(_EXPORTED[name](exports), dtypes)
                first = time.perf_counter()
                error = relative_error(expected, theirs(probe))
                first = time.perf_counter() - first
            except ImportError as e:
                if not auto:
                    raise
                tried.append((name, _line(e)))
                continue
            except Exception as e:  # of the exporter or the runtime: they have no common class
                if not auto:
                    raise ValueError(_failed(name, e)) from e
                tried.append((name, _line(e)))
                continue
            if not error <= tolerance:
                if not auto:
                    raise ValueError(
                        f"engine {name!r} differs from Keras by a relative error of {error:.2g}, "
                        f"and the tolerance is {tolerance:g}: choose 'keras', which is exact"
                    )
                tried.append((name, f"relative error {error:.2g}, above {tolerance:g}"))
                continue
            agrees = True
            seconds = first if first > _SLOW * best else _seconds(theirs, probe, first)
            rate = len(probe[0]) / seconds
            tried.append((name, f"{rate:.1f} examples/s, relative error {error:.1e}"))
            if seconds < best:
                best, chosen, run = seconds, EngineRecord(name, error, rate), theirs
    return dataclasses.replace(chosen, tried=tuple(tried)), run


def _seconds(run: Run, probe: Sequence[np.ndarray], best: float) -> float:
    """The best time of up to three runs, fewer where they are long."""
    spent = 0.0
    for _ in range(3):
        began = time.perf_counter()
        run(probe)
        last = time.perf_counter() - began
        best, spent = min(best, last), spent + last
        if spent > _ENOUGH:
            break
    return best


def _like(run: Run, dtypes: Sequence[np.dtype]) -> Run:
    """The same in the dtypes that Keras gives, such as bfloat16."""
    return lambda arrays: [
        x.astype(d, copy=False) for x, d in zip(run(arrays), dtypes, strict=True)
    ]


def _line(e: Exception) -> str:
    """The first line of an exception that says something, not too long."""
    lines = [x.strip() for x in str(e).splitlines() if len(x.strip()) > 3]
    # OpenVINO begins with a line of its source, and lists what it cannot do after dashes.
    lines = [x[3:] for x in lines if x.startswith("-- ")] or lines
    text = lines[0] if lines else type(e).__name__
    text = text if len(text) <= 150 else text[:147] + "..."
    return text if isinstance(e, ImportError | exported.UnavailableError) else f"failed: {text}"


def _failed(name: str, e: Exception) -> str:
    why = _line(e)
    return f"engine {name!r} cannot run this model: {why}; choose 'keras' or 'auto'"
