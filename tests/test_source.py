"""Every kind of data that `fit` takes comes out as the same batches, once, and in order."""

import itertools
import json
import threading
import traceback

import keras
import numpy as np
import pytest

from finetune_keras import arrays
from finetune_keras.cache import source
from finetune_keras.cache.batch import Batch, batch_digest

N = 7  # three batches of 3, 3 and 1
X = np.random.default_rng(0).normal(size=(N, 4, 2)).astype("float32")
Y = (np.arange(N) * 3 % 5).astype("int32")
W = np.linspace(0.5, 1, N).astype("float32")


def cut(size=3, *parts):
    parts = parts or (X, Y, W)
    return [tuple(p[i : i + size] for p in parts) for i in range(0, N, size)]


class Slices(keras.utils.PyDataset):
    """Three batches; what `fit` would tell it is written down."""

    def __init__(self, endless=False, **kwargs):
        super().__init__(**kwargs)
        self.endless, self.log = endless, []

    @property
    def num_batches(self):
        return None if self.endless else 3

    def __getitem__(self, i):
        self.log.append(i)
        return cut()[i % 3]

    def on_epoch_begin(self):
        self.log.append("begin")

    def on_epoch_end(self):
        self.log.append("end")


def generator(log=None):
    for i, batch in enumerate(cut()):
        if log is not None:
            log.append(i)
        yield batch


def tf_data(*parts):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(parts or (X, Y, W)).batch(3)


def loader():
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*map(torch.from_numpy, (X, Y, W))), batch_size=3)


STREAMS = {
    "tf.data": tf_data,
    "PyDataset": Slices,
    "PyDataset, threads": lambda: Slices(workers=3),
    "loader": loader,
    "generator": generator,
    "iterator": lambda: iter(cut()),
    "iterable": lambda: dict(enumerate(cut())).values(),
}


def joined(batches, part="x"):
    return np.concatenate([getattr(b, part) for b in batches])


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("finetune_keras_read")]


def given(s, **kwargs):
    return [int(b.y[0]) for b in s.read(**kwargs)]


# -- What comes out


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_give_their_batches_in_order(kind):
    s = source.source(STREAMS[kind]())
    assert s.batch_size == 3  # which looks at the first batch
    batches = list(s.read())
    assert [b.size for b in batches] == [3, 3, 1]
    for part, whole in (("x", X), ("y", Y), ("sample_weight", W)):
        np.testing.assert_array_equal(joined(batches, part), whole, strict=True)
    assert not s.arrays
    assert s.again == (kind not in ("generator", "iterator"))
    assert s.batches == (None if kind in ("generator", "iterator") else 3)
    assert s.examples is None
    assert not threads()


def torch_tensors():
    torch = pytest.importorskip("torch")
    return torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)


def tensorflow_tensors():
    import tensorflow as tf

    return tf.constant(X), tf.constant(Y)


def hdf5():
    import h5py

    file = h5py.File("memory", "w", driver="core", backing_store=False)
    return file.create_dataset("x", data=X), Y


ARRAYS = {
    "numpy": lambda: (X, Y),
    "keras": lambda: (keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)),
    "torch": torch_tensors,
    "lists": lambda: (X.tolist(), Y.tolist()),
    "tensorflow": tensorflow_tensors,
    "h5py": hdf5,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_give_numpy_batches(kind):
    x, y = ARRAYS[kind]()
    s = source.source(x, y, batch_size=3)
    batches = list(s.read())
    assert [b.size for b in batches] == [3, 3, 1]
    assert all(type(b.x) is np.ndarray for b in batches)
    np.testing.assert_array_equal(joined(batches), X, strict=True)
    np.testing.assert_array_equal(joined(batches, "y"), Y)
    assert (s.batches, s.examples, s.batch_size, s.again, s.arrays) == (3, N, 3, True, True)
    assert s.spec == "arrays of 7 examples"
    assert s.digest()["arrays"][0]["shape"] == [N, 4, 2]


class Frame:
    """As much of a data frame as is read: rows by `iloc`, values by `__array__`."""

    def __init__(self, values):
        self.values, self.shape, self.iloc = values, values.shape, self

    def __getitem__(self, at):
        return Frame(self.values[at])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_a_series_becomes_a_column_as_in_fit():
    (batch,) = source.source(Frame(X[:, 0]), Frame(Y)).read()
    np.testing.assert_array_equal(batch.x, X[:, 0])
    assert batch.y.shape == (N, 1)


