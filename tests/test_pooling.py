import keras
import numpy as np
import pytest

from finetune_keras import HeadError, build, select
from finetune_keras.heads import Classification
from finetune_keras.heads.pooling import POOLINGS, pool

MAP = (3, 4, 5)


def model_of(shape, pooling, *, dtype="float32", masked=False, mask_dtype="bool"):
    inputs = keras.Input(shape, dtype=dtype)
    mask = keras.Input(shape[:1], dtype=mask_dtype) if masked else None
    given = [inputs, mask] if masked else inputs
    return keras.Model(given, pool(inputs, pooling, mask=mask))


def run(model, *x):
    return np.array(keras.ops.convert_to_numpy(model(list(x) if len(x) > 1 else x[0])), "float32")


def features(*shape):
    return np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")


@pytest.mark.parametrize(
    ("pooling", "rule"),
    [
        ("avg", lambda x: x.mean(1)),
        ("max", lambda x: x.max(1)),
        ("avgmax", lambda x: 0.5 * (x.mean(1) + x.max(1))),
        ("gem", lambda x: np.mean(np.maximum(x, 1e-6) ** 3, 1) ** (1 / 3)),
        ("mean", lambda x: x.mean(1)),
        ("first", lambda x: x[:, 0]),
        (None, lambda x: x.reshape(2, -1)),
    ],
)
@pytest.mark.parametrize("shape", [(4, 5), MAP, (2, *MAP)])
def test_the_rules_against_numpy(pooling, rule, shape):
    if pooling in ("mean", "first") and len(shape) > 2:
        pytest.skip("for sequences")
    x = features(*shape)
    expected = rule(x.reshape(2, -1, shape[-1]))
    np.testing.assert_allclose(run(model_of(shape, pooling), x), expected, rtol=1e-5, atol=1e-6)


def test_attention_is_a_weighted_mean_that_starts_from_learned_scores():
    x = features(*MAP)
    model = model_of(MAP, "attention")
    kernel, bias = model.get_weights()
    flat = x.reshape(2, -1, 5)
    scores = flat @ kernel + bias
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(run(model, x), (weights * flat).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_dtype", ["bool", "int32"])
@pytest.mark.parametrize("pooling", ["avg", "mean", "max", "avgmax", "gem", "attention"])
def test_what_is_masked_counts_for_nothing_and_all_masked_is_no_nan(pooling, mask_dtype):
    x = features(4, 5)
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]]).astype(mask_dtype)
    model = model_of((4, 5), pooling, masked=True, mask_dtype=mask_dtype)
    plain = model_of((2, 5), pooling)
    plain.set_weights(model.get_weights())
    pooled = run(model, x, mask)
    np.testing.assert_allclose(pooled[0], run(plain, x[:, :2])[0], rtol=1e-5, atol=1e-6)
    x[0, 2:] = np.nan
    np.testing.assert_array_equal(run(model, x, mask)[0], pooled[0])
    assert np.isfinite(pooled[1]).all()
    assert np.abs(pooled[1]).max() < 1e-5


