"""The only place that touches what Keras does not promise.

Each function reads one private attribute, says why nothing public gives it, and has a test in
``tests/test_private.py`` that fails as soon as Keras changes it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import keras

__all__ = [
    "built_on",
    "compile_arguments",
    "compile_call",
    "compiled_in_fit",
    "converted_families",
    "copy_decay_exclusions",
    "exclude_from_decay",
    "global_seeds",
    "in_safe_mode",
    "known_code",
    "layer_scale",
    "metric_direction",
    "own_weights",
    "rate_object",
    "set_global_seeds",
    "share_start",
    "start_of",
    "sublayers",
    "take_start",
    "tensors_read",
    "training_now",
    "uncast",
]

_reading = threading.RLock()  # of those in `tensors_read`


def sublayers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that ``layer`` holds directly, in the order in which it made them.

    ``Model.layers`` is public, but a layer that holds layers (attention, a transformer block)
    has no public list of them.
    """
    return list(layer._flatten_layers(include_self=False, recursive=False))


def own_weights(
    layer: keras.layers.Layer,
) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """The variables that ``layer`` itself made: those that may learn, and its statistics.

    Publicly a frozen kernel and a moving mean look alike (``trainable`` is false on both), and
    only one of them should come back to life on thaw.
    """
    weights = {id(v) for v in layer.weights}  # leaves seed and metric state out
    learnable = [v for v in layer._trainable_variables if id(v) in weights]
    statistics = [v for v in layer._non_trainable_variables if id(v) in weights]
    return learnable, statistics


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What ``model.compile`` was last called with, as the objects themselves.

    ``Model.get_compile_config()`` gives the same in serialised form, and a loss that is a plain
    Python function does not come back from that.
    """
    return dict(model._compile_config.config)


def compile_call(model: keras.Model) -> object:
    """An object that each call of ``model.compile`` makes anew.

    Nothing public tells one call from the next if the arguments are the same, and ``fit`` traces
    anew after each.
    """
    return model._compile_config


@contextlib.contextmanager
def compiled_in_fit(model: keras.Model) -> Iterator[None]:
    """A scope for ``model.compile`` with another optimizer while ``fit`` runs.

    ``fit`` builds loss and metrics from the first batch, at its start only, and takes the training
    function for made. So the built ones stay, and the function is made again.
    """
    names = ("_loss_tracker", "_compile_loss", "_compile_metrics", "stop_training")
    kept = {name: getattr(model, name) for name in names}
    yield
    vars(model).update(kept)  # set as attributes, metrics would count as a layer's own, too
    model.make_train_function(force=True)


def built_on(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that an optimizer was built for, in its order; empty before that.

    ``model.trainable_variables`` is the same list only while nobody changes a flag by hand, or
    through another model that shares layers.
    """
    return list(optimizer._trainable_variables)


def converted_families(library: str) -> list[str]:
    """The families of models of ``"transformers"`` or ``"timm"`` that KerasHub can convert.

    Its loaders choose a converter in a chain of ``if``, and an error of theirs names none. Each
    converter is a module.
    """
    from importlib.util import find_spec
    from pkgutil import iter_modules

    spec = find_spec(f"keras_hub.src.utils.{library}")
    found = [m.name for m in iter_modules(spec.submodule_search_locations)]
    return sorted(n.removeprefix("convert_") for n in found if n.startswith("convert_"))


@contextlib.contextmanager
def tensors_read() -> Iterator[tuple[set[str], set[str]]]:
    """What KerasHub's converters read meanwhile: the names of the tensors that they take out of
    safetensors files, and of all that these files have.

    A converter asks for what it needs; nothing says what it left. It is listened to by one thread
    at once, and hears nothing of others.
    """
    from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader

    _reading.acquire()
    usual = SafetensorLoader.get_prefixed_key
    read: set[str] = set()
    there: set[str] = set()
    mine = threading.get_ident()

    def asked(self: Any, key: str, names: Any) -> str:
        found = usual(self, key, names)
        if threading.get_ident() != mine:
            return found
        if found not in there:
            there.update(names.keys())
        read.add(found)
        return found

    SafetensorLoader.get_prefixed_key = asked
    try:
        yield read, there
    finally:
        SafetensorLoader.get_prefixed_key = usual
        _reading.release()


