"""SavedModels of TF Hub's kind as backbones: they learn, freeze by scope, and travel in files."""

import gc
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import saved_models
from conftest import moved, same, snapshot, value

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.backbones import saved_files
from finetune_keras.backbones.scopes import Weight, grouped, kinds

tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel runs in TensorFlow"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each module once, by name."""
    root = tmp_path_factory.mktemp("modules")

    def make(name):
        if not (root / name).exists():
            getattr(saved_models, name)(root / name)
        return root / name

    return make


@pytest.fixture
def net(folder):
    return ftk.backbone(folder("conv_net"), input_shape=(8, 8, 3))


def images(n=6):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (n, 8, 8, 3)).astype("float32"), np.arange(n, dtype="int32") % 3


def foreign(folder):
    import tensorflow as tf

    return tf.saved_model.load(str(folder))


def layer_of(base):
    return base.network.get_layer("saved_model")


def names(paths):
    """Paths without what is before the module's own name."""
    return {p.split("saved_model/")[-1] for p in paths}


# Other backends


def test_another_backend_is_one_line(tmp_path):
    if keras.backend.backend() == "tensorflow":
        pytest.skip("runs in TensorFlow")
    (tmp_path / "saved_model.pb").write_bytes(b"")
    for source in (tmp_path, "https://tfhub.dev/google/nnlm/1"):
        with pytest.raises(ValueError, match="KERAS_BACKEND=tensorflow") as e:
            ftk.backbone(source)
        assert "\n" not in str(e.value)


# What it computes


@tensorflow
def test_it_computes_what_the_module_computes_in_both_modes(net, folder):
    x, _ = images()
    theirs = foreign(folder("conv_net"))
    same(net.model(x, training=False), theirs(x, training=False), atol=1e-6)
    same(net.model(x, training=True), theirs(x, training=True), atol=1e-6)
    assert net.model.output_shape == (None, 4)
    assert net.model.input_shape == (None, 8, 8, 3)


@tensorflow
def test_its_variables_are_the_modules_own(net):
    variable = next(v for v in net.network.weights if v.path.endswith("stem/kernel"))
    inside = layer_of(net).foreign.z.kernel
    assert variable.value is inside
    variable.assign(keras.ops.zeros(variable.shape))
    assert not value(inside).any()
    x, _ = images()
    assert np.ptp(value(net.model(x)), axis=0).max() == 0, "the function reads another kernel"


@tensorflow
@pytest.mark.parametrize("eager", [False, True])
def test_a_fit_step_is_a_tape_step(folder, eager):
    """Weights, moving statistics and regularisation as in a loop by hand on the module."""
    import tensorflow as tf

    base = ftk.backbone(folder("conv_net"), input_shape=(8, 8, 3))
    model = ftk.build(base, heads.Classification(3), optimizer="sgd", learning_rate=0.1)
    model.run_eagerly = eager
    kernel, bias = (tf.Variable(value(v)) for v in model.get_layer("ftk_head_output").weights)
    x, y = images()
    theirs = foreign(folder("conv_net"))
    learn = [v for m in (theirs.z, theirs.a, theirs.b) for v in _variables(m) if v.trainable]
    for _ in range(2):
        with tf.GradientTape() as tape:
            logits = theirs(x, training=True) @ kernel + bias
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(tf.constant(y), logits)
            )
            loss += sum(f() for f in theirs.regularization_losses)
        gradients = tape.gradient(loss, [*learn, kernel, bias])
        for variable, gradient in zip([*learn, kernel, bias], gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    history = model.fit(x, y, batch_size=6, epochs=2, verbose=0)
    same(history.history["loss"][-1], loss, atol=1e-5)
    mine = {v.path.split("saved_model/")[-1]: v for v in base.network.weights}
    assert len(mine) == 25
    for v in (v for m in (theirs.z, theirs.a, theirs.b) for v in _variables(m)):
        same(mine[_path(v, mine)], v, atol=1e-5)
    same(model.get_layer("ftk_head_output").kernel, kernel, atol=1e-5)


def _variables(module):
    import tensorflow as tf

    found = tf.train.TrackableView(module).descendants()
    return [v for v in found if isinstance(v, tf.Variable)]


def _path(variable, known):
    path = variable.name.removesuffix(":0")
    return next(k for k in known if k.endswith(path))


@tensorflow
def test_it_learns_to_tell_classes(net):
    x, y = images(30)
    x = x * 0.2 + 0.3 * np.eye(3, dtype="float32")[y][:, None, None, :]
    model = ftk.build(net, heads.Classification(3), optimizer="adam", learning_rate=1e-2)
    model.fit(x, y, epochs=20, batch_size=10, verbose=0)
    assert model.evaluate(x, y, verbose=0)[1] > 0.9


# Freezing by scope


@tensorflow
def test_blocks_are_scopes_in_the_order_in_which_they_compute(net):
    assert [b.name for b in net.blocks] == ["stem", "block1", "block2"]
    assert [len(b.units) for b in net.blocks] == [5, 10, 10]
    chosen = select.resolve(net.network, select.up_to("block1"))
    assert {u.path for u in chosen} == {u.path for b in net.blocks[:2] for u in b.units}
    chosen = select.resolve(net.network, select.after("block1/conv1"))
    assert {u.path for u in chosen} == {u.path for u in net.blocks[2].units}


@tensorflow
def test_a_module_that_is_called_twice_has_its_blocks_once(net):
    one, two = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="two")
    both = keras.layers.Concatenate(name="both")([net.network(one), net.network(two)])
    base = ftk.backbone(keras.Model([one, two], both, name="siamese"))
    assert [b.name for b in base.blocks] == ["stem", "block1", "block2"]
    assert sum(len(b.units) for b in base.blocks) == 25


