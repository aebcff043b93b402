"""Folders of features under kills, two writers, and networks with a vocabulary."""

import os

import keras
import numpy as np
import pytest
from conftest import value, vectors

import finetune_keras as ftk
from finetune_keras import CacheError
from finetune_keras.cache import manifest, store
from finetune_keras.cache.rows import FileRows

layers = keras.layers


class KilledError(BaseException):
    """In place of SIGKILL: nothing is cleaned up."""


@pytest.fixture
def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), layers.Dense(4)])


def run(network, path, **settings):
    return ftk.features(network, vectors(), directory=path, verbose=0, **settings)


def killed(monkeypatch, where, name, after):
    """Lets a function fail at its ``after``-th call, and every one that follows."""
    original, calls = getattr(where, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) > after:
            raise KilledError
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, dying)


@pytest.mark.parametrize("first", [None, 4])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("where", ["open", "manifest"])
def test_killed_while_it_begins_it_begins_again(
    network, tmp_path, monkeypatch, where, after, first
):
    monkeypatch.setattr(store, "_EVERY", 0)
    if first is not None:  # an unfinished pass with batches of another size, which is given up
        with monkeypatch.context() as patch:
            killed(patch, FileRows, "append", 9)
            with pytest.raises(KilledError):
                run(network, tmp_path, batch_size=first)
    with monkeypatch.context() as patch:
        patch.setattr(store.Folder, "close", lambda self: None)
        if where == "open":
            killed(patch, FileRows, "__init__", after)
        else:
            killed(patch, manifest, "write", after)
        with pytest.raises(KilledError):
            run(network, tmp_path, batch_size=8)
    found = run(network, tmp_path, batch_size=8)
    np.testing.assert_array_equal(found.features[0], run(network, None, batch_size=8).features[0])
    np.testing.assert_array_equal(found.labels, vectors()[1])


def test_what_another_process_finished_meanwhile_is_used(network, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_EVERY", 0)
    with monkeypatch.context() as patch:
        killed(patch, FileRows, "append", 3)
        with pytest.raises(KilledError):
            run(network, tmp_path, batch_size=8)
    others = []
    locked = store.Folder.locked

    def late(self):
        if not others:
            others.append(None)
            others[0] = run(network, tmp_path, batch_size=8)
        return locked(self)

    monkeypatch.setattr(store.Folder, "locked", late)
    found = run(network, tmp_path, batch_size=8)
    assert found.reused
    np.testing.assert_array_equal(found.features[0], value(others[0].features[0]))


def test_a_lock_that_cannot_be_made_is_said(network, tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(CacheError, match="cannot be kept"):
        run(network, tmp_path)
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings are of TensorFlow")
def test_an_adapted_vocabulary_counts(tmp_path):
    words = np.array(["a", "b", "c", "b"])

    def network(vocabulary):
        lookup = layers.StringLookup(output_mode="one_hot", max_tokens=3)
        lookup.adapt(np.array(vocabulary))
        return keras.Sequential([keras.Input((1,), dtype="string"), lookup])

    given = {"directory": tmp_path, "verbose": 0}
    first = ftk.features(network(["a", "b", "b"]), words[:, None], **given)
    assert ftk.features(network(["a", "b", "b"]), words[:, None], **given).reused
    with pytest.raises(CacheError, match="the frozen part"):
        ftk.features(network(["c", "b", "c"]), words[:, None], **given)
    assert first.features[0].shape[0] == 4


def test_a_damaged_folder_is_said_in_one_line(network, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_EVERY", 0)
    with monkeypatch.context() as patch:
        killed(patch, FileRows, "append", 4)
        with pytest.raises(KilledError):
            run(network, tmp_path, batch_size=8)
    partial = tmp_path / "features_0.npy.partial"
    kept = partial.read_bytes()
    partial.write_bytes(kept[:-3])
    with pytest.raises(CacheError, match="damaged .*shorter.*delete the folder"):
        run(network, tmp_path, batch_size=8)
    partial.unlink()
    with pytest.raises(CacheError, match="damaged .*delete the folder"):
        run(network, tmp_path, batch_size=8)
    partial.write_bytes(kept)
    run(network, tmp_path, batch_size=8)
    path = tmp_path / "features_0.npy"
    np.save(path, np.load(path).view("int32"))
    with pytest.raises(CacheError, match="int32 and not float32"):
        run(network, tmp_path, batch_size=8)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(CacheError, match="no whole manifest"):
        run(network, tmp_path, batch_size=8)
