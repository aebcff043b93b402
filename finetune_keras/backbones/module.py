"""A SavedModel as an object: what it can be called with, which variables it reads, and in which
order.

TensorFlow gives its functions back without the Python that made them. All that is asked here is
asked of their public attributes: the signature that they were traced with, what they capture, and
what a call returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from finetune_keras._errors import WeightsError, nearest, sentence
from finetune_keras.backbones.saved_files import Store, is_hub_1, stored
from finetune_keras.backbones.scopes import Weight

__all__ = ["Module", "require_tensorflow"]


def require_tensorflow() -> None:
    """Raises ``ValueError`` where Keras runs on another backend."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"a SavedModel runs in TensorFlow, and Keras' backend is {backend!r}: set "
            "KERAS_BACKEND=tensorflow before keras is imported"
        )


# What TensorFlow says of files that are missing, empty or cut off.
_TORN = re.compile(
    r"any matching files|No such file|less bytes|sstable|[Cc]hecksum|corrupt|there are 0 MetaGraphs"
)


class Module:
    """A loaded SavedModel.

    Attributes:
        loaded: the object that TensorFlow made of it.
        store: its files.
        endpoint: the name of what is called: ``"__call__"``, ``"serve"`` or a signature's.
        weights: what it reads, nearest the input first.
        variables: the same as ``tf.Variable``s.
        inputs: ``tf.TensorSpec``s in the structure in which it takes them.
        fixed: why it cannot learn; empty if it can.
        losses: its regularisation, as functions, each with the indices of the weights it reads.
    """

    def __init__(
        self,
        folder: Path,
        store: Store | None = None,
        into: Mapping[int, Any] | None = None,
    ):
        """Loads a SavedModel.

        Args:
            folder: where it is.
            store: its files, if they are ours already; a copy is made otherwise.
            into: variables to take in place of new ones, by their place.

        Raises:
            WeightsError: if TensorFlow cannot load it, or it cannot be called.
        """
        self.loaded, self._made = _load(folder, into or {}, store is None or store.values)
        self._function, self.endpoint = _function(self.loaded, folder)
        self._traced = self._concrete()
        self._by_name, self._modes, self.inputs = _arguments(self._traced)
        read = self._read_by(self._traced)
        found = [v for v in read if v.dtype.is_floating or v.dtype.is_integer or v.dtype.is_bool]
        self.fixed = self._why_fixed(found)
        self.losses = self._losses(found)
        self.variables = tuple(found)
        self.weights = tuple(self._weights(found))
        self._outputs: dict[str, Any] = {}
        more = len(found) < len(read) or (store is None and _keeps_more(folder))
        self.store = store or stored(folder, values=more or bool(self.fixed))

    def run(self, inputs: Any, training: bool = False) -> Any:
        """Calls the module, in its own structures."""
        import tensorflow as tf

        given: dict[str, Any] = {}
        if self._modes == "tensor":
            given["training"] = tf.constant(training)
        elif self._modes:  # one way only, if it was traced in one only
            given["training"] = training if training in self._modes else min(self._modes)
        if self._by_name:
            if not isinstance(inputs, dict):
                inputs = {self._by_name[0]: inputs}
            return self._function(**inputs, **given)
        return self._function(inputs, **given)

    @property
    def trains(self) -> bool:
        """Whether it computes something else in training."""
        return self._modes == "tensor" or len(self._modes) > 1

    def outputs(self, inputs: Any) -> Any:
        """What it gives for inputs of given shapes and dtypes, as ``keras.KerasTensor``s.

        Functions from a file have often lost the shapes of what they return. They are called on
        zeros then, if the sizes of the inputs are known.

        Raises:
            WeightsError: if the shapes do not fit, or cannot be known.
        """
        import tensorflow as tf

        specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), inputs)
        key = str(specs)
        if key not in self._outputs:
            self._outputs[key] = self._outputs_for(specs)
        # New tensors each time: a graph goes by their identity.
        return keras.tree.map_structure(
            lambda t: keras.KerasTensor(t.shape, dtype=t.dtype), self._outputs[key]
        )

    def _outputs_for(self, specs: Any) -> Any:
        import tensorflow as tf

        try:
            traced = tf.function(lambda x: self.run(x)).get_concrete_function(specs)
        except Exception as e:  # TensorFlow's errors are of many kinds here, and long
            taken = keras.tree.map_structure(_text, self.inputs)
            given = keras.tree.map_structure(_text, specs)
            raise WeightsError(
                f"the SavedModel cannot be called with {given}: it takes {taken}"
            ) from e
        made = traced.structured_outputs
        shapes = [t.shape for t in keras.tree.flatten(made)]
        if not all(map(_known, shapes)):
            if all(_known(s.shape) for s in keras.tree.flatten(specs)):
                shapes = self._measured(specs)
            elif any(s.rank is None for s in shapes):
                raise WeightsError(
                    "the SavedModel does not say which shape its output has: give input_shape=, "
                    "such as (224, 224, 3), so that it can be measured"
                )
        tensors = [
            keras.KerasTensor(tuple(s), dtype=t.dtype.name)
            for s, t in zip(shapes, keras.tree.flatten(made), strict=True)
        ]
        return keras.tree.pack_sequence_as(made, tensors)

    def _measured(self, specs: Any) -> list[tuple[int | None, ...]]:
        """Shapes of what it gives for zeros; what grows with the batch is the batch."""
        import tensorflow as tf

        def shapes(batch: int) -> list[tuple[int, ...]]:
            def zeros(spec):
                size = [batch if n is None else n for n in spec.shape]
                return tf.fill(size, "") if spec.dtype == tf.string else tf.zeros(size, spec.dtype)

            made = self.run(keras.tree.map_structure(zeros, specs))
            return [tuple(t.shape) for t in keras.tree.flatten(made)]

        return [
            tuple(n if n == m else None for n, m in zip(a, b, strict=True))
            for a, b in zip(shapes(2), shapes(3), strict=True)
        ]

    def _concrete(self) -> list[Any]:
        found = list(getattr(self._function, "concrete_functions", [self._function]))
        if not found:
            raise WeightsError("the SavedModel can be called, but holds no traced call")

        def rank(c):  # the most general first, inference before training
            leaves = keras.tree.flatten(c.structured_input_signature)
            shapes = [s.shape for s in leaves if hasattr(s, "shape")]
            fixed = sum(n is not None for s in shapes if s.rank is not None for n in s)
            return fixed, any(leaf is True for leaf in leaves)

        return sorted(found, key=rank)

    def _read_by(self, functions: list[Any]) -> list[Any]:
        """The variables that functions capture, in the order in which they do."""
        import tensorflow as tf

        known = {}
        for v in self._made or getattr(self.loaded, "variables", []):
            # Under a distribution strategy functions capture the variable, not its handle.
            mirrored = isinstance(v, tf.distribute.DistributedValues)
            known[id(v if mirrored else v.handle)] = v
        captured = [h for f in functions for h in f.captured_inputs]
        found = [known[id(h)] for h in captured if id(h) in known]
        return list({id(v): v for v in found}.values())

    def _losses(self, found: list[Any]) -> list[tuple[Callable[[], Any], tuple[int, ...]]]:
        order = {id(v): i for i, v in enumerate(found)}
        losses = []
        for loss in getattr(self.loaded, "regularization_losses", None) or ():
            read = self._read_by(list(getattr(loss, "concrete_functions", [])))
            losses.append((loss, tuple(order[id(v)] for v in read if id(v) in order)))
        return losses

    def _why_fixed(self, found: list[Any]) -> str:
        if self.endpoint not in ("__call__", "serve"):
            return (
                f"it has only the signature {self.endpoint!r}, which is for inference (a module "
                "of TensorFlow 1, or an export)"
            )
        if not found or self._learnable(found):  # without variables it is preprocessing
            return ""
        return "none of its variables is trainable"

    def _learnable(self, found: list[Any]) -> set[int]:
        mine = {id(v) for v in found}
        named = {id(v) for v in getattr(self.loaded, "trainable_variables", None) or ()} & mine
        usable = [v for v in found if v.trainable and v.dtype.is_floating]
        return {id(v) for v in usable if not named or id(v) in named}

    def _weights(self, found: list[Any]) -> list[Weight]:
        places = {id(v): i for i, v in enumerate(self._made)}
        learnable = set() if self.fixed else self._learnable(found)
        return [
            Weight(
                name,
                tuple(v.shape.as_list()),
                v.dtype.name,
                id(v) in learnable,
                places.get(id(v)),
            )
            for v, name in zip(found, _names(self.loaded, found), strict=True)
        ]