def copy_decay_exclusions(old: keras.optimizers.Optimizer, new: keras.optimizers.Optimizer) -> None:
    """Gives ``new`` what ``old.exclude_from_weight_decay`` was told.

    It is not part of an optimizer's config: a fresh copy would decay all variables again.
    """
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))


def exclude_from_decay(
    optimizer: keras.optimizers.Optimizer,
    variables: list[keras.Variable],
) -> None:
    """Excludes ``variables`` from weight decay, as well as what was excluded before.

    The public ``exclude_from_weight_decay`` forgets what an earlier call was told.
    """
    names = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    before = [getattr(optimizer, name, None) for name in names]
    optimizer.exclude_from_weight_decay(var_list=variables)
    optimizer._exclude_from_weight_decay |= before[0] or set()
    optimizer._exclude_from_weight_decay_pattern = before[1]


def global_seeds() -> keras.random.SeedGenerator | None:
    """The generator that random operations without a seed of their own draw from; ``None`` before
    the first one.

    Publicly it can only be set to a start, by ``keras.utils.set_random_seed``.
    """
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    return global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)


def set_global_seeds(generator: keras.random.SeedGenerator | None) -> None:
    """Puts back what `global_seeds` gave."""
    from keras.src.backend.common import global_state
    from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)


def rate_object(optimizer: keras.optimizers.Optimizer) -> Any:
    """The schedule or function that gives the learning rate, or the variable that holds it.

    ``optimizer.learning_rate`` is a schedule's current value, and the config holds a serialised
    copy, which does not come back if it is a lambda or a class of the user's.
    """
    return optimizer._learning_rate


def training_now(layer: keras.layers.Layer) -> bool | None:
    """Whether the call that is running is a training step, ``None`` if nobody said.

    Keras hands this to a ``call`` that has a ``training`` argument only.
    """
    return layer._get_call_context().get_value("training")


def uncast(variables: list[keras.Variable]) -> list[Any]:
    """The values of variables in their own dtype, inside a layer of another precision too.

    There ``variable.value`` is cast, and the scope that switches this off is not public.
    """
    from keras.src.backend import AutocastScope

    with AutocastScope(None):
        return [v.value for v in variables]


def in_safe_mode() -> bool | None:
    """Whether the loading that is running forbids foreign code; ``None`` if nothing is loading.

    ``keras.models.load_model(safe_mode=)`` reaches a layer's ``from_config`` in no other way.
    """
    from keras.src.saving import serialization_lib

    return serialization_lib.in_safe_mode()


@contextlib.contextmanager
def known_code() -> Iterator[None]:
    """A scope in which layers with code of their own are made from their configs.

    For copies of what runs in this process already. Keras' public switch for it,
    ``enable_unsafe_deserialization``, holds for ever and for every file.
    """
    from keras.src.saving import serialization_lib

    with serialization_lib.SafeModeScope(safe_mode=False):
        yield


def layer_scale() -> dict[str, str]:
    """Where a config says that ConvNeXt's ``LayerScale`` is from.

    It is in the files of `keras.applications` networks, and has no public name.
    """
    name = "LayerScale"
    return {
        "module": "keras.src.applications.convnext",
        "class_name": name,
        "registered_name": name,
    }


def metric_direction(metric: keras.metrics.Metric) -> str | None:
    """Whether a metric is better if it is larger (``"max"``) or smaller (``"min"``), ``None`` if
    it does not say.

    Keras' callbacks with ``mode="auto"`` go by this attribute, and the name alone misleads.
    """
    return {"up": "max", "down": "min"}.get(getattr(metric, "_direction", None))


def share_start(source: keras.Model, target: keras.Model) -> None:
    """Lets ``target`` start at the epoch that a callback such as ``BackupAndRestore`` gave to
    ``source``.

    The callback writes an attribute of its model that ``fit`` reads, and there is no other way to
    tell ``fit``.
    """
    target._initial_epoch = source._initial_epoch


def start_of(model: keras.Model) -> int | None:
    """The epoch at which a callback such as ``BackupAndRestore`` told ``model`` to start."""
    return model._initial_epoch


def take_start(model: keras.Model) -> int | None:
    """The epoch at which a callback such as ``BackupAndRestore`` told ``model`` to start, once.

    ``fit`` would start there whatever epoch it is given.
    """
    start, model._initial_epoch = model._initial_epoch, None
    return start