def test_pandas_as_in_fit():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": X[:, 0, 0], "b": np.arange(N)}, index=np.arange(N)[::-1])
    batches = list(source.source(frame, pandas.Series(Y), batch_size=3).read())
    np.testing.assert_array_equal(
        joined(batches), np.stack([X[:, 0, 0], np.arange(N)], 1), strict=False
    )
    np.testing.assert_array_equal(joined(batches, "y"), Y[:, None])
    assert batches[0].x.dtype == "float32"


def test_structures_are_kept():
    x = {"image": X, "more": [X[:, 0], (Y, W)]}
    (batch,) = source.source(x, [Y, {"a": W, "b": None}]).read()
    keras.tree.assert_same_structure(batch.x, x)
    np.testing.assert_array_equal(batch.x["more"][1][0], Y)
    assert batch.y[1]["b"] is None
    assert [name for name, _ in batch.leaves()] == [
        "x['image']",
        "x['more'][0]",
        "x['more'][1][0]",
        "x['more'][1][1]",
        "y[0]",
        "y[1]['a']",
    ]


def test_streams_of_inputs_alone_and_of_dicts():
    for item in ({"a": X[:3]}, ({"a": X[:3]},)):
        (batch,) = source.source(iter([item])).read()
        np.testing.assert_array_equal(batch.x["a"], X[:3])
        assert batch.y is None
        assert batch.sample_weight is None


def test_one_weight_an_example_serves_all_outputs_as_in_fit():
    (batch,) = source.source(X, {"a": Y, "b": Y}, W).read()
    np.testing.assert_array_equal(batch.sample_weight["a"], W)
    np.testing.assert_array_equal(batch.sample_weight["b"], W)


def test_arrays_are_cast_a_batch_at_a_time_and_otherwise_views():
    wide = X.astype("float64")
    (batch,) = source.source(wide, Y.astype("float64"), batch_size=N).read()
    assert (batch.x.dtype, batch.y.dtype) == ("float32", "float32")
    batch, *_ = source.source(X, Y, batch_size=3).read()
    assert np.shares_memory(batch.x, X)
    (batch,) = source.source(iter([(wide, Y)])).read()
    assert batch.x.dtype == "float64"  # of a stream `fit` leaves it, too


def test_a_buffer_that_is_filled_anew_does_not_change_batches():
    def reused():
        buffer = np.empty((2, 1), "float32")
        for i in range(5):
            buffer[:] = i
            yield buffer, np.array([i, i])

    found = list(source.source(reused()).read())
    assert [int(b.x[0, 0]) for b in found] == [0, 1, 2, 3, 4]


def test_ragged_and_sparse_come_dense():
    import tensorflow as tf

    ragged = tf.ragged.constant([[1], [2, 3, 4], [5, 6]])
    for x, size in ((ragged, 2), (tf.data.Dataset.from_tensor_slices(ragged).batch(2), None)):
        first, second = source.source(x, batch_size=size).read()
        np.testing.assert_array_equal(first.x, [[1, 0, 0], [2, 3, 4]])
        np.testing.assert_array_equal(second.x, [[5, 6]])
    dense = np.eye(5, dtype="float32") * 2
    sparse = [tf.sparse.from_dense(dense)]
    if scipy := pytest.importorskip("scipy.sparse"):
        sparse += [scipy.coo_matrix(dense), scipy.csr_matrix(dense)]
    for x in sparse:
        batches = list(source.source(x, batch_size=3).read())
        np.testing.assert_array_equal(joined(batches), dense, strict=True)


def test_strings_stay_strings():
    import tensorflow as tf

    texts = ["a", "bé", "c"]
    kinds = [texts, np.array(texts), np.array(texts, dtype=object), tf.constant(texts)]
    for x in (*kinds, tf.data.Dataset.from_tensors((tf.constant(texts),))):
        (batch,) = source.source(x).read()
        found = [v if isinstance(v, str) else v.decode() for v in batch.x]
        assert found == texts
        assert batch.x.dtype.kind in "OU"
    digests = {source.source(x).digest()["arrays"][0]["hash"] for x in kinds}
    assert len(digests) == 1


