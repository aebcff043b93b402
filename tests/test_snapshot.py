"""Weights as they were: kept, written, read, put back."""

import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, snapshot, vectors

import finetune_keras as ftk
from finetune_keras import select

layers = keras.layers


def trained(make=chain, **settings):
    model = make()
    model.compile("sgd", "mse", **settings)
    return model


def test_training_does_not_change_it_and_restore_goes_back():
    model = trained()
    start, before = ftk.snapshot(model), snapshot(model)
    for _ in range(2):  # on JAX a step writes to the memory of the weights that it was given
        model.fit(*vectors(), epochs=2, verbose=0)
        for path, array in before.items():
            np.testing.assert_array_equal(start.weights[path], array)
            assert not np.array_equal(snapshot(model)[path], array)
        start.restore(model)
        for path, array in before.items():
            np.testing.assert_array_equal(snapshot(model)[path], array)
    steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    assert steps == 4, "the optimizer stays as it is"


def test_it_cannot_be_written_to():
    start = ftk.snapshot(chain())
    with pytest.raises(ValueError, match="read-only"):
        start.weights["a/kernel"][:] = 0
    with pytest.raises(TypeError):
        start.weights["a/kernel"] = 0


def test_a_file_holds_all_to_the_bit(tmp_path):
    model = classifier()
    model(images()[0], training=True)  # statistics that are no defaults
    start = ftk.snapshot(model)
    path = start.save(tmp_path / "start.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["start.npz"]
    again = ftk.snapshot(path)
    assert list(again.weights) == list(start.weights)
    assert {k: v.dtype for k, v in again.weights.items()} == {
        k: v.dtype for k, v in start.weights.items()
    }
    with np.load(path, allow_pickle=False) as archive:
        for name, array in start.weights.items():
            np.testing.assert_array_equal(archive[name], array)
    other = classifier()
    again.restore(other)
    np.testing.assert_array_equal(other.predict(images()[0]), model.predict(images()[0]))


def test_bfloat16_is_written_without_loss(tmp_path):
    with _Policy("bfloat16"):
        model = chain()
    start = ftk.snapshot(model)
    again = ftk.snapshot(start.save(tmp_path / "half.npz"))
    before = snapshot(model)
    for v in model.weights:
        v.assign(np.zeros(v.shape))
    again.restore(model)
    for path, array in before.items():
        np.testing.assert_array_equal(
            snapshot(model)[path].astype("float32"), array.astype("float32")
        )
    assert all(keras.backend.standardize_dtype(v.dtype) == "bfloat16" for v in model.weights)


class _Policy:
    """Keras' global policy for a while."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *_):
        keras.config.set_dtype_policy(self.before)


def test_a_whole_model_is_read_from_its_file(tmp_path):
    model = classifier()
    model.save(tmp_path / "own.keras")
    start = ftk.snapshot(str(tmp_path / "own.keras"))
    assert start.name == "own.keras"
    for path, array in snapshot(model).items():
        np.testing.assert_array_equal(start.weights[path], array)


def test_models_made_twice_have_other_names_and_the_same_places():
    def nameless():
        dense = layers.Dense
        return keras.Sequential([keras.Input((4,)), dense(8, activation="relu"), dense(2)])

    one, other = nameless(), nameless()
    start = ftk.snapshot(one)
    assert set(start.weights).isdisjoint(ftk.snapshot(other).weights)
    start.restore(other)
    x = np.ones((1, 4), "float32")
    np.testing.assert_array_equal(other.predict(x, verbose=0), one.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: layers.Dense(4, name="c"), r"'c/kernel' of shape \(8, 4\) where .* \(8, 3\)"),
        (lambda: layers.Dense(3, use_bias=False, name="c"), "no more weights where .* 'c/bias'"),
        (lambda: layers.BatchNormalization(name="c"), r"'c/gamma' .* where .* 'c/kernel'"),
    ],
)
def test_another_architecture_is_refused_with_the_first_difference(other, words):
    model = chain()
    wrong = keras.Sequential([keras.Input((6,)), *chain().layers[:2], other()])
    before = snapshot(model)
    with pytest.raises(ftk.WeightsError, match=words):
        ftk.snapshot(wrong).restore(model)
    for path, array in before.items():
        np.testing.assert_array_equal(snapshot(model)[path], array)


def test_what_is_no_snapshot_is_refused_in_one_line(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object), allow_pickle=True)
    chain().save_weights(tmp_path / "own.weights.h5")
    for source, words in (
        (tmp_path / "own.weights.h5", "load it into the model and take the snapshot of that"),
        (tmp_path / "start.npz", "no file 'start.npz'"),
        (tmp_path / "bad.npz", "is no whole snapshot"),
        (tmp_path / "objects.npz", "allow_pickle=False"),
    ):
        with pytest.raises(ftk.WeightsError, match=words) as caught:
            ftk.snapshot(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="expected a keras.Model; given a dict"):
        ftk.snapshot({})
    base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
    with pytest.raises(TypeError, match="pass its .model"):
        ftk.snapshot(base)
    with pytest.raises(ValueError, match="not built"):
        ftk.snapshot(keras.Sequential([layers.Dense(2)]))
    start = ftk.snapshot(chain())
    with pytest.raises(ValueError, match="a .npz file; given 'start.h5'"):
        start.save(tmp_path / "start.h5")
    with pytest.raises(ValueError, match="there is no folder"):
        start.save(tmp_path / "none" / "start.npz")
    with pytest.raises(TypeError, match="expected a keras.Model"):
        start.restore("model.keras")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    start = ftk.snapshot(chain())
    path = start.save(tmp_path / "start.npz")
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        start.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["start.npz"]


def test_flags_do_not_matter():
    model = chain()
    start = ftk.snapshot(model)
    ftk.freeze(model, select.first(1))
    model.layers[0].kernel.assign(np.zeros((6, 8)))
    start.restore(model)
    np.testing.assert_array_equal(snapshot(model)["a/kernel"], start.weights["a/kernel"])
    assert not model.layers[0].trainable


def test_equal_paths_are_matched_whatever_their_order():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")]
    )
    start = ftk.snapshot(model)
    turned = ftk.Snapshot("turned", dict(reversed(start.weights.items())))
    model.set_weights([np.zeros(v.shape) for v in model.weights])
    turned.restore(model)
    for path, array in start.weights.items():
        np.testing.assert_array_equal(snapshot(model)[path], array)


def test_equal_shapes_of_other_variables_are_refused():
    weights = {
        p.replace("c/kernel", "c/embeddings"): a for p, a in ftk.snapshot(chain()).weights.items()
    }
    with pytest.raises(ftk.WeightsError, match="it has 'c/embeddings' .* has 'c/kernel'"):
        ftk.Snapshot("table", weights).restore(chain())


def test_arrays_of_the_users_own_are_copied_into_the_model():
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, use_bias=False, name="d")])
    memory = np.zeros(64 * 64 * 4 + 64, "uint8")
    offset = -memory.ctypes.data % 64  # JAX takes memory as it is if it is aligned
    own = memory[offset : offset + 64 * 64 * 4].view("float32").reshape(64, 64)
    ftk.Snapshot("own", {"d/kernel": own}).restore(model)
    own[:] = 1
    assert not snapshot(model)["d/kernel"].any()
