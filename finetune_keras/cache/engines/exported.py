"""Engines that run an exported copy of a model: OpenVINO and ONNX Runtime.

Keras exports, for one fixed batch size, into a folder that is removed once the runtime has read
it. From TensorFlow both runtimes fold frozen batch normalisation into the convolution before it;
from PyTorch, where Keras changes the layout in between, it stays a step of its own. There are as
many threads as the process may use cores.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune_keras import _optional
from finetune_keras.cache.engines.engine import Run

__all__ = ["Exports", "UnavailableError", "compiled", "onnxruntime", "openvino"]


class UnavailableError(Exception):
    """An engine that cannot be had on this machine or backend; the text says why."""


class Exports:
    """A model in the formats of other runtimes, each exported at most once.

    Args:
        model: the model. Nothing on it changes.
        probe: a full batch, which fixes the shapes.

    Attributes:
        shapes: of the inputs.
        dtypes: of the inputs.
        count: how many outputs are exported.
        order: where each output of the model is among its inputs and, after them, the exported
            outputs.
    """

    def __init__(self, model: keras.Model, probe: Sequence[np.ndarray]) -> None:
        # A bare model with flat ends: exporters differ in how they take dicts, and whatever they
        # leave behind is left there.
        inputs = list(model.inputs)
        order = {id(t): i for i, t in enumerate(inputs)}
        made = {id(t): t for t in model.outputs if id(t) not in order}
        # An output that is an input loses its name on the way, and a repeated one may come once.
        order.update((key, len(inputs) + i) for i, key in enumerate(made))
        self.order = [order[id(t)] for t in model.outputs]
        self.count = len(made)
        if made:
            self._model = keras.Model(inputs if len(inputs) > 1 else inputs[0], list(made.values()))
        self.shapes = [a.shape for a in probe]
        self.dtypes = [t.dtype for t in inputs]
        self._folder = tempfile.TemporaryDirectory(
            prefix="finetune_keras_", ignore_cleanup_errors=True
        )
        self._done: dict[str, Path | Exception] = {}

    def __enter__(self) -> Exports:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._folder.cleanup()

    def file(self, export_format: str, suffix: str) -> Path:
        """The file of a format. An export that failed fails again, and is not tried again."""
        if export_format not in self._done:
            path = Path(self._folder.name) / f"model{suffix}"
            try:
                self._export(path, export_format)
                self._done[export_format] = path
            except Exception as e:
                self._done[export_format] = e
        found = self._done[export_format]
        if isinstance(found, Exception):
            raise found
        return found

    def _export(self, path: Path, export_format: str) -> None:
        if not self.count:
            raise UnavailableError("the model returns its inputs")
        specs = [
            keras.InputSpec(shape=s, dtype=t.dtype, name=t.name)
            for s, t in zip(self.shapes, self._model.inputs, strict=True)
        ]
        signature = [specs] if len(specs) > 1 else specs
        with quiet(), _torch_flags(self._model):
            self._model.export(
                str(path), format=export_format, verbose=False, input_signature=signature
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No prints, warnings or log lines, those of C++ included."""
    sys.stderr.flush()
    kept, level = os.dup(2), logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as null, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(null.fileno(), 2)
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        logging.disable(level)


@contextlib.contextmanager
def _torch_flags(model: keras.Model) -> Iterator[None]:
    """Exporting calls ``eval()``, which sets a flag on every layer that the model shares."""
    if keras.backend.backend() != "torch":
        yield
        return
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def openvino(exports: Exports, precision: str) -> Run:
    """A pass by OpenVINO on the CPU.

    Args:
        exports: the model.
        precision: ``"f32"`` or ``"bf16"``.

    Raises:
        ImportError: if OpenVINO is not installed.
        UnavailableError: if the CPU has no bfloat16, or nothing exports from this backend.
    """
    model = compiled(exports, precision)
    dtypes = [i.element_type.to_dtype() for i in model.inputs]
    order = _in_order([o.names for o in model.outputs], exports.count)
    places = exports.order

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        batch = dict(enumerate(map(np.ascontiguousarray, arrays, dtypes)))
        found = model(batch, share_inputs=True, share_outputs=False)
        known = [*arrays, *(found[i] for i in order)]
        return [known[i] for i in places]

    return run


def compiled(exports: Exports, precision: str) -> Any:
    """The model as OpenVINO compiled it, for the shapes of the probe."""
    if keras.backend.backend() == "jax":
        raise UnavailableError("OpenVINO cannot read what Keras exports from JAX")
    ov = _openvino()
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UnavailableError("this CPU has no bfloat16 arithmetic")
    # Without it the file would stay mapped into memory, and could not be removed on Windows.
    core.set_property({"ENABLE_MMAP": False})
    model = core.read_model(exports.file("openvino", ".xml"))
    # PyTorch's come with any shape; normalisation folds, and layouts settle, in known ones only.
    model.reshape({i: list(s) for i, s in enumerate(exports.shapes)})
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    return core.compile_model(model, "CPU", config)


def _openvino() -> Any:
    """OpenVINO, which reports each import and conversion over the network if its telemetry
    package is found. It goes without where we are the ones who import it.
    """
    name = "openvino_telemetry"
    if "openvino" in sys.modules or name in sys.modules:
        return _optional.require("openvino", "openvino")
    sys.modules[name] = None  # "not installed", to an import statement
    try:
        return _optional.require("openvino", "openvino")
    finally:
        del sys.modules[name]


def _in_order(names: Sequence[set[str]], count: int) -> list[int]:
    """Where the outputs of the model are among the exported ones. From TensorFlow they come sorted
    by name (``Identity``, ``Identity_1``, ``Identity_10``, ``Identity_2``), together with whatever
    the graph computes and nobody reads.
    """
    numbers = [next(filter(None, map(_NAME.fullmatch, given)), None) for given in names]
    places = {int(m[1] or 0): i for i, m in enumerate(numbers) if m}
    if sorted(places) == list(range(count)):
        return [places[i] for i in range(count)]
    if len(names) != count:
        raise UnavailableError(f"the export has {len(names)} outputs, and the model {count}")
    return list(range(count))


_NAME = re.compile(r"Identity(?:_(\d+))?:0")

# What Keras' exporter imports.
_EXPORTER = {"tensorflow": "tf2onnx", "torch": "onnxscript"}


def onnxruntime(exports: Exports) -> Run:
    """A pass by ONNX Runtime on the CPU, in float32.

    Raises:
        ImportError: if ONNX Runtime, or what Keras needs for the export, is not installed.
        UnavailableError: if nothing exports from this backend.
    """
    backend = keras.backend.backend()
    if backend not in _EXPORTER:
        raise UnavailableError(
            f"exporting to ONNX from {backend} needs packages that no extra brings"
        )
    ort = _optional.require("onnxruntime", "onnx")
    with quiet():
        _optional.require(_EXPORTER[backend], "onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = _cores()
    path = exports.file("onnx", ".onnx")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    dtypes = [np.dtype(d) for d in exports.dtypes]
    places = exports.order

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        batch = map(np.ascontiguousarray, arrays, dtypes)
        known = [*arrays, *session.run(None, dict(zip(names, batch, strict=True)))]
        return [known[i] for i in places]

    return run


def _cores() -> int:
    """How many cores this process may use; ONNX Runtime would count those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