def test_bfloat16_of_torch():
    torch = pytest.importorskip("torch")
    (batch,) = source.source(torch.from_numpy(X).bfloat16()).read()
    assert batch.x.dtype == "float32"
    np.testing.assert_allclose(batch.x, X, rtol=0.01)


# -- Starting later, steps, passes


@pytest.mark.parametrize("kind", ["arrays", *STREAMS])
@pytest.mark.parametrize("looked", [False, True])
def test_start_leaves_batches_out(kind, looked):
    for start in range(5):
        s = (
            source.source(X, Y, W, batch_size=3)
            if kind == "arrays"
            else source.source(STREAMS[kind]())
        )
        if looked:
            s.digest()
        assert given(s, start=start) == [0, 4, 3][start:]
        if s.again:
            assert given(s) == [0, 4, 3]
            assert given(s, start=2, passes=3) == [3, 0, 4, 3, 0, 4, 3]
            assert given(s, start=4, passes=2) == [4, 3]


def test_a_later_start_of_a_pydataset_computes_nothing_before_it():
    data = Slices()
    assert given(source.source(data), start=5, passes=2) == [3]
    assert data.log == ["begin", "end", "begin", 2, "end"]


def test_a_pydataset_hears_of_its_passes():
    data = Slices()
    s = source.source(data)
    assert s.batch_size == 3
    assert s.batch_size == 3
    given(s, passes=2)
    given(s)
    once = ["begin", 0, 1, 2, "end"]
    assert data.log == once * 3


def test_a_read_that_is_left_begins_anew():
    data = Slices()
    s = source.source(data)
    reading = s.read()
    next(reading)
    reading.close()
    assert given(s) == [0, 4, 3]
    assert data.log.count("begin") == 2
    assert data.log.count("end") == 1


def endless():
    for i in itertools.count():
        yield X[:3], np.full(3, i)


@pytest.mark.parametrize("kind", ["generator", "tf.data", "PyDataset", "finite", "arrays"])
def test_with_steps_each_pass_takes_the_next_ones(kind):
    if kind == "generator":
        s, goes_on = source.source(endless(), steps=2), [6, 7]
    elif kind == "tf.data":
        import tensorflow as tf

        numbers = tf.data.Dataset.range(4).batch(1).repeat().map(lambda i: (i, i))
        s, goes_on = source.source(numbers, steps=2), [0, 1]
    elif kind == "arrays":
        s, goes_on = source.source(np.arange(4), np.arange(4), batch_size=1, steps=2), [0, 1]
    elif kind == "finite":
        batches = [(np.array([i]), np.array([i])) for i in range(4)]
        s, goes_on = source.source(dict(enumerate(batches)).values(), steps=2), [0, 1]
    else:
        data = Slices(endless=True)
        assert given(source.source(data, steps=2), passes=3) == [0, 4, 3, 0, 4, 3]
        assert [e for e in data.log if isinstance(e, str)] == ["begin", "end"] * 3
        return
    assert s.batches == 2
    expected = [0, 1, 2, 3, 4, 5] if kind == "generator" else [0, 1, 2, 3, 0, 1]
    assert given(s, passes=3) == expected
    assert given(s) == goes_on


def test_no_more_is_taken_from_a_generator_than_was_asked_for():
    log = []
    s = source.source(generator(log), steps=1)
    s.digest()
    assert given(s) == [0]
    assert log == [0]
    assert given(s, start=1, passes=2) == [3]


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_generator_goes_on_where_it_was(taken):
    s = source.source(endless(), steps=100)
    reading = s.read()
    for expected in range(taken):
        assert next(reading).y[0] == expected
    reading.close()  # with batches read ahead
    assert not threads()
    assert [b.y[0] for b in itertools.islice(s.read(), 4)] == list(range(taken, taken + 4))


def test_steps_make_the_batch_size_of_arrays_as_in_fit():
    s = source.source(X, Y, steps=2)
    assert (s.batch_size, s.batches, s.examples) == (4, 2, N)
    s = source.source(X, Y, steps=5)  # batches of 2, of which there are 4
    assert [b.size for b in s.read()] == [2, 2, 2, 1]
    s = source.source(X, Y, batch_size=2, steps=2)
    assert s.examples == 4
    assert source.source(X).batch_size == 32
    assert source.source(tf_data(), batch_size=5).batch_size == 3  # ignored, as in fit