@tensorflow
def test_a_scope_is_frozen_by_name_and_the_rest_learns(net):
    model = ftk.build(
        net, heads.Classification(3), freeze=select.named(r"net/(stem|block1)"), learning_rate=0.01
    )
    rows = {r.name: r.state for r in ftk.describe(model).rows}
    assert rows == {
        "stem": "frozen",
        "block1": "frozen",
        "block2": "learning",
        "ftk_head_output": "learning",
    }
    x, y = images()
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    changed = names(moved(before, model))
    assert changed == {
        "net/block2/conv1/kernel",
        "net/block2/conv2/kernel",
        *(f"net/block2/conv{i}_bn/{v}" for i in (1, 2) for v in ("gamma", "beta")),
        "ftk_head_output/kernel",
        "ftk_head_output/bias",
    }
    assert any("inference mode" in note for note in ftk.describe(model).notes)


@tensorflow
def test_a_frozen_module_is_in_inference_mode(net, folder):
    model = ftk.build(net, heads.Classification(3), freeze=select.backbone())
    x, y = images()
    same(net.model(x, training=True), foreign(folder("conv_net"))(x, training=False), atol=1e-6)
    assert not model.losses, "the regularisation of frozen weights is in the loss"
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert names(moved(before, model)) == {"ftk_head_output/kernel", "ftk_head_output/bias"}


@tensorflow
def test_thaw_leaves_normalisations_and_their_statistics(net):
    model = ftk.build(net, heads.Classification(3), freeze=select.backbone())
    change = ftk.thaw(model, select.backbone(), learning_rate=1e-2)
    assert {p.rsplit("/", 1)[1] for p in change.thawed} == {"kernel"}
    assert len(change.norms) == 20
    x, y = images()
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert {p.rsplit("/", 1)[1] for p in names(moved(before, model))} == {"kernel", "bias"}
    ftk.thaw(model, select.backbone(), learning_rate=1e-2, norms=True)
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    assert len(moved(before, model)) == len(before), "statistics do not move"


@tensorflow
def test_adam_goes_on_after_thaw(net):
    x, y = images()
    model = ftk.build(net, heads.Classification(3), freeze=select.backbone(), optimizer="adam")
    model.fit(x, y, verbose=0)
    ftk.thaw(model, select.blocks(-1), learning_rate=1e-3)
    before = snapshot(model)
    model.fit(x, y, verbose=0)
    step = [np.abs(value(v) - before[p]).max() for p, v in _weights(model) if "block2" in p]
    assert 0 < max(step) < 1.2e-3


def _weights(model):
    from finetune_keras import graph

    return [(u.path, u.variable) for u in graph.opened(model).units]