def test_first_ignores_the_mask():
    x = features(4, 5)
    none = np.zeros((2, 4), bool)
    np.testing.assert_array_equal(run(model_of((4, 5), "first"), x), x[:, 0])
    inputs, mask = keras.Input((4, 5)), keras.Input((4,), dtype="bool")
    head = keras.Model([inputs, mask], pool(inputs, "first", mask=mask))
    np.testing.assert_array_equal(run(head, x, none), x[:, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_comes_out_as_it_went_in_and_does_not_overflow(pooling, dtype):
    shape = (4, 5)
    x = np.full((2, *shape), 200.0, "float32")  # its cube is beyond float16
    model = model_of(shape, pooling, dtype=dtype)
    y = model(keras.ops.cast(x, dtype))
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    np.testing.assert_allclose(keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")), 200, 1e-2)


@pytest.mark.parametrize("pooling", ["gem", "avgmax", "attention"])
def test_gradients_at_zeros_are_finite(pooling):
    inputs = keras.Input(MAP)
    x = keras.layers.Conv2D(5, 1, kernel_initializer="zeros")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(pool(x, pooling)))
    model.compile("sgd", "mse")
    model.fit(features(*MAP), np.ones(2), verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_keras_alone_loads_the_file(pooling, tmp_path):
    head = Classification(3, pooling=pooling)
    inputs = keras.Input((None, 5))
    model = keras.Model(inputs, head(inputs))
    model.save(tmp_path / "a.keras")
    x = features(4, 5)
    again = keras.models.load_model(tmp_path / "a.keras", custom_objects={}, compile=False)
    np.testing.assert_allclose(run(again, x), run(model, x), atol=1e-6)
    assert not any(type(x).__module__.startswith("finetune") for x in again.layers)


def test_maps_of_an_open_size_pool():
    model = model_of((None, None, 5), "gem")
    assert model.output_shape == (None, 5)
    assert run(model, features(2, 3, 5)).shape == (2, 5)


def test_channels_first_pools_over_positions():
    x = features(*MAP)
    expected = run(model_of(MAP, "avgmax"), x)
    keras.config.set_image_data_format("channels_first")
    try:
        model = model_of((5, 3, 4), "avgmax")
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(run(model, np.moveaxis(x, -1, 1)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pool(keras.Input(MAP), "first"), "takes sequences.*use pooling='avg'"),
        (lambda: pool(keras.Input(MAP), "mean"), "takes sequences.*use pooling='avg'"),
        (lambda: pool(keras.Input((2, 2, *MAP)), "gem"), "at most 5 dimensions"),
        (lambda: pool(keras.Input((4, 4, None)), "gem"), "no fixed width.*input_shape"),
        (lambda: pool(keras.Input((None, 4)), None), "fixed size.*pooling='avg'"),
        (
            lambda: pool(keras.Input((4, 5)), "avg", mask=keras.Input((3,))),
            r"has shape \(batch, steps\); given \(None, 3\)",
        ),
        (lambda: Classification(3, pooling="gem3"), "did you mean 'gem'"),
    ],
)
def test_a_pooling_that_does_not_fit_names_the_fix(call, message):
    with pytest.raises(HeadError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def tokens():
    ids = np.array([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]])
    return {
        "token_ids": ids.astype("int32"),
        "segment_ids": np.zeros_like(ids).astype("int32"),
        "padding_mask": (ids > 0).astype("int32"),
    }


@pytest.fixture(scope="module")
def bert():
    hub = pytest.importorskip("keras_hub")
    base = hub.models.BertBackbone(
        vocabulary_size=20, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8
    )
    return keras.Model(base.input, base.output["sequence_output"], name="bert")


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_the_padding_mask_of_a_text_backbone_reaches_the_pooling(bert, pooling, tmp_path):
    model = build(bert, Classification(3, pooling=pooling), freeze=select.backbone())
    x = tokens()
    before = model.predict(x, verbose=0)
    other = {**x, "token_ids": np.where(x["padding_mask"], x["token_ids"], 11)}
    np.testing.assert_allclose(model.predict(other, verbose=0), before, atol=1e-6)
    # Without the mask what stands in padding would count.
    blind = keras.Model(bert.input, pool(bert.output, "mean"))
    assert not np.allclose(blind.predict(x, verbose=0), blind.predict(other, verbose=0), atol=1e-3)
    model.fit(x, np.array([0, 2]), verbose=0)
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_the_head_of_a_masked_model_can_be_replaced(bert):
    from finetune_keras import backbone, replace_head

    model = build(bert, Classification(3, pooling="mean"))
    new = replace_head(model, Classification(2, pooling="attention"))
    assert new.predict(tokens(), verbose=0).shape == (2, 2)
    assert backbone(model).network.output_shape == (None, None, 8)