# -- As fit sees it


@pytest.mark.parametrize("steps", [None, 2])
def test_the_order_over_epochs_is_that_of_fit(steps):
    """The sum of the labels of each epoch, by a metric, is that of our passes."""
    x, y = np.zeros((8, 2), "float32"), np.arange(8, dtype="float32") ** 2

    class Total(keras.metrics.Sum):
        def update_state(self, y_true, y_pred, sample_weight=None):
            super().update_state(y_true)

    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[Total(name="total")])
    history = model.fit(data, epochs=3, steps_per_epoch=steps, verbose=0)
    s = source.source(data, steps=steps)
    per = s.batches
    sums = [float(b.y.sum()) for b in s.read(passes=3)]
    ours = [sum(sums[i * per : (i + 1) * per]) for i in range(3)]
    np.testing.assert_allclose(ours, history.history["total"])


def test_split_takes_the_last_part_as_fit_does():
    class Most(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="most")
            self.most = self.add_weight(initializer="zeros", name="m")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.most.assign(keras.ops.maximum(self.most, keras.ops.max(y_true)))

        def result(self):
            return self.most + 0

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[Most()])
    for n, fraction in ((10, 0.2), (10, 0.25), (7, 0.3), (3, 0.5)):
        x = np.arange(n, dtype="float32")[:, None]
        (train, y, w), (val, y_val, _) = source.split(x, x, None, fraction)
        assert w is None
        seen = model.fit(x, x, validation_split=fraction, verbose=0).history
        assert train.max() == y.max() == seen["most"][0]
        assert val.max() == y_val.max() == seen["val_most"][0] == n - 1
        assert np.shares_memory(train, x)
        assert len(train) + len(val) == n


def test_split_of_other_kinds():
    data = {"a": keras.ops.convert_to_tensor(X), "b": list(range(N))}
    (x, *_), (val, y, w) = source.split(data, Frame(Y), W, 0.3)
    np.testing.assert_array_equal(arrays.to_numpy(x["a"]), X[:4])
    np.testing.assert_array_equal(val["b"], [4, 5, 6])
    np.testing.assert_array_equal(np.asarray(y), Y[4:])
    np.testing.assert_array_equal(w, W[4:])


@pytest.mark.parametrize(
    ("data", "fraction", "words"),
    [
        ((X, Y), 0.0, ["between 0 and 1", "0.0"]),
        ((X, Y), 1.5, ["between 0 and 1", "1.5"]),
        ((X[:1], Y[:1]), 0.5, ["1 examples", "validation_data"]),
        ((X[:2], Y[:2]), 0.99, ["2 examples leaves 0"]),
        ((X, Y[:3]), 0.5, ["7 of x", "3 of y"]),
    ],
)
def test_split_that_cannot_be(data, fraction, words):
    with pytest.raises(ValueError, match=".*".join(words)):
        source.split(*data, None, fraction)


def test_split_is_for_arrays():
    with pytest.raises(TypeError, match="validation_split.*a generator.*validation_data"):
        source.split(generator(), None, None, 0.5)


# -- Preprocessing


def test_preprocess_is_called_once_a_batch_with_what_there_is():
    calls = []

    def preprocess(x, y, sample_weight):
        calls.append((x, y, sample_weight))
        return {"n": np.array([len(t) for t in x])}, y

    s = source.source(np.array(["a", "bb", "ccc"], dtype=object), [1, 2, 3], batch_size=2,
                      preprocess=preprocess)  # fmt: skip
    s.digest()
    batches = list(s.read())
    np.testing.assert_array_equal(np.concatenate([b.x["n"] for b in batches]), [1, 2, 3])
    np.testing.assert_array_equal(joined(batches, "y"), [1, 2, 3])
    assert [c[0] for c in calls] == [["a", "bb"], ["ccc"]]
    assert all(c[2] is None for c in calls)


def test_preprocess_changes_the_digest():
    def digest(length):
        return source.source(X, Y, preprocess=lambda x, y, w: (x[:, :length], y)).digest()

    assert digest(2) == digest(2) != digest(3)