@tensorflow
def test_a_frozen_module_is_computed_once(net):
    x, y = images(12)
    model = ftk.build(net, heads.Classification(3), freeze=select.backbone(), optimizer="sgd")
    prefix, suffix = ftk.split(model)
    same(suffix(prefix(x)), model(x, training=True), atol=1e-6)
    assert len(suffix.weights) == 2
    plain = [value(w) for w in model.get_weights()]
    a = model.fit(x, y, epochs=3, shuffle=False, verbose=0).history["loss"]
    model.set_weights(plain)
    b = ftk.fit(model, x, y, epochs=3, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(a, b, atol=1e-5)
    ftk.thaw(model, select.blocks(-1))
    prefix, _ = ftk.split(model)
    assert not prefix.weights, "part of a layer cannot be computed once"


# Files


@tensorflow
def test_a_file_is_whole_and_needs_consent(folder, tmp_path):
    shutil.copytree(folder("conv_net"), tmp_path / "gone")
    base = ftk.backbone(tmp_path / "gone", input_shape=(8, 8, 3))
    model = ftk.build(base, heads.Classification(class_names=["a", "b", "c"]), optimizer="adam")
    ftk.freeze(model, select.blocks(slice(0, 2)) | select.named("block2/conv1/kernel"))
    x, y = images()
    model.fit(x, y, verbose=0)
    shutil.rmtree(tmp_path / "gone")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "out.npy", value(model(x, training=False)))
    for load in (keras.models.load_model, ftk.load):
        with pytest.raises(ValueError, match="safe_mode=False") as e:
            load(tmp_path / "model.keras")
        assert "\n" not in str(e.value)
    code = f"""
import sys
import keras, numpy as np
import finetune_keras as ftk
from finetune_keras import flags, graph
path = {str(tmp_path)!r}
for load in (keras.models.load_model, ftk.load):
    model = load(path + "/model.keras", safe_mode=False)
    x, y = np.load(path + "/x.npy"), np.arange(6) % 3
    assert np.abs(np.array(model(x, training=False)) - np.load(path + "/out.npy")).max() < 1e-6
    learn = [u.path for u in graph.opened(model).units if u.learnable and u.variable.trainable]
    assert len(learn) == 7 and not any("block1" in p or "conv1/kernel" in p for p in learn), learn
    assert int(model.optimizer.iterations) == 1
    model.fit(x, y, verbose=0)
    model.save(path + "/again.keras")
assert ftk.record.read(model).class_names == ("a", "b", "c")
try:
    keras.models.load_model(path + "/again.keras")
except ValueError as e:
    assert "safe_mode=False" in str(e)
else:
    raise AssertionError("loaded without consent")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


@tensorflow
def test_a_frozen_backbone_is_frozen_after_loading_and_thaws(net, tmp_path):
    x, y = images()
    model = ftk.build(net, heads.Classification(3), freeze=select.backbone())
    model.save(tmp_path / "frozen.keras")
    saved_files._known.clear()
    for load in (keras.models.load_model, ftk.load):
        again = load(tmp_path / "frozen.keras", safe_mode=False)
        before = snapshot(again)
        again.fit(x, y, verbose=0)
        assert names(moved(before, again)) == {"ftk_head_output/kernel", "ftk_head_output/bias"}
    ftk.thaw(again, select.blocks(-1), learning_rate=1e-2)
    before = snapshot(again)
    again.fit(x, y, verbose=0)
    assert {"net/block2/conv1/kernel"} <= names(moved(before, again))


@tensorflow
@pytest.mark.parametrize("instead", ["text", "nothing"])
def test_a_file_with_another_savedmodel_is_refused(net, folder, tmp_path, instead, monkeypatch):
    import zipfile

    net.model.save(tmp_path / "a.keras")
    old = zipfile.ZipFile(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "b.keras", "w") as new:
        for name in old.namelist():
            if "saved_model.pb" not in name:
                new.writestr(name, old.read(name))
            elif instead == "text":
                new.write(folder("text") / "saved_model.pb", name)
    monkeypatch.setattr(saved_files, "_known", {})
    with pytest.raises(ValueError, match="SavedModel"):
        keras.models.load_model(tmp_path / "b.keras", safe_mode=False)(images()[0])


@tensorflow
def test_a_copy_has_variables_and_flags_of_its_own(net):
    x, y = images()
    ftk.freeze(net.network, select.named("stem"))
    other = net.copy()
    same(other.model(x), net.model(x), atol=0)
    states = [[v.trainable for v in b.network.weights] for b in (net, other)]
    assert states[0] == states[1]
    model = ftk.build(other, heads.Classification(3), learning_rate=0.1)
    before = snapshot(net.network)
    model.fit(x, y, verbose=0)
    assert not moved(before, net.network)
    assert np.abs(value(other.model(x)) - value(net.model(x))).max() > 0
    nested = ftk.backbone(model).copy()
    same(nested.model(x), ftk.backbone(model).model(x), atol=0)


@tensorflow
@pytest.mark.parametrize("backwards", [False, True])
def test_of_several_traces_the_most_general_in_inference_counts(tmp_path, backwards):
    base = ftk.backbone(saved_models.dense_net(tmp_path / "net", backwards=backwards))
    assert base.network.input_shape == (None, 4)
    assert [v.path.split("net/")[-1] for v in base.network.weights] == [
        "layer_1/kernel",
        "layer_1/bias",
        "layer_2/scale",
        "layer_2/dense/kernel",
    ]


@tensorflow
@pytest.mark.parametrize("frozen", ["layer_1/bias", "layer_2/scale", "layer_2/dense/kernel"])
def test_one_frozen_variable_is_frozen_in_a_copy_and_in_a_file(tmp_path, frozen):
    base = ftk.backbone(saved_models.dense_net(tmp_path / "net"))
    ftk.freeze(base.network, select.named(f"{frozen}$"))
    base.network.save(tmp_path / "net.keras")
    later = keras.models.load_model(tmp_path / "net.keras", safe_mode=False)
    for network in (base.network, base.copy().network, later):
        learn = {v.path.split("net/")[-1] for v in network.trainable_variables}
        every = {v.path.split("net/")[-1] for v in network.weights}
        assert every - learn == {frozen}


@tensorflow
def test_modules_of_the_same_files_share_one_copy_of_them(folder):
    first, second = (ftk.backbone(folder("conv_net"), input_shape=(8, 8, 3)) for _ in range(2))
    assert layer_of(first)._module.store is layer_of(second)._module.store
    del second
    gc.collect()
    x = images()[0]
    same(first.copy().model(x), first.model(x), atol=0)


# Dicts and strings


@tensorflow
def test_dicts_in_and_out(folder):
    rng = np.random.default_rng(1)
    x = {
        "input_word_ids": rng.integers(0, 20, (4, 7)).astype("int32"),
        "input_mask": np.array([[1] * 7, [1] * 3 + [0] * 4] * 2, "int32"),
    }
    expected = foreign(folder("encoder"))(x, training=False)
    whole = ftk.backbone(folder("encoder"))
    found = whole.model(x, training=False)
    assert set(found) == {"pooled_output", "sequence_output"}
    for key, tensor in found.items():
        same(tensor, expected[key], atol=1e-6)
    assert [b.name for b in whole.blocks] == ["word_embeddings", "layer_0", "layer_1", "layer_2"]
    for options in ({"output_key": "pooled_output"}, {"cut_at": "pooled_output"}):
        base = ftk.backbone(folder("encoder"), **options)
        same(base.model(x, training=False), expected["pooled_output"], atol=1e-6)
        model = ftk.build(base, heads.Classification(3), freeze=select.up_to("layer_1"))
        before = snapshot(model)
        model.fit(x, np.arange(4) % 3, verbose=0)
        changed = names(moved(before, model))
        assert {p.split("/")[1] for p in changed if "transformer" in p} == {"layer_2"}
    fixed = ftk.backbone(
        folder("encoder"), input_shape={"input_word_ids": (7,), "input_mask": (7,)}
    )
    assert fixed.model.output["sequence_output"].shape == (None, 7, 8)


@tensorflow
def test_a_head_on_a_sequence_leaves_padding_out(folder):
    base = ftk.backbone(folder("encoder"), output_key="sequence_output")
    model = ftk.build(base, heads.Classification(3))
    ids = np.ones((2, 5), "int32")
    mask = np.array([[1, 1, 1, 0, 0]] * 2, "int32")
    ids[1, 3:] = 7
    out = value(model({"input_word_ids": ids, "input_mask": mask}))
    np.testing.assert_allclose(out[0], out[1], atol=1e-6)


@tensorflow
def test_dropout_of_a_module_without_statistics_stays_on_while_part_of_it_learns(folder):
    base = ftk.backbone(folder("encoder"), output_key="pooled_output")
    ftk.freeze(base.network, select.blocks(slice(0, 3)))
    x = {k: np.ones((2, 5), "int32") for k in ("input_word_ids", "input_mask")}
    a, b = (value(base.model(x, training=True)) for _ in range(2))
    assert np.abs(a - b).max() > 0
    ftk.freeze(base.network, select.everything())
    a, b = (value(base.model(x, training=True)) for _ in range(2))
    np.testing.assert_array_equal(a, b)


@tensorflow
def test_text_goes_in_as_strings(folder, tmp_path):
    import tensorflow as tf

    base = ftk.backbone(folder("text"))
    texts = np.array(["the cat sat", "the dog", "cat cat", "an owl"], object)
    x, y = tf.constant(texts), np.array([0, 1, 0, 1])
    same(base.model(x), foreign(folder("text"))(x), atol=1e-6)
    assert base.model.input_shape == (None,)
    model = ftk.build(base, heads.Classification(2), optimizer="adam", learning_rate=0.05)
    before = snapshot(model)
    model.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(2), epochs=10, verbose=0)
    assert len(moved(before, model)) == 3
    assert (value(model.predict(x, verbose=0)).argmax(-1) == y).all()
    model.save(tmp_path / "text.keras")
    expected = value(model(x))
    (folder("text").parent / "words.txt").unlink(missing_ok=True)
    saved_files._known.clear()
    again = ftk.load(tmp_path / "text.keras", safe_mode=False)
    same(again(x), expected, atol=1e-6)
    ftk.freeze(model, select.backbone())
    features, _, _ = ftk.features(ftk.split(model)[0], x).view()
    same(features, base.model(x), atol=1e-6)


@tensorflow
def test_a_preprocessor_and_an_encoder_are_one_backbone(folder, tmp_path):
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = ftk.backbone(folder("tokens"))
    encoder = ftk.backbone(folder("encoder"), output_key="pooled_output")
    inputs = keras.Input((), dtype="string")
    whole = keras.Model(inputs, encoder.model(before.model(inputs)), name="texts")
    base = ftk.backbone(whole)
    assert [b.name for b in base.blocks] == ["word_embeddings", "layer_0", "layer_1", "layer_2"]
    x = tf.constant(["the cat sat", "a dog"])
    theirs = foreign(folder("encoder"))(foreign(folder("tokens"))(x), training=False)
    same(base.model(x, training=False), theirs["pooled_output"], atol=1e-6)
    model = ftk.build(base, heads.Classification(2), freeze=select.up_to("layer_1"))
    data = tf.data.Dataset.from_tensor_slices((x, [0, 1])).batch(2)
    start = snapshot(model)
    ftk.fit(model, data, epochs=2, verbose=0)
    assert len(moved(start, model)) == 4
    model.save(tmp_path / "texts.keras")
    saved_files._known.clear()
    same(ftk.load(tmp_path / "texts.keras", safe_mode=False)(x), model(x), atol=1e-6)


# Modules that cannot learn


@tensorflow
def test_a_module_of_tensorflow_1_infers_and_says_why_it_cannot_learn(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"'signature' cannot learn.*signature 'default'"):
        base = ftk.backbone(folder("signature"))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    same(base.model(x), x @ np.ones((6, 4), "float32") / 3, atol=1e-5)
    model = ftk.build(base, heads.Classification(2), freeze=select.backbone())
    before = snapshot(model)
    model.fit(x, np.arange(4) % 2, verbose=0)
    assert names(moved(before, model)) == {"ftk_head_output/kernel", "ftk_head_output/bias"}
    with pytest.raises(ValueError, match=r"can learn: it has only the signature"):
        ftk.thaw(model, select.backbone())
    assert any("cannot learn" in note for note in ftk.describe(model).notes)
    assert len(ftk.split(model)[0].weights) == 1
    model.save(tmp_path / "one.keras")
    saved_files._known.clear()
    again = ftk.load(tmp_path / "one.keras", safe_mode=False)
    same(again(x), model(x), atol=1e-6)
    kernel = next(v for v in again.weights if v.path.endswith("scope/kernel"))
    same(kernel, np.ones((6, 4)) / 3, atol=1e-6)


@tensorflow
def test_an_export_of_keras_learns_in_inference_mode(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = ftk.backbone(folder("export"))
    assert [b.name for b in base.blocks] == ["stem_conv", "block1_conv2", "block2_conv2"]
    x = np.random.default_rng(0).uniform(0, 1, (4, 16, 16, 3)).astype("float32")
    theirs = foreign(folder("export"))
    same(base.model(x), theirs.serve(x), atol=1e-5)
    model = ftk.build(base, heads.Classification(3), learning_rate=1e-2)
    before = snapshot(model)
    model.fit(x, np.arange(4) % 3, verbose=0)
    still = {p.rsplit("/", 1)[1] for p in set(before) - moved(before, model)}
    assert still == {"moving_mean", "moving_variance"}
    assert any("export for inference" in note for note in ftk.describe(model).notes)


# Handles


@tensorflow
@pytest.mark.parametrize(
    ("handle", "name"),
    [
        ("https://tfhub.dev/google/imagenet/resnet/feature_vector/5", "resnet_feature_vector"),
        ("https://www.kaggle.com/models/google/small/TensorFlow2/net/1", "TensorFlow2_net"),
    ],
)
def test_a_handle_is_resolved_by_tensorflow_hub(handle, name, folder, monkeypatch):
    hub = pytest.importorskip("tensorflow_hub")
    asked = []
    monkeypatch.setattr(hub, "resolve", lambda h: asked.append(h) or str(folder("conv_net")))
    base = ftk.backbone(handle, input_shape=(8, 8, 3))
    assert asked == [handle]
    assert base.network.name == name
    assert base.source == handle
    x, _ = images()
    # Hub's images are from 0 to 1, and ours from 0 to 255.
    same(base.model(255 * x), foreign(folder("conv_net"))(x, training=False), atol=1e-5)
    plain = ftk.backbone(handle, input_shape=(8, 8, 3), preprocessing=None)
    same(plain.model(x), base.model(255 * x), atol=1e-5)


@tensorflow
def test_a_handle_that_cannot_be_fetched_says_what_to_do(monkeypatch):
    hub = pytest.importorskip("tensorflow_hub")

    def fails(handle):
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "resolve", fails)
    with pytest.raises(ftk.WeightsError, match=r"no route to host.*TFHUB_CACHE_DIR") as e:
        ftk.backbone("https://tfhub.dev/google/none/1")
    assert "\n" not in str(e.value)


@tensorflow
def test_setuptools_without_pkg_resources_is_named(monkeypatch):
    from finetune_keras import _optional

    def missing(module, extra):
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    monkeypatch.setattr(_optional, "require", missing)
    with pytest.raises(ImportError, match=r"setuptools.*\[hub\]"):
        ftk.backbone("https://tfhub.dev/google/none/1")


# Bad input


@tensorflow
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("encoder", {"output_key": "pooled"}, "did you mean 'pooled_output'"),
        ("conv_net", {"output_key": "default"}, "gives a dict"),
        ("conv_net", {"input_shape": (8, 8, 4)}, r"takes \(None, None, 3\)"),
        ("conv_net", {"input_shape": 8}, "shape of one example"),
        ("encoder", {"input_shape": (8,)}, "'input_word_ids'"),
        ("conv_net", {"dtype": "mixed_bfloat16"}, "computes as it was saved"),
        ("conv_net", {"remat": True}, "remat= is not for the SavedModel"),
        ("conv_net", {"weights": None}, "has its weights"),
        ("conv_net", {"alpha": 0.5}, "alpha="),
        ("conv_net", {"stem": "small"}, "saved_model|conv_net"),
        ("conv_net", {"in_channels": 1}, "saved_model|conv_net"),
    ],
)
def test_wrong_options_are_one_line(name, options, message, folder):
    with pytest.raises((ValueError, TypeError), match=message) as e:
        ftk.backbone(folder(name), **options)
    assert "\n" not in str(e.value)


@tensorflow
def test_folders_that_are_no_savedmodel(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ftk.WeightsError, match=r"is empty; expected .* SavedModel"):
        ftk.backbone(tmp_path / "empty")
    with pytest.raises(ftk.WeightsError, match=r"name a folder in it, as '.*conv_net'"):
        ftk.backbone(folder("conv_net").parent)
    (tmp_path / "torn").mkdir()
    whole = (folder("conv_net") / "saved_model.pb").read_bytes()
    for graph in (b"not a graph", whole[: len(whole) // 2], b""):
        (tmp_path / "torn" / "saved_model.pb").write_bytes(graph)
        with pytest.raises(ftk.WeightsError, match="torn") as e:
            ftk.backbone(tmp_path / "torn")
        assert "\n" not in str(e.value)
    shutil.copytree(folder("conv_net"), tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "variables")
    with pytest.raises(ftk.WeightsError, match="bare"):
        ftk.backbone(tmp_path / "bare")


@tensorflow
def test_an_input_of_unknown_shape_has_to_be_given_one(tmp_path):
    import tensorflow as tf

    class Any(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(2.0, name="scale")

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)])
        def __call__(self, x):
            return x * self.scale

    tf.saved_model.save(Any(), str(tmp_path / "any"))
    with pytest.raises(ValueError, match=r"give input_shape="):
        ftk.backbone(tmp_path / "any")
    base = ftk.backbone(tmp_path / "any", input_shape=(5,))
    assert base.model.output_shape == (None, 5)
    same(base.model(np.ones((2, 5), "float32")), 2 * np.ones((2, 5)), atol=0)


@tensorflow
def test_nothing_to_call(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    module.v = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "none"))
    with pytest.raises(ftk.WeightsError, match="nothing to call"):
        ftk.backbone(tmp_path / "none")


def test_a_part_of_a_savedmodel_is_not_the_whole(tmp_path):
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/variables.index"):
        (tmp_path / name).touch()
        with pytest.raises(ftk.WeightsError, match="a part of a SavedModel: give its folder") as e:
            ftk.backbone(tmp_path / name)
        assert str(e.value).endswith(f"{str(tmp_path)!r}")
    with pytest.raises(ftk.WeightsError, match=f"a SavedModel: give {str(tmp_path)!r}"):
        ftk.backbone(tmp_path / "variables")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(ftk.WeightsError, match=r"two models, saved_model.pb and model.safetensors"):
        ftk.backbone(tmp_path)


@tensorflow
@pytest.mark.parametrize("torn", ["variables", "data", "index", "saved_model.pb", "empty"])
def test_a_savedmodel_that_is_not_whole(folder, tmp_path, torn):
    shutil.copytree(folder("conv_net"), tmp_path / "torn")
    inside = tmp_path / "torn" / "variables"
    if torn == "variables":
        shutil.rmtree(inside)
    elif torn == "empty":
        (tmp_path / "torn" / "saved_model.pb").write_bytes(b"")
    else:
        path = next((tmp_path / "torn").rglob(f"*{torn}*"))
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ftk.WeightsError, match=r"torn' is not whole \(.*\): fetch or copy it") as e:
        ftk.backbone(tmp_path / "torn")
    assert "\n" not in str(e.value)


@tensorflow
def test_a_link_out_of_the_folder_is_not_followed(folder, tmp_path):
    shutil.copytree(folder("text"), tmp_path / "linked")
    (tmp_path / "secret.txt").write_text("secret")
    for asset in (tmp_path / "linked" / "assets").iterdir():
        asset.unlink()
        asset.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ftk.WeightsError, match="outside"):
        ftk.backbone(tmp_path / "linked")


@tensorflow
def test_links_into_the_blobs_of_a_hugging_face_cache_are_followed(folder, tmp_path):
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    shutil.copytree(folder("conv_net"), snapshot)
    for i, file in enumerate([p for p in snapshot.rglob("*") if p.is_file()]):
        file.rename(blobs / str(i))
        file.symlink_to(os.path.relpath(blobs / str(i), file.parent))
    base = ftk.backbone(snapshot, input_shape=(8, 8, 3))
    plain = ftk.backbone(folder("conv_net"), input_shape=(8, 8, 3))
    same(base.model(images()[0]), plain.model(images()[0]), atol=0)
    store = layer_of(base)._module.store
    assert not any(p.is_symlink() for p in store.folder.rglob("*"))


@tensorflow
def test_variables_without_names_are_known_by_their_attributes(tmp_path):
    import tensorflow as tf

    class Part(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(tf.eye(4))

    class Whole(tf.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = Part(), Part()

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def __call__(self, x):
            return x @ self.first.w @ self.second.w

    tf.saved_model.save(Whole(), str(tmp_path / "plain"))
    base = ftk.backbone(tmp_path / "plain")
    assert [b.name for b in base.blocks] == ["first", "second"]
    assert base.loaded.loaded == ("saved_model/first/w", "saved_model/second/w")


@tensorflow
def test_variables_without_names_or_attributes_are_layers_by_repetition(tmp_path):
    import tensorflow as tf

    class Export(tf.Module):
        """As Keras exports on JAX."""

        def __init__(self):
            super().__init__()
            names = ("kernel", "bias", "kernel", "bias")
            shapes = ((3, 4), (4,), (4, 2), (2,))
            pairs = zip(names, shapes, strict=True)
            self._all_variables = [tf.Variable(tf.ones(s), name=n) for n, s in pairs]

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def serve(self, x):
            kernel, bias, other, last = self._all_variables
            return (x @ kernel + bias) @ other + last

    tf.saved_model.save(Export(), str(tmp_path / "export"))
    base = ftk.backbone(tmp_path / "export")
    assert [b.name for b in base.blocks] == ["layer_0", "layer_1"]
    assert len(base.network.trainable_variables) == 4


@pytest.mark.slow
@tensorflow
def test_an_export_of_keras_on_jax_learns(tmp_path):
    pytest.importorskip("jax")
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(here)!r}); from conftest import residual; "
        f"residual().export({str(tmp_path / 'jax')!r}, verbose=False)"
    )
    env = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=200)
    base = ftk.backbone(tmp_path / "jax")
    model = ftk.build(base, heads.Classification(3), learning_rate=1e-2)
    x = np.random.default_rng(0).uniform(0, 1, (4, 16, 16, 3)).astype("float32")
    before = snapshot(model)
    model.fit(x, np.arange(4) % 3, verbose=0)
    assert len(moved(before, model)) == len(model.trainable_variables) == 19


@pytest.mark.slow
@tensorflow
def test_it_learns_on_two_devices(folder, tmp_path):
    code = f"""
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
import finetune_keras as ftk
from finetune_keras import heads
from conftest import moved, snapshot
x, y = np.random.default_rng(0).uniform(0, 1, (8, 8, 8, 3)), np.arange(8) % 3
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    base = ftk.backbone({str(folder("conv_net"))!r}, input_shape=(8, 8, 3))
    model = ftk.build(base, heads.Classification(3))
