"""These fail as soon as Keras changes what ``_private`` touches."""

import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from conftest import chain, value

from finetune_keras import _private


def test_sublayers_lists_what_a_layer_holds():
    attention = keras.layers.MultiHeadAttention(2, 4, name="mha")
    x = keras.Input((5, 8))
    attention(x, x)
    names = [layer.name for layer in _private.sublayers(attention)]
    assert {"query", "key", "value", "attention_output"} <= set(names)


def test_own_weights_tells_learnable_from_statistics_even_when_frozen():
    norm = keras.layers.BatchNormalization()
    norm.build((None, 4))
    norm.trainable = False
    learnable, statistics = _private.own_weights(norm)
    assert [v.name for v in learnable] == ["gamma", "beta"]
    assert [v.name for v in statistics] == ["moving_mean", "moving_variance"]


def test_own_weights_leaves_random_state_out():
    dropout = keras.layers.Dropout(0.5, seed=1)
    dropout.build((None, 4))
    assert dropout.variables  # the seed
    assert _private.own_weights(dropout) == ([], [])


def test_compile_arguments_gives_back_the_objects():
    def loss(y, p):
        return keras.ops.mean((y - p) ** 2, axis=-1)

    model = chain()
    metric = keras.metrics.MeanAbsoluteError()
    model.compile("sgd", loss=loss, metrics=[metric])
    kept = _private.compile_arguments(model)
    assert kept["loss"] is loss
    assert kept["metrics"][0] is metric
    model.compile(**kept)
    model.train_on_batch(np.zeros((2, 6)), np.zeros((2, 3)))


def test_compile_call_is_another_object_after_each_call():
    model = chain()
    model.compile("sgd", "mse")
    first = _private.compile_call(model)
    assert _private.compile_call(model) is first
    model.compile("sgd", "mse")
    assert _private.compile_call(model) is not first


def test_built_on_is_what_the_optimizer_first_saw():
    model = chain()
    optimizer = keras.optimizers.Adam()
    assert _private.built_on(optimizer) == []
    optimizer.build(model.trainable_variables)
    model.layers[0].trainable = False
    found = [id(v) for v in _private.built_on(optimizer)]
    assert found == [id(v) for layer in model.layers for v in layer.weights]


def test_decay_exclusions_are_copied():
    model = chain()
    optimizer = keras.optimizers.AdamW()
    kernel = model.trainable_variables[0]
    optimizer.exclude_from_weight_decay(var_list=[kernel], var_names=["bias"])
    copy = keras.optimizers.AdamW()
    _private.copy_decay_exclusions(optimizer, copy)
    decayed = [copy._use_weight_decay(v) for v in model.trainable_variables]
    assert decayed == [False, False, True, False, True, False]


def test_exclude_from_decay_adds_to_what_was_excluded():
    model = chain()
    optimizer = keras.optimizers.AdamW()
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    optimizer.exclude_from_weight_decay(var_list=[kernels[0]], var_names=["bias"])
    _private.exclude_from_decay(optimizer, [kernels[1]])
    decayed = [optimizer._use_weight_decay(v) for v in model.trainable_variables]
    assert decayed == [False, False, False, False, True, False]


def test_global_seeds_is_what_unseeded_operations_draw_from():
    keras.utils.set_random_seed(1)
    _private.set_global_seeds(None)
    assert _private.global_seeds() is None
    first = value(keras.random.normal((3,)))
    made = _private.global_seeds()
    state = value(made.state)
    second = value(keras.random.normal((3,)))
    _private.set_global_seeds(made)
    made.state.assign(state)
    assert np.array_equal(value(keras.random.normal((3,))), second)
    assert not np.array_equal(first, second)


def test_rate_object_is_the_schedule_itself():
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    assert _private.rate_object(keras.optimizers.Adam(schedule)) is schedule
    assert isinstance(_private.rate_object(keras.optimizers.Adam(1e-3)), keras.Variable)


def test_training_now_is_told_to_a_call_without_the_argument():
    seen = []

    class Asks(keras.layers.Layer):
        def call(self, x):
            seen.append(_private.training_now(self))
            return x

    model = keras.Sequential([keras.Input((2,)), Asks()])
    seen.clear()
    for training in (True, False, None):
        model(np.zeros((1, 2), "float32"), training=training)
    assert [bool(s) for s in seen] == [True, False, False]


def test_uncast_gives_full_precision_inside_a_layer_of_another():
    class Reads(keras.layers.Dense):
        def call(self, x):
            found.append(
                (self.kernel.value.dtype, *(v.dtype for v in _private.uncast([self.kernel])))
            )
            return super().call(x)

    found = []
    layer = Reads(2, dtype="mixed_bfloat16")
    layer(np.zeros((1, 2), "float32"))
    cast, own = (keras.backend.standardize_dtype(d) for d in found[-1])
    assert (cast, own) == ("bfloat16", "float32")


def test_share_start_is_where_fit_begins():
    one, other = chain(), chain()
    other.compile("sgd", "mse")
    one._initial_epoch = 2  # as BackupAndRestore leaves it
    _private.share_start(one, other)
    history = other.fit(np.ones((4, 6)), np.ones((4, 3)), epochs=3, verbose=0)
    assert history.epoch == [2]


