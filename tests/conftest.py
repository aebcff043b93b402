"""Small seeded models and data that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# JAX compiles each new shape, which takes most of the suite's time: quickly here, and each program
# once, the other workers and the examples in processes of their own included.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import keras
import numpy as np
import pytest

layers = keras.layers


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(7)
    keras.config.disable_traceback_filtering()


def residual(name: str = "residual", *, width: int = 8, size: int = 16) -> keras.Model:
    """A stem, two residual blocks (the second strided) and batch normalisation throughout."""
    x = inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem_conv")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    for i, stride in enumerate((1, 2), 1):
        short = x
        if stride > 1:
            short = layers.Conv2D(width, 1, strides=stride, name=f"block{i}_short")(x)
        y = layers.Conv2D(width, 3, strides=stride, padding="same", name=f"block{i}_conv1")(x)
        y = layers.BatchNormalization(name=f"block{i}_bn")(y)
        y = layers.ReLU(name=f"block{i}_relu")(y)
        y = layers.Conv2D(width, 3, padding="same", name=f"block{i}_conv2")(y)
        x = layers.Add(name=f"block{i}_add")([short, y])
        x = layers.ReLU(name=f"block{i}_out")(x)
    return keras.Model(inputs, x, name=name)


def classifier(name: str = "own") -> keras.Model:
    """A user's own model: a nested network, pooling, and a dense classifier."""
    inputs = keras.Input((16, 16, 3))
    x = residual("inner")(inputs)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    x = layers.Dropout(0.1, name="dropped")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x), name=name)


def chain(name: str = "chain") -> keras.Sequential:
    """A sequential classifier of dense layers."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh", name="a"),
            layers.Dense(8, activation="tanh", name="b"),
            layers.Dense(3, name="c"),
        ],
        name=name,
    )


def images(n: int = 12, size: int = 16, classes: int = 3):
    """Images from 0 to 255 whose mean colour depends on the class."""
    rng = np.random.default_rng(3)
    y = np.arange(n) % classes
    x = rng.normal(90.0, 30.0, (n, size, size, 3)) + 40.0 * y[:, None, None, None]
    return np.clip(x, 0, 255).astype("float32"), y.astype("int32")


def vectors(n: int = 32):
    """Inputs and targets for :func:`chain`."""
    rng = np.random.default_rng(4)
    return rng.normal(size=(n, 6)).astype("float32"), rng.normal(size=(n, 3)).astype("float32")


def same(found, expected, *, atol: float) -> None:
    """Asserts that two tensors or arrays, of any backend, are equal to ``atol``."""
    np.testing.assert_allclose(value(found), value(expected), rtol=1e-5, atol=atol)


def value(variable) -> np.ndarray:
    """A copy of the value of a variable or tensor."""
    return np.array(keras.ops.convert_to_numpy(variable))


def snapshot(model: keras.Model) -> dict[str, np.ndarray]:
    """Every weight of a model by its unique path."""
    from finetune_keras import graph

    return {u.path: value(u.variable) for u in graph.opened(model).units}


def moved(before: dict[str, np.ndarray], model: keras.Model) -> set[str]:
    """Paths of the weights that differ from a snapshot."""
    after = snapshot(model)
    return {path for path in before if not np.array_equal(before[path], after[path])}


def learners(model: keras.Model) -> set[str]:
    """Paths of the variables that may learn, statistics left out."""
    from finetune_keras import graph

    return {u.path for u in graph.opened(model).units if u.learnable}


# What tests of every architecture are held against on JAX and PyTorch by default; `make test-slow`
# takes all. On JAX each new shape is compiled, which takes most of the time.
REPRESENTATIVES = ("mobilenet", "resnet50", "vgg16")


def slow_marks(name: str, fast=REPRESENTATIVES) -> tuple:
    """The mark of an architecture that is left to ``make test-slow`` on this backend."""
    few = keras.backend.backend() != "tensorflow"
    slow = name not in fast or (few and name not in REPRESENTATIVES)
    return (pytest.mark.slow,) if slow else ()


# Tests of files, tables and pipelines, where no backend computes but in those that are marked
# ``trains``, and the examples of the docs: on TensorFlow by default.
NO_BACKEND = (
    "test_benchmarks",
    "test_data_corruption",
    "test_data_scan",
    "test_data_tables",
    "test_data_text",
    "test_data_tfds",
    "test_docs",
    "test_list_backbones",
)


# Whole programs, of whose parts all have tests: on TensorFlow by default.
LONG_EXAMPLES = (
    "existing_pipeline.py",
    "h5_first_layers_frozen.py",
    "resnet50_frozen.py",
    "side_by_side.py",
    "test_bert_moves_whole",
    "test_resnet18_learns",
    "test_resnet50_takes_small_images",
    "test_the_front_page_snippet_runs",
    "test_the_quickstart_takes",
)

# What is read off a graph, and compares large networks; the same on every backend.
OF_GRAPHS = (
    "test_a_layer_before_the_networks_own_preprocessing",
    "test_any_input_shape_and_other_channel_counts",
    "test_bad_input_names_the_fix",
    "test_depth_of_known_architectures",
    "test_efficientnet_weights_from_a_file",
    "test_freeze_thaw_and_describe_hold_on_layers_inside_layers",
    "test_networks_that_keep_a_dtype_from_their_layers",
    "test_other_channels_are_refused_in_one_line",
    "test_taps_by_stride",
    "test_the_factors_of_one_convolution",
    "test_weights_with_a_classifier_name_the_way",
)

# Of files and folders of a run, which are the same on every backend.
OF_FILES = (
    "test_a_folder_of_something_else",
    "test_a_full_disk",
    "test_files_of_callbacks_may_lie",
    "test_killed_again_and_again",
    "test_other_pretrained_weights_and_versions",
    "test_the_folder_of_another_run",
    "test_while_it_is_stored",
)

# Cases of a few that run everywhere.
MORE_OF_THE_SAME = (
    "test_killed_between_epochs_and_within_one",
    "test_averages_and_other_optimizers_go_on",
)

OFF = LONG_EXAMPLES + OF_GRAPHS + OF_FILES + MORE_OF_THE_SAME


def pytest_collection_modifyitems(items):
    if keras.backend.backend() != "tensorflow":
        for item in items:
            trains = item.get_closest_marker("trains")
            if item.module.__name__ in NO_BACKEND and trains is None:
                item.add_marker(pytest.mark.slow)
            if any(name in item.name for name in OFF):
                item.add_marker(pytest.mark.slow)


def pytest_make_parametrize_id(config, val, argname):
    """Names without addresses: the workers of pytest-xdist have to agree on them."""
    if isinstance(val, np.ndarray):
        return f"{argname}{np.shape(val)}"
    if " at 0x" in repr(val):
        return getattr(val, "__name__", type(val).__name__)
    return None