before = snapshot(model)
model.fit(x, y, verbose=0)
assert len(moved(before, model)) == len(before) == 27
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


# Scopes, without TensorFlow


def _grouped(names):
    weights = [Weight(n, (2, 2) if n.endswith("kernel") else (2,), "f", True, 0) for n in names]
    scopes = list(dict.fromkeys(w.scope for w in weights))
    return [p.path for p in grouped(scopes, kinds(weights))]


def test_scopes_of_resnet_as_tf_hub_has_them():
    names = ["net/conv1/kernel"]
    for block in (1, 2):
        for unit in (1, 2, 3):
            before = f"net/block{block}/unit_{unit}/bottleneck"
            for layer in ("conv1", "conv2", "conv3"):
                names += [f"{before}/{layer}/kernel", f"{before}/{layer}/BatchNorm/gamma"]
    names += ["net/postnorm/gamma", "net/logits/kernel"]
    units = [f"net/block{b}/unit_{u}/bottleneck" for b in (1, 2) for u in (1, 2, 3)]
    assert _grouped(names) == ["net/conv1", *units, "net/logits"]


def test_scopes_of_bert_as_tf_hub_has_them():
    names = ["word_embeddings/embeddings", "position_embedding/embeddings", "norm/gamma"]
    for i in range(3):
        for part in ("self_attention/query", "self_attention/value", "intermediate", "output"):
            names += [f"transformer/layer_{i}/{part}/kernel"]
        names += [f"transformer/layer_{i}/output_layer_norm/gamma"]
    names += ["pooler_transform/kernel"]
    layers = [f"transformer/layer_{i}" for i in range(3)]
    assert _grouped(names) == ["position_embedding", *layers, "pooler_transform"]