@pytest.fixture(scope="module")
def task():
    """A tiny BERT that classifies strings."""
    import keras_hub

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "dull", "fun"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=words, lowercase=True)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(words), num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8,
        max_sequence_length=6,
    )  # fmt: skip
    return keras_hub.models.BertTextClassifier(
        backbone=backbone,
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=6),
    )


TEXTS = ["the film was fun", "the film was dull", "was fun", "dull dull dull"]


@pytest.mark.parametrize("kind", ["list", "array", "tf.data", "generator", "pairs"])
def test_a_keras_hub_task_tokenizes_its_strings(task, kind):
    import tensorflow as tf

    labels = np.array([1, 0, 1, 0])
    options = {"preprocess": task.preprocess_samples}
    texts = np.array(TEXTS, dtype=object)
    if kind == "list":
        s = source.source(TEXTS, labels, batch_size=3, **options)
    elif kind == "array":
        s = source.source(texts, labels, batch_size=3, **options)
    elif kind == "pairs":  # two segments
        s = source.source((TEXTS, TEXTS[::-1]), labels, batch_size=3, **options)
    elif kind == "tf.data":
        data = tf.data.Dataset.from_tensor_slices((TEXTS, labels)).batch(3)
        s = source.source(data, **options)
    else:
        batches = [(texts[:3], labels[:3]), (texts[3:], labels[3:])]
        s = source.source((b for b in batches), **options)
    batches = list(s.read())
    assert [b.size for b in batches] == [3, 1]
    np.testing.assert_array_equal(joined(batches, "y"), labels)
    assert set(batches[0].x) == {"token_ids", "segment_ids", "padding_mask"}
    tokens = np.concatenate([b.x["token_ids"] for b in batches])
    given_ = (TEXTS, TEXTS[::-1]) if kind == "pairs" else TEXTS
    expected, _ = task.preprocess_samples(given_, labels)
    np.testing.assert_array_equal(tokens, arrays.to_numpy(expected["token_ids"]))
    if kind != "pairs":
        made = {k: np.concatenate([b.x[k] for b in batches]) for k in batches[0].x}
        with_strings = task.predict(TEXTS, verbose=0)
        ours = keras.ops.convert_to_numpy(task(made))
        np.testing.assert_allclose(ours, with_strings, atol=1e-5)


def test_a_data_set_for_a_task_has_its_own_batches_as_in_its_fit(task):
    with pytest.raises(ValueError, match="batch_size=8"):
        source.source(tf_data(), batch_size=8, preprocess=task.preprocess_samples)


# -- Fingerprints


def test_digests_of_arrays():
    def digest(x=X, y=Y, w=None):
        return source.source(x, y, w).digest()

    first = digest()
    assert json.loads(json.dumps(first)) == first
    assert digest(X.copy(), Y.copy()) == first
    assert digest(X.tolist()) != first  # of another type
    assert digest(arrays.to_numpy(keras.ops.convert_to_tensor(X))) == first
    for i in range(N):
        other = Y.copy()
        other[i] += 1
        assert digest(y=other) != first
        pixel = X.copy()
        pixel[i, 3, 1] += 1
        assert digest(x=pixel) != first
    assert digest(X[::-1], Y) != first
    assert digest(w=W) != first
    assert digest(x={"a": X}) != first
    assert digest(X.reshape(N, 8)) != first
    assert digest(X.view("int32")) != first
    assert digest(X.astype(">f4")) == first


def test_large_rows_are_sampled_evenly():
    x = np.zeros((3000, 70_000), "uint8")  # 200 MB, of which 12 MB are hashed
    first = source.source(x).digest()
    assert first["arrays"][0]["rows"] == 256
    for row in (0, 2999):
        x[row] = 1
        assert source.source(x).digest() != first
        x[row] = 0
    assert source.source(x).digest() == first


@pytest.mark.parametrize("kind", STREAMS)
def test_digests_of_streams(kind):
    make = STREAMS[kind]
    s = source.source(make())
    first = s.digest()
    assert json.loads(json.dumps(first)) == first
    assert len(first["first"]) == 2
    assert given(s) == [0, 4, 3]  # nothing was lost
    assert s.digest() == first
    assert source.source(make()).digest() == first
    late = source.source(make())
    given(late)
    assert late.digest() == first


