"""Features computed once: in order, kept, found again, refused, gone on with."""

import json
import shutil

import keras
import numpy as np
import pytest
from conftest import images, residual, same, value

import finetune_keras as ftk
from finetune_keras import CacheError
from finetune_keras.cache import engines, store
from finetune_keras.cache.rows import FileRows, open_rows

layers = keras.layers


def network():
    x = inputs = keras.Input((16, 16, 3))
    x = residual()(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="prefix")


@pytest.fixture
def prefix():
    return network()


@pytest.fixture
def data():
    return images(20)


def test_features_are_the_network_s_own_in_the_order_of_the_data(prefix, data):
    x, y = data
    found = ftk.features(prefix, (x, y, np.arange(20.0)), batch_size=8, verbose=0)
    same(found.features[0], prefix.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_array_equal(found.labels, y)
    np.testing.assert_array_equal(found.sample_weight, np.arange(20.0))
    assert len(found) == 20
    assert found.in_memory


def test_frozen_normalisation_and_dropout_are_in_inference(data):
    x = inputs = keras.Input((16, 16, 3))
    x = layers.BatchNormalization()(layers.Dropout(0.9)(layers.Conv2D(2, 3)(x)))
    model = keras.Model(inputs, layers.Flatten()(x))
    found = ftk.features(model, data[0], verbose=0)
    same(found.features[0], model(data[0], training=False), atol=1e-5)
    assert found.labels is None


def test_files_hold_the_same_and_are_found_again(prefix, data, tmp_path, monkeypatch):
    first = ftk.features(prefix, data, directory=tmp_path / "made", verbose=0)
    monkeypatch.setattr(engines, "choose", None)  # nothing is computed
    again = ftk.features(prefix, data, directory=tmp_path / "made", verbose=0)
    assert again.reused
    assert not first.reused
    same(again.features[0], first.features[0], atol=0)
    np.testing.assert_array_equal(again.labels, data[1])
    plain = np.load(tmp_path / "made" / "features_0.npy")
    same(plain, first.features[0], atol=0)


@pytest.mark.parametrize("change", ["weights", "x", "y", "views", "dtype", "graph"])
def test_features_of_something_else_are_refused_with_the_reason(change, data, tmp_path):
    prefix = network()
    ftk.features(prefix, data, directory=tmp_path, verbose=0)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    x, y = data[0].copy(), data[1].copy()
    given = {}
    word = {"x": "the data", "y": "the data", "graph": "the frozen part"}.get(change, change)
    if change == "weights":
        variable = prefix.weights[0]
        variable.assign(value(variable) + 1e-3)
    elif change == "x":
        x[0, 0, 0, 0] += 1
    elif change == "y":
        y[-1] = 0 if y[-1] else 1
    elif change == "views":
        given = {"views": 2}
    elif change == "dtype":
        given = {"dtype": "float16"}
    else:
        prefix = keras.Sequential([keras.Input((16, 16, 3)), prefix, layers.ReLU()])
    with pytest.raises(CacheError, match=word):
        ftk.features(prefix, (x, y), directory=tmp_path, verbose=0, **given)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_layer_that_cannot_be_told_from_another_is_not_kept(tmp_path):
    class Times(layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, x):
            return self.function(x)

    model = keras.Sequential([keras.Input((3,)), Times(lambda x: 2 * x)])
    x = np.ones((4, 3), "float32")
    same(ftk.features(model, x, verbose=0).features[0], 2 * x, atol=0)
    with pytest.raises(CacheError, match="'times' .* give it a get_config"):
        ftk.features(model, x, directory=tmp_path / "new", verbose=0)
    assert not (tmp_path / "new").exists()


def test_a_key_stands_for_the_data(prefix, data, tmp_path):
    ftk.features(prefix, data, directory=tmp_path, key="flowers 1", verbose=0)
    other = (data[0][::-1], data[1][::-1])
    assert ftk.features(prefix, other, directory=tmp_path, key="flowers 1", verbose=0).reused
    with pytest.raises(CacheError, match="key=: 'flowers 1' there, now 'flowers 2'"):
        ftk.features(prefix, other, directory=tmp_path, key="flowers 2", verbose=0)


class StopError(Exception):
    pass


def stopping(x, y, after):
    """Batches of 4 that end with an exception."""
    for i in range(0, len(x), 4):
        if i == after * 4:
            raise StopError
        yield x[i : i + 4], y[i : i + 4]


class Batches(keras.utils.PyDataset):
    """Batches of 4, of which reading one may fail."""

    def __init__(self, x, y, fail=None):
        super().__init__()
        self.x, self.y, self.fail = x, y, fail

    @property
    def num_batches(self):
        return len(self.x) // 4

    def __getitem__(self, i):
        if i == self.fail:
            raise StopError
        return self.x[i * 4 : i * 4 + 4], self.y[i * 4 : i * 4 + 4]


def test_a_pass_that_was_stopped_goes_on_where_it_was(prefix, data, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_EVERY", 0)
    with pytest.raises(StopError):
        ftk.features(prefix, Batches(*data, fail=3), directory=tmp_path, verbose=0)
    kept = json.loads((tmp_path / "manifest.json").read_text())
    assert kept["state"] == "partial"
    assert kept["done"]["rows"] == 12
    # What was written after the manifest does not count.
    with open(tmp_path / "features_0.npy.partial", "ab") as file:
        file.write(b"torn")
    ran = []
    choose = engines.choose

    def counting(*args, **kwargs):
        chosen = choose(*args, **kwargs)
        run = chosen.run
        monkeypatch.setattr(type(chosen), "run", lambda s, a: ran.append(1) or run(a))
        return chosen

    monkeypatch.setattr(engines, "choose", counting)
    found = ftk.features(prefix, Batches(*data), directory=tmp_path, verbose=0)
    assert len(ran) == 2  # of five batches
    whole = ftk.features(prefix, data, batch_size=4, verbose=0)
    same(found.features[0], whole.features[0], atol=1e-6)
    np.testing.assert_array_equal(found.labels, data[1])


def test_a_pass_does_not_go_on_with_data_in_another_order(prefix, data, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_EVERY", 0)
    with pytest.raises(StopError):
        ftk.features(prefix, Batches(*data, fail=3), directory=tmp_path, key="k", verbose=0)
    other = Batches(data[0][::-1], data[1][::-1])
    with pytest.raises(CacheError, match="another order now"):
        ftk.features(prefix, other, directory=tmp_path, key="k", verbose=0)
    found = ftk.features(prefix, Batches(*data), directory=tmp_path, key="k", verbose=0)
    np.testing.assert_array_equal(found.labels, data[1])


def test_damage_is_noticed(prefix, data, tmp_path):
    ftk.features(prefix, data, directory=tmp_path, verbose=0)
    path = tmp_path / "features_0.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CacheError, match="damaged"):
        ftk.features(prefix, data, directory=tmp_path, verbose=0)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CacheError, match="cannot be read"):
        ftk.features(prefix, data, directory=tmp_path, verbose=0)


def test_a_manifest_of_a_newer_version_is_left_alone(prefix, data, tmp_path):
    ftk.features(prefix, data, directory=tmp_path, verbose=0)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CacheError, match="format 99.*update finetune_keras"):
        ftk.features(prefix, data, directory=tmp_path, verbose=0)


def test_a_folder_of_the_user_s_own_is_not_written_into(prefix, data, tmp_path):
    (tmp_path / "features_0.npy").write_bytes(b"mine")
    with pytest.raises(CacheError, match="'features_0.npy' and no manifest"):
        ftk.features(prefix, data, directory=tmp_path, verbose=0)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CacheError, match="give a directory"):
        ftk.features(prefix, data, directory=file, verbose=0)