def test_scopes_of_flat_names_as_keras_writes_them():
    resnet = ["conv1_conv/kernel", "conv1_bn/gamma"]
    for stage, units in ((2, 3), (3, 4)):
        for unit in range(1, units + 1):
            for i in (0, 1, 2, 3) if unit == 1 else (1, 2, 3):
                before = f"conv{stage}_block{unit}_{i}"
                resnet += [f"{before}_conv/kernel", f"{before}_bn/gamma"]
    assert len(_grouped(resnet)) == 8
    mobilenet = ["Conv1/kernel", "bn_Conv1/gamma"]
    for i in range(1, 5):
        for part in ("expand", "depthwise", "project"):
            mobilenet += [f"block_{i}_{part}/kernel", f"block_{i}_{part}_BN/gamma"]
    ends = [f"block_{i}_project" for i in range(1, 5)]
    assert _grouped([*mobilenet, "Conv_1/kernel"]) == ["Conv1", *ends, "Conv_1"]
    plain = ["conv2d/kernel", "batch_normalization/gamma", "conv2d_1/kernel", "conv2d_2/kernel"]
    assert _grouped(plain) == ["conv2d", "conv2d_1", "conv2d_2"]


def test_nested_attention_is_one_block_and_a_lone_norm_waits_for_the_next():
    names = ["norm/gamma"]
    for i in (0, 1):
        names += [f"enc/block_{i}/attention/{p}/kernel" for p in ("query", "key")]
        names += [f"enc/block_{i}/mlp/{p}/kernel" for p in ("up", "down")]
    assert _grouped(names) == ["enc/block_0", "enc/block_1"]


def test_looks_like_a_savedmodel(tmp_path, monkeypatch):
    from finetune_keras.backbones.saved_model import looks_like_saved_model

    assert looks_like_saved_model("https://tfhub.dev/x/1")
    assert not looks_like_saved_model("resnet50")
    assert not looks_like_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert looks_like_saved_model(tmp_path)
    assert looks_like_saved_model(str(tmp_path))
    assert not looks_like_saved_model(Path("nowhere"))
    (tmp_path / "resnet50").mkdir()
    (tmp_path / "resnet50" / "saved_model.pb").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert looks_like_saved_model("./resnet50")
    assert not looks_like_saved_model("resnet50"), "the architecture is meant"
