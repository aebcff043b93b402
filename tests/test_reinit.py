"""New values by the layers' own initialisers, and an optimizer that forgets the old ones."""

import random

import keras
import numpy as np
import pytest
from conftest import chain, moved, residual, snapshot, value, vectors

import finetune_keras as ftk
from finetune_keras import graph, heads, optimizers, select

layers = keras.layers


def spread(variable, low, high):
    assert low < value(variable).std() < high


def far(model):
    """Every weight at a value that no initialiser gives."""
    for v in model.weights:
        v.assign(np.full(v.shape, 7.0, v.dtype))


def built_of(*parts, shape):
    model = keras.Sequential([keras.Input(shape), *parts])
    far(model)
    return model


def test_a_block_starts_anew_and_the_rest_stays():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3))
    far(model)
    before = snapshot(model)
    found = ftk.reinit(model, select.blocks(slice(-1, None)))
    assert moved(before, model) == set(found.variables)
    assert set(found.layers) == {f"residual/block2_{n}" for n in ("short", "conv1", "bn", "conv2")}
    after = snapshot(model)
    for name, expected in (("gamma", 1), ("beta", 0), ("moving_mean", 0), ("moving_variance", 1)):
        np.testing.assert_array_equal(after[f"residual/block2_bn/{name}"], expected)
    np.testing.assert_array_equal(after["residual/block2_conv1/bias"], 0)
    limit = np.sqrt(6 / (2 * 9 * 8))  # Glorot, uniform
    kernel = after["residual/block2_conv1/kernel"]
    assert limit / 2 < np.abs(kernel).max() <= limit
    assert str(found).startswith("initialised anew: 10 variables in 4 layers, residual/block2_")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(64, kernel_initializer=keras.initializers.RandomNormal(0.0, 0.1)), (32,)),
        (
            layers.Conv1D(64, 3, kernel_initializer=keras.initializers.RandomNormal(0.0, 0.1)),
            (5, 8),
        ),
        (
            layers.DepthwiseConv2D(
                3, depthwise_initializer=keras.initializers.RandomNormal(0.0, 0.1)
            ),
            (5, 5, 64),
        ),
        (
            layers.EinsumDense(
                "abc,cd->abd",
                (None, 64),
                kernel_initializer=keras.initializers.RandomNormal(0.0, 0.1),
            ),
            (5, 32),
        ),
        (
            layers.Embedding(
                50, 32, embeddings_initializer=keras.initializers.RandomNormal(0.0, 0.1)
            ),
            (5,),
        ),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, layers.Layer) else "",
)
def test_its_own_initialiser(layer, shape):
    model = built_of(layer, shape=shape)
    ftk.reinit(model, select.everything())
    spread(model.weights[0], 0.08, 0.12)
    for other in model.weights[1:]:
        np.testing.assert_array_equal(value(other), 0)


def test_attention_and_normalisation():
    x = keras.Input((5, 16))
    attention = layers.MultiHeadAttention(
        4, 8, kernel_initializer=keras.initializers.RandomNormal(0.0, 0.1), name="mha"
    )
    model = keras.Model(x, layers.LayerNormalization(name="norm")(attention(x, x)))
    far(model)
    found = ftk.reinit(model, select.everything(), seed=0)
    assert len(found.variables) == 10
    kernels = {u.path: value(u.variable) for u in graph.opened(model).units if "kernel" in u.path}
    assert len(kernels) == 4
    for kernel in kernels.values():
        assert 0.08 < kernel.std() < 0.12
    assert not np.array_equal(kernels["mha/query/kernel"], kernels["mha/key/kernel"])
    np.testing.assert_array_equal(value(model.get_layer("norm").gamma), 1)


def test_an_encoder_of_keras_hub():
    hub = pytest.importorskip("keras_hub")
    base = hub.models.BertBackbone(
        vocabulary_size=30,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=8,
    )
    before = snapshot(base)
    far(base)
    found = ftk.reinit(base, select.blocks(slice(-3, None)), seed=3)
    after = snapshot(base)
    # BERT starts with a truncated normal of 0.02, whatever the layers' own default is.
    kernels = [after[p] for p in found.variables if p.endswith("kernel")]
    assert len(kernels) == 13
    for kernel in kernels:
        assert 0.012 < kernel.std() < 0.025
    assert {p.split("/")[0] for p in found.variables} == {
        "transformer_layer_1",
        "transformer_layer_2",
        "pooled_dense",
    }
    assert all((after[p] == 7).all() for p in before if p not in found.variables)


def test_a_seed_gives_the_same_values_and_leaves_pythons_own():
    model = chain()
    state = random.getstate()
    ftk.reinit(model, select.after("a"), seed=np.int64(5))
    assert random.getstate() == state
    first = snapshot(model)
    ftk.reinit(model, select.after("a"), seed=6)
    assert moved(first, model) == {"b/kernel", "c/kernel"}
    ftk.reinit(model, select.after("a"), seed=5)
    assert not moved(first, model)
    ftk.reinit(model, select.after("a"))
    assert moved(first, model) == {"b/kernel", "c/kernel"}