def test_a_full_disk_and_a_folder_that_cannot_be_written(prefix, data, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(CacheError, match="720 B are needed and 100 B free.*another disk"):
            ftk.features(prefix, data, directory=tmp_path / "full", verbose=0)

    def refuse(self, rows):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FileRows, "append", refuse)
        with pytest.raises(CacheError, match="no space left"):
            ftk.features(prefix, data, directory=tmp_path / "full", verbose=0)

    def forbid(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "mkdir", forbid)
        with pytest.raises(CacheError, match="cannot be written"):
            ftk.features(prefix, data, directory=tmp_path / "other", verbose=0)
    assert len(ftk.features(prefix, data, directory=tmp_path / "full", verbose=0)) == 20


def test_more_than_the_memory_goes_to_a_temporary_folder(prefix, data):
    for given in (data, Batches(*data)):  # known in number before, or not
        found = ftk.features(prefix, given, memory=100, verbose=0)
        assert not found.in_memory
        assert found.directory is None
        same(found.features[0], prefix.predict(data[0], verbose=0), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_what_is_kept(dtype, prefix, data, tmp_path):
    found = ftk.features(prefix, data, dtype=dtype, directory=tmp_path, verbose=0)
    again = ftk.features(prefix, data, dtype=dtype, directory=tmp_path, verbose=0)
    exact = prefix.predict(data[0], verbose=0)
    for one in (found, again):
        assert one.features[0].dtype.name == dtype
        assert one.features[0].nbytes * 2 == exact.nbytes
        np.testing.assert_allclose(one.features[0].astype("float32"), exact, rtol=1e-2, atol=1e-3)


def test_views_are_fixed_draws_and_one_view_is_the_example_itself(data):
    x = inputs = keras.Input((16, 16, 3))
    x = layers.RandomFlip()(x)
    x = layers.RandomTranslation(0.3, 0.3)(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    model = keras.Model(inputs, layers.Flatten()(x))
    once = ftk.features(model, data, verbose=0)
    same(once.features[0], model(data[0], training=False), atol=1e-4)
    found = ftk.features(model, data, views=3, verbose=0)
    assert len(found) == 20
    drawn = [found.view(i)[0] for i in range(3)]
    assert all(not np.allclose(drawn[i], drawn[j]) for i in range(3) for j in range(i))
    np.testing.assert_array_equal(found.view(2)[1], data[1])


def test_views_without_augmentation_are_said_to_be_of_no_use(prefix, data):
    with pytest.warns(UserWarning, match="equal copies.*augment="):
        ftk.features(prefix, data, views=2, verbose=0)


def test_a_dataset_of_features_shuffles_all_of_them_and_turns_to_the_next_view(data):
    numbers = np.arange(20, dtype="float32")[:, None]
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, use_bias=False, name="d")])
    model.set_weights([np.ones((1, 1))])
    with pytest.warns(UserWarning, match="equal copies"):
        found = ftk.features(model, (numbers, numbers), views=2, verbose=0)
    batches = found.dataset(6, shuffle=True, seed=1)
    assert len(batches) == 4
    epochs = [np.concatenate([y for _, y in batches])[:, 0] for _ in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(20))
        assert list(order) != list(range(20))
    assert list(epochs[0]) != list(epochs[1])
    again = found.dataset(6, shuffle=True, seed=1, epoch=1)
    np.testing.assert_array_equal(np.concatenate([y for _, y in again])[:, 0], epochs[1])
    # Far apart in the set, near in an epoch: no window.
    firsts = [found.dataset(20, shuffle=True, seed=s)[0][1][0, 0] for s in range(60)]
    assert max(firsts) >= 15


