"""The layer that calls a SavedModel, and adopts its variables.

``keras.Variable(initializer=a_tf_variable)`` does not copy: it *is* that variable from then on. So
Keras' optimizers, flags and files see the variables that the foreign function reads, and nothing
has to be translated.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from finetune_keras import _private
from finetune_keras._errors import WeightsError, nearest
from finetune_keras.backbones.module import Module, require_tensorflow
from finetune_keras.backbones.saved_files import Store, find, stored
from finetune_keras.backbones.scopes import (
    FixedScope,
    Scope,
    ScopeNorm,
    Weight,
    grouped,
    is_norm_scope,
    kinds,
)

__all__ = ["SavedModelLayer"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Adopted:
    """A variable in its places."""

    weight: Weight
    variable: keras.Variable
    theirs: Any  # the tf.Variable that it is
    layer: keras.layers.Layer  # of its scope

    @property
    def is_on(self) -> bool:
        return (self.variable if self.weight.learnable else self.layer).trainable


@keras.saving.register_keras_serializable(package="finetune_keras")
class SavedModelLayer(keras.layers.Layer):
    """Calls a SavedModel, in TensorFlow. Made by `finetune_keras.backbone`.

    Its variables are the SavedModel's own. They stand in layers named after their name scopes, so
    that they are frozen by scope, and have paths. A file of it holds the SavedModel's graph, and
    is loaded with ``safe_mode=False`` only, since that graph is foreign code.

    ``training`` is one for all of the function. It is passed on if something in it learns and no
    scope with statistics is frozen; otherwise all of it runs in inference mode, so that no frozen
    statistics move.

    Args:
        module: the SavedModel; without it the layer waits for the assets of a file.
        weights: what its variables are.
        output_key: which of the outputs to give, where they are a dict; all by default.
        outputs: what it gives, as ``keras.KerasTensor``s.
        digest: of the SavedModel's files.
        fixed: why it cannot learn; empty if it can.
    """

    def __init__(
        self,
        module: Module | None,
        weights: Sequence[Weight],
        *,
        output_key: str | None = None,
        outputs: Any = None,
        digest: str = "",
        fixed: str = "",
        **kwargs: Any,
    ):
        # A SavedModel keeps its own dtypes, and strings and hash tables are not for XLA.
        super().__init__(autocast=False, **kwargs)
        self.supports_jit = False
        self.output_key, self.digest, self.fixed = output_key, digest, fixed
        self._outputs = outputs
        self.scopes: list[keras.layers.Layer] = []
        self._adopted: list[_Adopted] = []
        self._adopt(weights, module.variables if module else [_empty(w) for w in weights])
        self._places = grouped(list(dict.fromkeys(w.scope for w in weights)), kinds(weights))
        self._connect(module)
        self.built = True
        if not self.trainable:
            self.trainable = False  # what was made since has a flag of its own

    @classmethod
    def of(cls, module: Module, inputs: Any, *, output_key: str | None, name: str) -> Any:
        """The layer for a module, its outputs measured for inputs of given shapes.

        Raises:
            WeightsError: for an ``output_key`` that there is not.
        """
        made = module.outputs(inputs)
        if output_key is None and module.endpoint not in ("__call__", "serve"):
            # Signatures give dicts always; the output of the old modules is "default".
            keys = list(made)
            output_key = keys[0] if len(keys) == 1 else "default" if "default" in keys else None
        return cls(
            module,
            module.weights,
            output_key=output_key,
            outputs=_picked(made, output_key),
            digest=module.store.digest,
            fixed=module.fixed,
            name=name,
        )

    def _adopt(self, weights: Sequence[Weight], variables: Sequence[Any]) -> None:
        """Puts each variable into the layer of its scope."""
        layers: dict[str, keras.layers.Layer] = {}

        def layer(path: str) -> keras.layers.Layer:
            if path not in layers:
                holder, _, name = path.rpartition("/")
                own = [w for w in weights if w.scope == path]
                kind = ScopeNorm if is_norm_scope(path, own) else Scope
                name = name or "variables"
                layers[path] = FixedScope(name, self.fixed) if self.fixed else kind(name)
                (layer(holder).below if holder else self.scopes).append(layers[path])
            return layers[path]

        for weight, variable in zip(weights, variables, strict=True):
            with contextlib.ExitStack() as names:  # ``variable.path`` has the scopes too
                for name in (self.name, *filter(None, weight.scope.split("/"))):
                    names.enter_context(keras.name_scope(name))
                mine = keras.Variable(
                    variable, trainable=weight.learnable, autocast=False, name=weight.last
                )
            layer(weight.scope).held.append(mine)
            self._adopted.append(_Adopted(weight, mine, variable, layer(weight.scope)))

    def _connect(self, module: Module | None) -> None:
        self._module = module
        if module is not None:
            self.foreign = module.loaded  # as an attribute, so that exports find its tables

    @property
    def ftk_stages(self) -> tuple[tuple[str, frozenset[int]], ...]:
        """Its blocks in depth order: a path inside the layer, and the ids of the variables."""
        return tuple(
            (
                place.path,
                frozenset(id(a.variable) for a in self._adopted if a.weight.scope in place.scopes),
            )
            for place in self._places
        )

    @property
    def learns(self) -> bool:
        """Whether training is passed on to the SavedModel."""
        still = any(a.weight.is_statistic and not a.layer.trainable for a in self._adopted)
        return bool(self.trainable_variables) and not still

    @property
    def ftk_note(self) -> str:
        """What `finetune_keras.describe` says of it, besides its blocks."""
        if self.fixed:
            return f"{self.name!r} cannot learn: {self.fixed}"
        if self.trainable_variables and self._module and self._module.endpoint == "serve":
            return (
                f"{self.name!r} is an export for inference: also while it learns its dropout is "
                "off, and its normalisations keep their statistics"
            )
        if self.trainable_variables and not self.learns and self._module and self._module.trains:
            return (
                f"{self.name!r} runs in inference mode, its dropout too, as long as any of its "
                "normalisations or other statistics are frozen"
            )
        return ""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Calls the SavedModel and adds its regularisation of what learns."""
        if self._module is None:
            raise ValueError(
                f"{self.name!r} has no SavedModel: it was made from its config alone, or the "
                "file that it was loaded from does not hold one"
            )
        self._regularize(self._module)
        made = self._module.run(inputs, training=bool(training) and self.learns)
        return made if self.output_key is None else made[self.output_key]

    def _regularize(self, module: Module) -> None:
        """Adds the losses of what learns; of frozen weights they would be a constant."""
        for loss, reads in module.losses:
            if any(self._adopted[i].variable.trainable for i in reads):
                self.add_loss(loss())

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Shapes and dtypes as measured; for other inputs, as the SavedModel gives them."""
        if self._module is None:  # new tensors each time: a graph goes by their identity
            return _decoded(_encoded(self._outputs))
        return _picked(self._module.outputs(inputs), self.output_key)

    def get_config(self) -> dict[str, Any]:
        """Everything but the graph and the values, as plain values."""
        return {
            **super().get_config(),
            "weights": [dataclasses.astuple(a.weight) for a in self._adopted],
            "frozen": [i for i, a in enumerate(self._adopted) if not a.is_on],
            "outputs": _encoded(self._outputs),
            "output_key": self.output_key,
            "digest": self.digest,
            "fixed": self.fixed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """The layer again, from a file with the caller's consent only.

        In the process that has the SavedModel already, the layer is whole, with values to be set
        (zeros, where the values are not among the files). Otherwise its file brings it.

        Raises:
            ValueError: in Keras' safe mode.
        """
        config = dict(config)
        store = find(config["digest"])
        safe = _private.in_safe_mode()
        if safe or (safe is None and store is None):
            raise ValueError(
                f"the layer {config['name']!r} runs the graph of a SavedModel that its file "
                "brings, which is foreign code: if you trust where the file came from, load it by "
                "finetune_keras.load or keras.models.load_model with safe_mode=False"
            )
        require_tensorflow()
        frozen = set(config.pop("frozen"))
        weights = [Weight.of(fields) for fields in config.pop("weights")]
        made = cls(None, weights, outputs=_decoded(config.pop("outputs")), **config)
        if store is not None:
            made._read(store)
        for layer in {id(a.layer): a.layer for a in made._adopted}.values():
            if all(i in frozen for i, a in enumerate(made._adopted) if a.layer is layer):
                _switch_off(layer)
        for i in frozen:
            made._adopted[i].variable.trainable = False
        return made

    def save_assets(self, folder: str) -> None:
        """Copies the SavedModel into a file of the model."""
        if self._module is not None:
            Store.copy(self._module.store.folder, Path(folder))

    def load_assets(self, folder: str | None) -> None:
        """Reads the SavedModel from a file of the model, into the variables that are here."""
        if self._module is not None:
            return
        if folder is None:
            raise WeightsError(f"the file has no SavedModel for the layer {self.name!r}")
        source = Path(folder)
        self._read(stored(source, values=(source / "variables").is_dir()))

    def _read(self, store: Store) -> None:
        """Loads the SavedModel so that it reads the variables that are here."""
        into = {a.weight.place: a.theirs for a in self._adopted if a.weight.place is not None}
        module = Module(store.folder, store, into)
        mine = [(a.weight.name, a.weight.shape, a.weight.dtype) for a in self._adopted]
        if mine != [(w.name, w.shape, w.dtype) for w in module.weights]:
            raise WeightsError(
                f"the SavedModel of the layer {self.name!r} is not the one that it was saved with"
            )
        for a, theirs in zip(self._adopted, module.variables, strict=True):
            if theirs is not a.theirs:  # of TensorFlow 1: the graph keeps its own, which are fixed
                a.variable.assign(theirs)
        self._connect(module)


def _empty(weight: Weight) -> Any:
    import tensorflow as tf

    zeros = tf.zeros(weight.shape, weight.dtype)
    return tf.Variable(zeros, trainable=weight.learnable, name=weight.name)


def _switch_off(layer: Scope) -> None:
    """Freezes a scope, and not the scopes below it."""
    flags = [(x, x.trainable) for x in layer.below]
    layer.trainable = False
    for below, flag in flags:
        below.trainable = flag


def _picked(made: Any, key: str | None) -> Any:
    if key is None:
        return made
    if not isinstance(made, dict):
        raise WeightsError(
            f"output_key={key!r} is for a SavedModel that gives a dict; this one gives "
            f"{len(keras.tree.flatten(made))} tensor(s) without keys: leave it out"
        )
    if key not in made:
        raise WeightsError(
            f"output_key={key!r} is no output of the SavedModel; {nearest(str(key), list(made))}"
        )
    return made[key]


def _encoded(structure: Any) -> Any:
    """Symbolic tensors in lists and dicts as plain values."""
    if isinstance(structure, keras.KerasTensor):
        return {"tensor": [list(structure.shape), structure.dtype]}
    if isinstance(structure, dict):
        return {"dict": {k: _encoded(v) for k, v in structure.items()}}
    return {"list": [_encoded(v) for v in structure]}


def _decoded(encoded: Any) -> Any:
    [(kind, value)] = encoded.items()
    if kind == "tensor":
        return keras.KerasTensor(tuple(value[0]), dtype=value[1])
    if kind == "dict":
        return {k: _decoded(v) for k, v in value.items()}
    return [_decoded(v) for v in value]