def test_start_of_is_what_a_callback_left():
    model = chain()
    assert _private.start_of(model) is None
    model._initial_epoch = 2
    assert _private.start_of(model) == 2


def test_take_start_is_told_once():
    model = chain()
    model._initial_epoch = 2
    assert _private.take_start(model) == 2
    assert _private.take_start(model) is None


def test_compiled_in_fit_keeps_what_fit_has_built():
    model = chain()
    model.compile("sgd", "mse", metrics=["mae"])

    class Again(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            with _private.compiled_in_fit(self.model):
                self.model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
                self.model.optimizer.build(self.model.trainable_variables)

    before = model.get_weights()
    history = model.fit(
        np.ones((4, 6)), np.ones((4, 3)), epochs=2, verbose=0, callbacks=[Again()]
    ).history
    assert set(history) == {"loss", "mae"}
    assert [m.name for m in model.metrics] == ["loss", "compile_metrics"]
    assert history["mae"][0] == history["mae"][1] > 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_in_safe_mode_is_what_the_loading_was_asked_for(tmp_path):
    seen = []

    @keras.saving.register_keras_serializable(package="test_private")
    class Asks(keras.layers.Layer):
        def call(self, x):
            return x

        @classmethod
        def from_config(cls, config):
            seen.append(_private.in_safe_mode())
            return cls(**config)

    assert _private.in_safe_mode() is None
    keras.Sequential([keras.Input((2,)), Asks()]).save(tmp_path / "asks.keras")
    for safe_mode in (True, False):
        keras.models.load_model(tmp_path / "asks.keras", safe_mode=safe_mode)
    assert seen == [True, False]
    assert _private.in_safe_mode() is None


def test_known_code_is_a_scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    with pytest.raises(ValueError, match="safe_mode"):
        keras.Sequential.from_config(model.get_config())
    with _private.known_code():
        again = keras.Sequential.from_config(model.get_config())
    assert len(again.layers) == 1
    assert _private.in_safe_mode() is None


def test_families_that_keras_hub_converts():
    """Each converter is a module; the loaders that choose one have no public list."""
    families = _private.converted_families("transformers")
    assert {"bert", "vit", "dinov2", "distilbert"} <= set(families)
    assert "preset_loader" not in families
    assert {"resnet", "efficientnet"} <= set(_private.converted_families("timm"))


def test_tensors_read_are_those_that_a_converter_takes(tmp_path):
    pytest.importorskip("safetensors")
    import keras_hub
    from checkpoints import transformers_bert

    transformers_bert(tmp_path)
    with _private.tensors_read() as (read, there):
        keras_hub.models.BertBackbone.from_preset(str(tmp_path), load_weights=False)
    assert not read
    with _private.tensors_read() as (read, there):
        keras_hub.models.BertBackbone.from_preset(str(tmp_path))
    assert there
    assert there <= read  # it also tries names that older files have
    before = set(read)
    keras_hub.models.BertBackbone.from_preset(str(tmp_path))
    assert read == before


def test_tensors_read_by_another_thread_are_not_ours():
    from keras_hub.src.utils.transformers.safetensor_utils import SafetensorLoader

    usual = SafetensorLoader.get_prefixed_key
    loader = types.SimpleNamespace(prefix=None)
    names = {"a": 0, "b": 0}
    ready, left = threading.Event(), threading.Event()

    def other():
        ready.set()
        with _private.tensors_read() as (read, _):
            left.wait(0.2)  # until the first has gone, or would have
            SafetensorLoader.get_prefixed_key(loader, "b", names)
            return read

    with ThreadPoolExecutor(1) as threads:
        with _private.tensors_read() as (read, _):
            found = threads.submit(other)
            ready.wait()
            time.sleep(0.05)
            SafetensorLoader.get_prefixed_key(loader, "a", names)
        left.set()
        assert read == {"a"}
        assert found.result() == {"b"}
    assert SafetensorLoader.get_prefixed_key is usual  # and not what the other thread found


def test_layer_scale_is_written_and_read_by_its_module():
    """ConvNeXt's layer has no public name, and Keras' own files name its module."""
    layer = keras.saving.deserialize_keras_object(
        {
            **_private.layer_scale(),
            "config": {"init_values": 0.5, "projection_dim": 4, "name": "scale"},
        }
    )
    made = keras.ops.convert_to_numpy(layer(np.ones((1, 4), "float32")))
    np.testing.assert_allclose(made, np.full((1, 4), 0.5))
    written = keras.saving.serialize_keras_object(layer)
    assert {k: written[k] for k in _private.layer_scale()} == _private.layer_scale()


def test_metrics_say_which_way_is_better():
    metrics = keras.metrics
    assert _private.metric_direction(metrics.SparseCategoricalAccuracy()) == "max"
    assert _private.metric_direction(metrics.AUC()) == "max"
    assert _private.metric_direction(metrics.MeanAbsoluteError()) == "min"
    assert _private.metric_direction(metrics.Mean()) is None