def _load(folder: Path, into: Mapping[int, Any], values: bool) -> tuple[Any, list[Any]]:
    """The object, and its variables in the order in which TensorFlow makes them."""
    import tensorflow as tf

    made: list[Any] = []

    def creator(make, **kwargs):
        variable = into.get(len(made))
        if kwargs.get("trainable") is False and tf.distribute.has_strategy():
            # Statistics that each replica moves; a module was rarely saved with this in mind.
            kwargs["aggregation"] = tf.VariableAggregation.MEAN
        made.append(make(**kwargs) if variable is None else variable)
        return made[-1]

    options = tf.saved_model.LoadOptions(experimental_skip_checkpoint=not values)
    tags = [] if is_hub_1(folder) else None  # the others are for training with TensorFlow 1
    try:
        with tf.variable_creator_scope(creator):
            return tf.saved_model.load(str(folder), tags=tags, options=options), made
    except Exception as e:  # TensorFlow raises many kinds here; the folder and its reason matter
        reason, hint = sentence(e).split("You may be trying")[0].rstrip(". "), ""
        if _TORN.search(reason):
            reason = "no graph in it" if "0 MetaGraphs" in reason else reason[:150].rstrip(". ")
            raise WeightsError(
                f"the SavedModel {str(folder)!r} is not whole ({reason}): fetch or copy it again, "
                "with all in its folder 'variables'"
            ) from e
        if "Op type not registered" in str(e):
            hint = " (import tensorflow_text first, which has the operations of many text modules)"
        raise WeightsError(
            f"{str(folder)!r} cannot be loaded as a SavedModel{hint}: {reason[:300]}"
        ) from e


