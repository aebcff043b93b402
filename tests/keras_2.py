"""Whole models in the layout of Keras 2, written by hand."""

from __future__ import annotations

import io
import json
import zipfile

import h5py
import keras
import numpy as np

__all__ = [
    "ARRAYS",
    "STATISTICS",
    "conv",
    "dense",
    "draw",
    "entry",
    "functional",
    "layer",
    "named",
    "norm",
    "reference",
    "sequential",
    "teachable",
    "write",
    "write_keras",
]

layers = keras.layers


def draw(*shape, seed=0, scale=0.4):
    return np.random.default_rng(seed).normal(size=shape, scale=scale).astype("float32")


def layer(kind, name, *reads, **config):
    """An entry of ``layers``; ``reads`` are the calls, each a list of what it reads."""
    nodes = [[[r, 0, 0, {}] if isinstance(r, str) else list(r) for r in call] for call in reads]
    config = {"name": name, "trainable": True, "dtype": "float32", **config}
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": nodes}


def entry(name, *shape, **config):
    config = {"batch_input_shape": [None, *shape], "sparse": False, "ragged": False, **config}
    made = layer("InputLayer", name, **config)
    del made["config"]["trainable"]
    return made


def functional(name, entries, inputs, outputs, reads=()):
    def ends(ends):
        return [[e, 0, 0] if isinstance(e, str) else e for e in ends]

    config = {"name": name, "layers": entries}
    config |= {"input_layers": ends(inputs), "output_layers": ends(outputs)}
    made = {"class_name": "Functional", "config": config}
    return {**made, "name": name, "inbound_nodes": [[[r, 0, 0, {}] for r in c] for c in reads]}


def sequential(name, *entries):
    return {"class_name": "Sequential", "config": {"name": name, "layers": list(entries)}}


def conv(name, *reads, filters=4, **config):
    zeros = {"class_name": "Zeros", "config": {"dtype": "float32"}}
    scaling = {"scale": 1.0, "mode": "fan_avg", "distribution": "normal", "seed": None}
    init = {"class_name": "VarianceScaling", "config": scaling}
    config = {"kernel_size": [3, 3], "padding": "same", "filters": filters, **config}
    return layer("Conv2D", name, *reads, kernel_initializer=init, bias_initializer=zeros, **config)


def norm(name, *reads):
    return layer("BatchNormalization", name, *reads, axis=[3], momentum=0.9, epsilon=1e-3)


def dense(name, *reads, units=3, **config):
    return layer("Dense", name, *reads, units=units, activation="linear", **config)


def write(path, spec, weights, version="2.4.0"):
    """A whole-model file: ``weights`` has the arrays of each layer at the top by their names."""
    with h5py.File(path, "w") as file:
        if version:
            file.attrs["keras_version"] = version
        file.attrs["model_config"] = json.dumps(spec).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = np.array([n.encode() for n in weights])
        for name, arrays in weights.items():
            own = group.create_group(name)
            own.attrs["weight_names"] = np.array([n.encode() for n in arrays])
            for n, array in arrays.items():
                own.create_dataset(n, data=array)
    return path


def write_keras(path, spec, groups, version="2.13.1"):
    """The archive of tf.keras 2.12 to 2.15: ``groups`` has arrays by group."""
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        for name, arrays in groups.items():
            for i, array in enumerate(arrays):
                file.create_dataset(f"{name}/vars/{i}", data=array)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(spec))
        archive.writestr("metadata.json", json.dumps({"keras_version": version}))
        archive.writestr("model.weights.h5", data.getvalue())
    return path


STATISTICS = [
    1 + draw(4, seed=5),
    draw(4, seed=6),
    draw(4, seed=7),
    np.abs(1 + draw(4, seed=8)),
]  # gamma, beta, mean, variance
ARRAYS = {
    "conv": [draw(3, 3, 3, 4, seed=1), draw(4, seed=2)],
    "deep": [draw(3, 3, 4, 1, seed=3), draw(4, seed=4)],
    "norm": STATISTICS,
    "d1": [draw(4, 6, seed=9), draw(6, seed=10)],
    "d2": [draw(6, 3, seed=11)],
}


def named(*pairs):
    """``("conv", "kernel", array)`` as Keras 2 names it."""
    return {f"{layer}/{what}:0": array for layer, what, array in pairs}


def teachable():
    """As Teachable Machine exports it: two sequential models in one, a functional in the first."""
    inner = functional(
        "model1",
        [
            entry("input_1", 8, 8, 3),
            conv("conv", ["input_1"]),
            norm("norm", ["conv"]),
            layer(
                "DepthwiseConv2D",
                "deep",
                ["norm"],
                kernel_size=[3, 3],
                padding="same",
                groups=1,
                filters=None,
            ),
        ],
        ["input_1"],
        ["deep"],
    )
    first = sequential(
        "sequential_1", entry("model1_input", 8, 8, 3), inner, layer("GlobalAveragePooling2D", "g")
    )
    second = sequential(
        "sequential_3",
        entry("d1_input", 4),
        dense("d1", units=6, batch_input_shape=[None, 4]),
        dense("d2", use_bias=False),
    )
    spec = sequential("sequential_4", entry("sequential_1_input", 8, 8, 3), first, second)
    # Statistics stand after all that learns.
    (gamma, beta, mean, variance), (k, b), (dk, db) = (ARRAYS[n] for n in ("norm", "conv", "deep"))
    base = named(
        ("conv", "kernel", k),
        ("conv", "bias", b),
        ("norm", "gamma", gamma),
        ("norm", "beta", beta),
        ("deep", "depthwise_kernel", dk),
        ("deep", "bias", db),
        ("norm", "moving_mean", mean),
        ("norm", "moving_variance", variance),
    )
    head = named(
        ("d1", "kernel", ARRAYS["d1"][0]), ("d1", "bias", ARRAYS["d1"][1]),
        ("d2", "kernel", ARRAYS["d2"][0]),
    )  # fmt: skip
    return spec, {"sequential_1": base, "sequential_3": head}


def reference():
    """The same made by hand in Keras 3."""
    x = inputs = keras.Input((8, 8, 3))
    made = {
        "conv": layers.Conv2D(4, 3, padding="same"),
        "norm": layers.BatchNormalization(),
        "deep": layers.DepthwiseConv2D(3, padding="same"),
        "g": layers.GlobalAveragePooling2D(),
        "d1": layers.Dense(6),
        "d2": layers.Dense(3, use_bias=False),
    }
    for name, item in made.items():
        x = item(x)
        if name in ARRAYS:
            item.set_weights(ARRAYS[name])
    return keras.Model(inputs, x)
