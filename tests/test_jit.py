"""Augmentation that Keras does not compile, and JAX can."""

import keras
import numpy as np
import pytest
from conftest import images, residual, snapshot

import finetune_keras as ftk
from finetune_keras import heads

ON_JAX = keras.backend.backend() == "jax"
WARPS = {
    "RandomPerspective": {},
    "RandomRotation": {"factor": 0.1},
    "RandomShear": {"x_factor": 0.2, "y_factor": 0.2},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.2},
}


def built(layer, **settings):
    keras.utils.set_random_seed(1)
    return ftk.build(
        residual(),
        heads.Classification(3),
        augment=layer,
        freeze=None,
        learning_rate=1e-2,
        **settings,
    )


@pytest.mark.parametrize("name", WARPS)
def test_a_warp_is_compiled_on_jax_alone_and_to_the_same_values(name):
    x, y = images(24)
    found = []
    for setting in ("auto", False):
        layer = getattr(keras.layers, name)(**WARPS[name], seed=3)
        model = built(layer, jit_compile=setting)
        assert model.jit_compile is (ON_JAX and setting == "auto")
        assert layer.supports_jit is ON_JAX
        model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
        found.append((snapshot(model), model.predict(x[:4], verbose=0)))
        if not ON_JAX:
            return
    for path, value in found[0][0].items():
        np.testing.assert_allclose(value, found[1][0][path], atol=1e-3, err_msg=path)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-3)


def test_what_jax_cannot_compile_is_left_to_keras():
    class Own(keras.layers.RandomZoom):
        pass

    for layer in (keras.layers.RandomCrop(16, 16, seed=1), Own(0.1, seed=1)):
        x, y = images(8, 16)
        model = built(layer)
        assert model.jit_compile is False
        model.fit(x, y, batch_size=8, verbose=0)


def test_a_loaded_model_is_compiled_too(tmp_path):
    built(keras.layers.RandomRotation(0.1)).save(tmp_path / "it.keras")
    assert ftk.load(tmp_path / "it.keras").jit_compile is ON_JAX


def test_a_model_that_keras_has_compiled_is_compiled_when_it_is_changed():
    model = built(keras.layers.RandomRotation(0.1))
    model.layers[1].supports_jit = False  # as Keras makes it
    model.compile("adam", "sparse_categorical_crossentropy")
    assert model.jit_compile is False
    ftk.compile(model, learning_rate=1e-3)
    assert model.jit_compile is ON_JAX
    ftk.compile(model, jit_compile=False)
    ftk.thaw(model, ftk.select.everything(), learning_rate=1e-3)
    assert model.jit_compile is False


def test_a_model_that_is_not_built_can_be_loaded(tmp_path):
    keras.Sequential([keras.layers.Dense(3)]).save(tmp_path / "it.keras")
    assert not ftk.load(tmp_path / "it.keras").built