def _function(loaded: Any, folder: Path) -> tuple[Any, str]:
    """What to call, and its name: the object itself, Keras' ``serve``, or a signature."""
    for name in ("__call__", "serve"):
        function = getattr(loaded, name, None)
        if getattr(function, "concrete_functions", None):
            return function, name
    signatures = dict(loaded.signatures)
    for name in ("serving_default", "default", *(signatures if len(signatures) == 1 else ())):
        if name in signatures:
            return signatures[name], name
    raise WeightsError(
        f"{str(folder)!r} has nothing to call: no __call__, no serve, and among its signatures no "
        f"'serving_default'; {nearest('default', signatures)}"
    )


def _arguments(functions: list[Any]) -> tuple[tuple[str, ...], Any, Any]:
    """Names of the inputs if they are given by name, the values of ``training`` that the
    functions were traced with (``"tensor"`` if it is one), and the inputs' specs.
    """
    import tensorflow as tf

    inputs: dict[str, Any] = {}
    modes: list[Any] = []
    for function in reversed(functions):  # the first, which is the most general, counts most
        args, kwargs = function.structured_input_signature
        named = dict(zip(function.function_type.parameters, args, strict=False)) | kwargs
        if "training" in named:
            modes.append(named.pop("training"))
        inputs = {n: s for n, s in named.items() if _is_specs(s)}
    if not inputs:
        raise WeightsError("the SavedModel takes no tensors")
    by_name = () if len(inputs) == 1 and args else tuple(inputs)
    single = len(inputs) == 1
    tensor = any(isinstance(m, tf.TensorSpec) for m in modes)
    known = "tensor" if tensor else {m for m in modes if isinstance(m, bool)}
    return by_name, known, next(iter(inputs.values())) if single else inputs


def _is_specs(structure: Any) -> bool:
    import tensorflow as tf

    leaves = keras.tree.flatten(structure)
    return bool(leaves) and all(isinstance(s, tf.TensorSpec) for s in leaves)


def _names(loaded: Any, variables: list[Any]) -> list[str]:
    """Names with their scopes, each once: the variables' own, or where these say nothing, the
    attributes by which they are reached.
    """
    names = [re.sub(r":\d+$", "", v.name).strip("/") for v in variables]
    if len(set(names)) < len(names):
        attributes = _attributes(loaded)
        if all(id(v) in attributes for v in variables):
            names = [attributes[id(v)] for v in variables]
        elif not any("/" in n for n in names):
            names = _in_layers(names)
    count: dict[str, int] = {}
    for i, name in enumerate(names):
        count[name] = count.get(name, 0) + 1
        names[i] = name if count[name] == 1 else f"{name}_{count[name]}"
    return names


def _in_layers(names: list[str]) -> list[str]:
    """Where neither names nor attributes tell layers, as in what Keras exports on JAX: a name
    that comes again begins the next one.
    """
    found: list[str] = []
    layer, taken = 0, set()
    for name in names:
        if name in taken:
            layer, taken = layer + 1, set()
        taken.add(name)
        found.append(f"layer_{layer}/{name}")
    return found


def _attributes(loaded: Any) -> dict[int, str]:
    """The shortest path of attributes to each object."""
    import tensorflow as tf

    lists = ("variables", "trainable_variables", "non_trainable_variables", "signatures")
    paths: dict[int, str] = {id(loaded): ""}
    todo = [loaded]
    for node in todo:
        for name, child in tf.train.TrackableView.children(node).items():
            if id(child) not in paths and name not in lists and not name.startswith("_"):
                paths[id(child)] = f"{paths[id(node)]}/{name}".lstrip("/")
                todo.append(child)
    return paths


def _keeps_more(folder: Path) -> bool:
    """Whether the values in the folder are of more than variables, such as tables that grow."""
    import tensorflow as tf

    if not (folder / "variables").is_dir():
        return False
    keys = [k for k, _ in tf.train.list_variables(str(folder / "variables" / "variables"))]
    return any(
        not k.endswith(".ATTRIBUTES/VARIABLE_VALUE") and k != "_CHECKPOINTABLE_OBJECT_GRAPH"
        for k in keys
    )


def _known(shape: Any) -> bool:
    return shape.rank is not None and None not in shape.as_list()[1:]


def _text(spec: Any) -> str:
    shape = "?" if spec.shape.rank is None else tuple(spec.shape)
    return f"{shape} {spec.dtype.name}"