def test_digests_of_other_streams_differ():
    other = Y.copy()
    other[5] += 1
    first = source.source(tf_data()).digest()
    assert source.source(tf_data(X, other, W)).digest() != first
    assert source.source(tf_data(X, Y)).digest() != first
    shuffled = source.source(tf_data().unbatch().shuffle(N, seed=1).batch(3))
    again = source.source(tf_data().unbatch().shuffle(N, seed=2).batch(3))
    assert shuffled.digest() != again.digest()


def test_digests_of_batches():
    a, b, _ = source.source(X, Y, batch_size=3).read()
    same = Batch(X[:3].copy(), Y[:3].copy(), None, 3)
    assert batch_digest(a) == batch_digest(same) != batch_digest(b)
    assert batch_digest(a) != batch_digest(Batch(X[:3], None, Y[:3], 3))
    large = Batch(np.zeros((2, 2000, 2000), "float32"), None, None, 2)  # 32 MB
    before = batch_digest(large), batch_digest(large, whole=True)
    large.x[1, 1000, 1000] = 1
    assert batch_digest(large, whole=True) != before[1]
    large.x[1] = 1
    assert batch_digest(large) != before[0]
    assert source.batch_digest is batch_digest


# -- Reading ahead


@pytest.mark.parametrize("make", [generator, Slices], ids=["generator", "PyDataset"])
def test_reading_is_one_thread_ahead_that_ends_with_it(make):
    s = source.source(make())
    reading = s.read()
    next(reading)
    assert len(threads()) == 1
    reading.close()
    assert not threads()

    def fails():
        for _ in s.read():
            raise RuntimeError("of the consumer")

    with pytest.raises(RuntimeError, match="of the consumer"):
        fails()
    assert not threads()


def test_at_most_three_batches_are_held():
    log = []
    data = (log.append(i) or (X[:3], Y[:3]) for i in range(10))
    s = source.source(data)
    reading = s.read()
    for taken in range(1, 8):
        next(reading)
        assert len(log) <= taken + 2
    reading.close()
    assert len(log) <= 9


def test_an_error_of_the_data_comes_in_its_place_with_its_traceback():
    def broken():
        yield from cut()[:2]
        yield cut()[0]
        raise FileNotFoundError("no image 9")

    reading = source.source(broken()).read()
    assert [next(reading).size for _ in range(3)] == [3, 3, 3]
    with pytest.raises(FileNotFoundError, match="no image 9") as caught:
        next(reading)
    assert "broken" in [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
    assert not threads()


def test_an_error_of_the_data_after_the_reader_left_is_not_lost():
    def broken():
        yield cut()[0]
        yield cut()[0]
        raise OSError("gone")

    s = source.source(broken(), steps=5)
    reading = s.read()
    next(reading)
    reading.close()
    rest = s.read()
    assert next(rest).size == 3
    with pytest.raises(OSError, match="gone"):
        next(rest)


def test_threads_of_a_pydataset_keep_the_order():
    both = threading.Barrier(2, timeout=20)

    class Two(Slices):
        @property
        def num_batches(self):
            return 4

        def __getitem__(self, i):
            both.wait()  # passes only if two are read at once
            return X[:1], np.array([i])

    assert given(source.source(Two(workers=2))) == [0, 1, 2, 3]


# -- Errors


def scalar_labels():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y))


