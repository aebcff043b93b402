"""Blocks that compute their activations twice give the same gradients, and move states once."""

import keras
import numpy as np
import pytest
import zoo
from conftest import residual, same, value

from finetune_keras import backbone, build, heads

CUTS = {"BERT": "pooled_output", "T5": "encoder_sequence_output"}


def pair(name):
    source = zoo.KERAS_HUB[name]()
    models = []
    for remat in (False, True):
        base = backbone(source, cut_at=CUTS.get(name)).copy()
        if remat:
            base = backbone(zoo.KERAS_HUB[name](), cut_at=CUTS.get(name), remat=True)
        models.append(build(base, heads.Classification(2), optimizer="sgd", learning_rate=0.1))
    plain, again = models
    for a, b in zip(plain.variables, again.variables, strict=True):
        b.assign(value(a))  # seeds of dropout too
    return plain, again


def data(model):
    rng = np.random.default_rng(0)
    x = {}
    for t in model.inputs:
        shape = (4, *(n or 6 for n in t.shape[1:]))
        mask = "mask" in t.name
        x[t.name] = (np.ones(shape) if mask else rng.uniform(0, 2, shape)).astype(t.dtype)
    return (x if len(x) > 1 else next(iter(x.values()))), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "name",
    ["BERT", "ViT", *(pytest.param(n, marks=pytest.mark.slow) for n in ("Swin", "T5"))],
)
def test_a_step_is_the_same(name):
    plain, again = pair(name)
    x, y = data(plain)
    for model in (plain, again):
        keras.utils.set_random_seed(3)  # PyTorch draws dropout from its own state
        model.fit(x, y, epochs=2, batch_size=4, shuffle=False, verbose=0)
    seeds = [v for v in plain.variables if "seed" in v.path]
    assert name in ("ViT",) or seeds
    for a, b in zip(plain.variables, again.variables, strict=True):
        same(b, a, atol=1e-5)


def test_states_inside_a_block_move_once():
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense, self.norm = keras.layers.Dense(3), keras.layers.BatchNormalization()

        def build(self, shape):
            self.dense.build(shape)
            self.norm.build(shape)

        def call(self, x):
            return x + self.norm(self.dense(x))  # training comes from outside

    from finetune_keras.backbones.remat import recompute

    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    models = []
    for remat in (False, True):
        inputs = keras.Input((3,))
        model = keras.Model(inputs, Block(name="block")(inputs))
        if remat:
            recompute(model)
            model.set_weights(models[0].get_weights())
        model.compile("sgd", "mse")
        models.append(model)
    for model in models:
        model.fit(x, 2 * x, batch_size=8, verbose=0)
    moving = [v for v in models[0].weights if "moving_mean" in v.path]
    assert np.abs(value(moving[0])).max() > 0
    for a, b in zip(*(m.variables for m in models), strict=True):
        same(b, a, atol=1e-6)
    same(models[1].predict(x, verbose=0), models[0].predict(x, verbose=0), atol=1e-6)


def test_a_network_without_blocks_says_what_to_do():
    with pytest.raises(ValueError, match=r"'residual' has no layer that holds a block.*smaller"):
        backbone(residual(), remat=True)


def test_half_precision_with_remat():
    def make():
        return backbone(zoo.KERAS_HUB["ViT"](), dtype="mixed_bfloat16", remat=True)

    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match="do not go together on TensorFlow.*JAX or PyTorch"):
            make()
        return
    model = build(make(), heads.Classification(2))
    assert np.isfinite(model.fit(*data(model), verbose=0).history["loss"]).all()


def test_a_file_is_plain_keras(tmp_path):
    _, again = pair("ViT")
    x, _ = data(again)
    again.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    same(loaded.predict(x, verbose=0), again.predict(x, verbose=0), atol=1e-6)