def test_several_tensors_and_structured_labels(tmp_path):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b", dtype="int32")
    model = keras.Model({"a": a, "b": b}, [layers.Dense(4, name="d")(a), b])
    x = {"a": np.ones((10, 3)), "b": np.arange(20).reshape(10, 2)}
    y = {"one": np.arange(10), "two": np.arange(10.0)}
    for _ in range(2):
        found = ftk.features(model, (x, y), directory=tmp_path, verbose=0)
        assert [f.shape for f in found.features] == [(10, 4), (10, 2)]
        np.testing.assert_array_equal(found.features[1], x["b"])
        assert found.labels.keys() == y.keys()
        np.testing.assert_array_equal(found.labels["two"], y["two"])


def test_labels_of_several_outputs_keep_their_names_whatever_the_order(prefix, data):
    x, y = data
    labels = {"kind": y, "age": np.linspace(0, 1, 20)}
    found = ftk.features(prefix, (x, labels), verbose=0)
    for name, values in labels.items():
        same(found.labels[name], values, atol=1e-6)


def test_what_is_wrong_is_said(prefix, data):
    x, y = data
    with pytest.raises(ValueError, match="views must be an integer"):
        ftk.features(prefix, data, views=0)
    with pytest.raises(ValueError, match="dtype must be one of"):
        ftk.features(prefix, data, dtype="int8")
    with pytest.raises(ValueError, match="0 examples"):
        ftk.features(prefix, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="several inputs as a list or a dict"):
        ftk.features(prefix, (x, y, y, y))
    with pytest.raises(ValueError, match=r"\(20, 8, 8, 3\).*\(None, 16, 16, 3\)"):
        ftk.features(prefix, (x[:, :8, :8], y))
    with pytest.raises(ValueError, match="turn names into integers"):
        ftk.features(prefix, (x, np.array(["a"] * 20)))
    with pytest.raises(TypeError, match="pass its .model"):
        ftk.features(ftk.backbone("letters_resnet", input_shape=(24, 24, 3)), data)

    def ragged():
        yield x[:4], np.zeros((4, 2))
        yield x[:4], np.zeros((4, 3))

    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)|one shape"):
        ftk.features(prefix, ragged(), verbose=0)
    anylength = keras.Sequential([keras.Input((None, 2)), layers.Dense(3)])

    def lengths():
        yield np.zeros((4, 5, 2)), np.zeros(4)
        yield np.zeros((4, 6, 2)), np.zeros(4)

    with pytest.raises(ValueError, match="pad all examples to one length"):
        ftk.features(anylength, lengths(), verbose=0)


def test_rows_survive_a_killed_writer(tmp_path):
    rows = FileRows(tmp_path, "a", (2,), np.dtype("float32"))
    rows.append(np.ones((3, 2), "float32"))
    rows.flush()
    rows.close()
    again = FileRows(tmp_path, "a", (2,), np.dtype("float32"), rows=2)
    again.append(np.zeros((1, 2), "float32"))
    again.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[1, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(open_rows(tmp_path, "a", "float32"), np.load(tmp_path / "a.npy"))
    with pytest.raises(ValueError, match="shorter"):
        FileRows(tmp_path, "a", (2,), np.dtype("float32"), rows=9)