CHANGING = (X[:3], Y[:3])
WRONG = {
    "nothing": (lambda: [None], {}, TypeError, "x is missing"),
    "text": (lambda: ["x"], {}, TypeError, "arrays"),
    "a number": (lambda: [3], {}, TypeError, "x is"),
    "objects": (lambda: [{"a": object()}], {}, TypeError, r"x\['a'\] is a object"),
    "no example": (lambda: [X[:0], Y[:0]], {}, ValueError, "0 examples"),
    "an empty list": (lambda: [[]], {}, ValueError, "0 examples"),
    "lengths": (lambda: [X, Y[:6]], {}, ValueError, "7 of x, 6 of y"),
    "lengths in x": (lambda: [{"a": X, "b": W[:2]}], {}, ValueError, r"7 of x\['a'\], 2 of x\['b"),
    "unequal rows": (lambda: [[[1, 2], [3]]], {}, ValueError, "pad"),
    "weights": (lambda: [X, [Y, Y], [W]], {}, ValueError, r"y\[0\], y\[1\]"),
    "batch size": (lambda: [X], {"batch_size": 0}, ValueError, "batch_size.*given 0"),
    "steps": (lambda: [X], {"steps": -1}, ValueError, "steps_per_epoch.*given -1"),
    "steps of arrays": (lambda: [X], {"batch_size": 4, "steps": 3}, ValueError, "after 2 of .*=3"),
    "y beside": (lambda: [tf_data(), Y], {}, ValueError, "tf.data.Dataset of 3 batches.*given y b"),
    "w beside": (lambda: [Slices(), None, W], {}, ValueError, "given sample_weight beside"),
    "empty tf.data": (lambda: [tf_data().take(0)], {}, ValueError, "empty"),
    "no batch": (lambda: [iter([])], {}, ValueError, "no batch: it is empty, or was read"),
    "endless": (lambda: [tf_data().repeat()], {}, ValueError, "without end: give steps_per_epoch="),
    "endless py": (lambda: [Slices(endless=True)], {}, ValueError, "Slices.*steps_per_epoch="),
    "short tf.data": (lambda: [tf_data()], {"steps": 4}, ValueError, "after 3 of .*=4 .*give 3"),
    "short": (lambda: [generator()], {"steps": 5}, ValueError, "a generator ended after 3 of"),
    "short, unknown": (
        lambda: [tf_data().filter(lambda *_: True)],
        {"steps": 5},
        ValueError,
        "ended after 3 of",
    ),
    "unbatched": (lambda: [scalar_labels()], {}, ValueError, "y of a batch is a single .*batch"),
    "unbatched pairs": (lambda: [iter([(X[0], W)])], {}, ValueError, "4 of x, 7 of y"),
    "four": (lambda: [iter([(X, Y, W, W)])], {}, ValueError, "tuple of 4"),
    "empty batch": (lambda: [iter([(X[:0], Y[:0])])], {}, ValueError, "0 examples"),
    "dtype": (
        lambda: [iter([CHANGING, (X[:3], W[:3])])],
        {},
        ValueError,
        "batch 2 has y float32 of shape .*int32",
    ),
    "shape": (
        lambda: [iter([CHANGING, (X[:3], np.zeros((3, 2), "int32"))])],
        {},
        ValueError,
        r"batch 2 has y int32 of shape \(2,\)",
    ),
    "structure": (
        lambda: [iter([CHANGING, ({"a": X[:3]}, Y[:3])])],
        {},
        ValueError,
        r"batch 2 has x\['a'\], y, the first one x, y",
    ),
    "no labels": (lambda: [iter([CHANGING, (X[:3],)])], {}, ValueError, "batch 2 has x, the first"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_data_and_the_fix(case):
    args, kwargs, error, words = WRONG[case]
    with pytest.raises(error, match=words) as caught:
        list(source.source(*args(), what="the validation data", **kwargs).read())
    text = str(caught.value)
    assert "\n" not in text
    if case not in ("batch size", "steps", "unequal rows"):
        assert text.startswith("the validation data: ")


def test_a_generator_is_read_once():
    s = source.source(generator())
    with pytest.raises(ValueError, match="only once, and 2 passes"):
        s.read(passes=2)
    assert given(s) == [0, 4, 3]
    with pytest.raises(ValueError, match="read to its end before"):
        given(s)


def test_batches_of_other_sizes_and_lengths_of_text_are_no_error():
    batches = [(np.zeros((n, 5 + n)), np.zeros(n)) for n in (2, 5, 3)]
    s = source.source(iter(batches))
    assert s.batch_size == 2
    assert [b.x.shape for b in s.read()] == [(2, 7), (5, 10), (3, 8)]


def test_words_for_the_data():
    assert source.source(np.zeros((3670, 1))).spec == "arrays of 3,670 examples"
    assert source.source(tf_data()).spec == "a tf.data.Dataset of 3 batches"
    assert source.source(tf_data().repeat(), steps=1).spec == "a tf.data.Dataset without end"
    assert source.source(Slices()).spec == "a PyDataset (Slices) of 3 batches"
    assert source.source(loader()).spec == "a DataLoader of 3 batches"
    assert source.source(generator()).spec == "a generator"