def test_single_variables():
    model = chain()
    far(model)
    before = snapshot(model)
    found = ftk.reinit(model, select.named("b/kernel"))
    assert found.variables == ("b/kernel",)
    assert found.layers == ("b",)
    assert moved(before, model) == {"b/kernel"}


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_optimizer_starts_again_there_and_nowhere_else(name):
    x, y = vectors()
    made = {
        "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(0.01),
    }[name]
    model = chain()
    model.compile(made(), "mse")
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    slots = {v.path.split("/", 1)[-1]: value(v) for v in model.optimizer.variables}
    ftk.reinit(model, select.named("^c/"), seed=1)
    again = {v.path.split("/", 1)[-1]: value(v) for v in model.optimizer.variables}
    assert slots.keys() == again.keys()
    for path, slot in slots.items():
        if "_c_" in path:
            np.testing.assert_array_equal(again[path], 0, err_msg=path)
        else:
            np.testing.assert_array_equal(again[path], slot, err_msg=path)
    before = snapshot(model)
    model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    moves = {p: np.abs(v - before[p]).max() for p, v in snapshot(model).items()}
    assert all(m > 0 for m in moves.values())
    if name == "adam":  # the first step is that of a training that begins
        np.testing.assert_allclose(moves["c/kernel"], 0.01, rtol=0.02)
    assert int(value(optimizers.innermost(model.optimizer).iterations)) == 9


def test_rates_by_depth_stay_and_averages_start_again():
    x, y = vectors()
    model = ftk.compile(chain(), loss="mse", layer_decay=0.5, ema_momentum=0.9)
    for _ in range(3):
        model.train_on_batch(x, y)

    def state():
        average = optimizers.averaging_of(model.optimizer)
        averages = dict(zip(snapshot(model), map(value, average._averages), strict=True))
        return optimizers.layerwise_of(model.optimizer).multipliers, averages

    multipliers, averages = state()
    ftk.reinit(model, select.named("^b/"), seed=1)
    same, again = state()
    assert same == multipliers
    assert len(set(same.values())) > 1
    for path, average in again.items():
        begun = snapshot(model)[path] if path.startswith("b/") else averages[path]
        np.testing.assert_array_equal(average, begun, err_msg=path)


def test_frozen_ones_are_named():
    model = ftk.build(ftk.backbone(residual()), heads.Classification(3), freeze=select.backbone())
    found = ftk.reinit(model, select.blocks(-1) | select.head())
    assert set(found.frozen) == {p for p in found.variables if p.startswith("residual")}
    assert "are frozen, so they stay at random: finetune_keras.thaw" in str(found)
    ftk.thaw(model, select.blocks(-1), norms=True)
    assert not ftk.reinit(model, select.blocks(-1) | select.head()).frozen


def test_what_adapt_measured_stays():
    norm = layers.Normalization()
    norm.adapt(np.arange(12.0).reshape(6, 2))
    model = keras.Sequential([keras.Input((2,)), norm, layers.Dense(2, name="d")])
    found = ftk.reinit(model, select.everything())
    assert found.variables == ("d/kernel", "d/bias")
    np.testing.assert_allclose(value(norm.mean).ravel(), [5, 6])
    with pytest.raises(ftk.SelectionError, match="nothing in .* to initialise"):
        ftk.reinit(model, select.norms())


@keras.saving.register_keras_serializable("test_reinit")
class Own(layers.Layer):
    """A layer that does not tell how it was made."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = self.add_weight(shape=table.shape, initializer="zeros", name="table")

    def call(self, x):
        return x + self.table


def test_a_layer_that_cannot_be_made_again_is_named_and_nothing_changes():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, name="d"), Own(np.zeros(3), name="mine")]
    )
    far(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"of 'mine' are not known.*\(Own: .*leave it out"):
        ftk.reinit(model, select.everything())
    assert not moved(before, model)
    ftk.reinit(model, select.everything() & ~select.of_type(Own))
    assert moved(before, model) == {"d/kernel", "d/bias"}


@pytest.mark.parametrize(
    ("selector", "given", "error", "message"),
    [
        (select.nothing(), {}, ftk.SelectionError, "matches nothing"),
        (select.named("nope"), {}, ftk.SelectionError, "matches no variable"),
        ("b", {}, TypeError, "expected a selector"),
        (select.head(), {"seed": -1}, ValueError, "seed is an integer of 0 or more.*-1"),
        (select.head(), {"seed": 1.5}, ValueError, "given 1.5"),
    ],
)
def test_errors_change_nothing(selector, given, error, message):
    model = chain()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        ftk.reinit(model, selector, **given)
    assert not moved(before, model)


def test_a_backbone_is_no_model():
    with pytest.raises(TypeError, match="given a Backbone; pass its .model"):
        ftk.reinit(ftk.backbone(residual()), select.everything())
