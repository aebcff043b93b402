"""Predictions by name: from arrays, data sets and files, for heads of every kind."""

import json

import keras
import numpy as np
import pytest
from conftest import residual

import finetune_keras as ftk
from finetune_keras import build, heads, predict, record
from finetune_keras.predict import images

layers = keras.layers


def model_of(kind="classification", size=3, *, from_logits=False, class_names=(), activation=None):
    """A dense model with a record, whose outputs are what its inputs are (before activation)."""
    out = record.Output(kind=kind, size=size, from_logits=from_logits, class_names=class_names)
    inputs = keras.Input((size,))
    x = record.layer(record.Record(outputs=(out,)))(inputs)
    dense = layers.Dense(
        size,
        activation=activation,
        kernel_initializer="identity",
        name="ftk_head_output",
    )
    return keras.Model(inputs, dense(x))


def image_model(size=16, **kwargs):
    return build(residual(size=size), heads.Classification(3, **kwargs))


ROWS = np.array([[0.2, 0.7, 0.1], [0.4, 0.2, 0.4]], "float32")


def test_best_first_by_name_and_ties_in_the_order_of_the_classes():
    found = predict(model_of(class_names=("cat", "dog", "fox")), ROWS)
    assert [[p.name for p in entry] for entry in found] == [
        ["dog", "cat", "fox"],
        ["cat", "fox", "dog"],
    ]
    assert found[0][0].confidence == pytest.approx(0.7)
    assert [p.index for p in found[1]] == [0, 2, 1]
    assert found.names == ("dog", "cat")
    np.testing.assert_allclose(found.probabilities, ROWS, rtol=1e-6)


@pytest.mark.parametrize(("top", "entries"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_top_cuts_and_may_exceed_the_classes(top, entries):
    assert [len(e) for e in predict(model_of(), ROWS, top=top)] == [entries, entries]


def test_softmax_is_applied_once():
    logits = np.array([[1.0, 3.0, -2.0]], "float32")
    wanted = np.exp(logits) / np.exp(logits).sum()
    inside = predict(model_of(activation="softmax"), logits)
    outside = predict(model_of(from_logits=True), logits)
    np.testing.assert_allclose(inside.probabilities, wanted, rtol=1e-5)
    np.testing.assert_allclose(outside.probabilities, wanted, rtol=1e-5)


def test_large_logits_do_not_overflow():
    found = predict(model_of(from_logits=True), np.array([[1e4, 0.0, -1e4]], "float32"))
    np.testing.assert_allclose(found.probabilities, [[1, 0, 0]])
    found = predict(
        model_of("multi_label", from_logits=True), np.array([[1e4, 0, -1e4]], "float32")
    )
    np.testing.assert_allclose(found.probabilities, [[1, 0.5, 0]])


@pytest.mark.parametrize(
    ("names", "yes", "no"),
    [((), "1", "0"), (("ill",), "ill", "not ill"), (("well", "ill"), "ill", "well")],
)
def test_binary_names_the_answer_and_its_confidence(names, yes, no):
    found = predict(model_of("binary", 1, class_names=names), np.array([[0.9], [0.2]], "float32"))
    assert [(e[0].name, e[0].index) for e in found] == [(yes, 1), (no, 0)]
    np.testing.assert_allclose([e[0].confidence for e in found], [0.9, 0.8], rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, [[0.1, 0.9], [0.8, 0.2]], rtol=1e-6)


def test_multi_label_gives_all_that_are_likely_whatever_top():
    rows = np.array([[0.6, 0.9, 0.1], [0.1, 0.2, 0.3]], "float32")
    found = predict(model_of("multi_label", class_names=("a", "b", "c")), rows, top=1)
    assert [[p.name for p in entry] for entry in found] == [["b", "a"], []]
    assert "none" in str(found)


def test_regression_gives_values_and_no_probabilities():
    one = predict(model_of("regression", 1), np.array([[3.5], [-1.0]], "float32"))
    assert list(one) == [3.5, -1.0]
    assert list(predict(model_of("regression", 2), np.array([[1, 2]], "float32"))) == [(1.0, 2.0)]
    with pytest.raises(ValueError, match=r"\.values"):
        _ = one.probabilities
    assert json.loads(json.dumps(one.to_dict()))["predictions"] == [3.5, -1.0]


def test_ordinal_is_named_like_classes():
    found = predict(model_of("ordinal", class_names=("low", "mid", "high")), ROWS)
    assert found.names == ("mid", "low")


def test_names_survive_plain_keras(tmp_path):
    model = image_model(class_names=["cat", "dog", "fox"])
    x = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)).astype("float32")
    wanted = predict(model, x)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras", compile=False)
    found = predict(again, x)
    assert found.names == wanted.names
    assert set(found.names) <= {"cat", "dog", "fox"}
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, rtol=1e-5)
    assert not again.compiled


def foreign(units, activation=None, loss=None):
    inputs = keras.Input((units,))
    x = layers.Dense(units, kernel_initializer="identity", name="d")(inputs)
    model = keras.Model(inputs, layers.Activation(activation)(x) if activation else x)
    if loss is not None:
        model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: foreign(3, "softmax"), "classification"),
        (lambda: foreign(3, "sigmoid"), "multi_label"),
        (lambda: foreign(1, "sigmoid"), "binary"),
        (
            lambda: foreign(3, None, keras.losses.SparseCategoricalCrossentropy(True)),
            "classification",
        ),
        (lambda: foreign(1, None, keras.losses.BinaryCrossentropy(True)), "binary"),
        (lambda: foreign(2, None, "mse"), "regression"),
    ],
)
def test_foreign_models_by_activation_and_loss(model, kind):
    model = model()
    x = np.array([[0.3, -2.0, 1.0]], "float32")[:, : model.input_shape[-1]]
    found = predict(model, x)
    assert found.kind == kind
    if kind == "classification":
        np.testing.assert_allclose(
            found.probabilities, keras.ops.convert_to_numpy(keras.ops.softmax(x)), rtol=1e-5
        )
        assert [p.name for p in found[0]] == ["2", "0", "1"]
    if kind == "binary":
        assert found[0][0].confidence == pytest.approx(1 / (1 + np.exp(-0.3)), rel=1e-5)


def test_an_output_without_meaning_is_said_to_be_so():
    with pytest.raises(ValueError, match="nothing tells what the output .* compile the model"):
        predict(foreign(3), ROWS)


def test_several_outputs_by_name():
    inputs = keras.Input((3,))
    outs = (
        record.Output("animal", "classification", 3, False, "", ("cat", "dog", "fox")),
        record.Output("age", "regression", 1),
    )
    x = record.layer(record.Record(outputs=outs))(inputs)
    kind = layers.Dense(3, activation="softmax", kernel_initializer="identity")(x)
    model = keras.Model(inputs, {"animal": kind, "age": layers.Dense(1)(x)})
    found = predict(model, np.eye(3, dtype="float32"))
    assert list(found) == ["animal", "age"]
    assert found["animal"].names == ("cat", "dog", "fox")
    assert all(isinstance(v, float) for v in found["age"])


def test_one_example_equals_a_batch_of_one():
    model = image_model()
    x = np.random.default_rng(0).uniform(0, 255, (16, 16, 3)).astype("float32")
    one, batch = predict(model, x), predict(model, x[None])
    assert len(one) == 1
    np.testing.assert_array_equal(one.probabilities, batch.probabilities)


def test_one_example_of_a_dict():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    joined = layers.Concatenate()([a, b])
    model = keras.Model({"a": a, "b": b}, layers.Dense(2, activation="softmax")(joined))
    data = {"a": np.ones((4, 2), "float32"), "b": np.arange(12, dtype="float32").reshape(4, 3)}
    batch = predict(model, data)
    one = predict(model, {k: v[1] for k, v in data.items()})
    np.testing.assert_allclose(one.probabilities, batch.probabilities[1:2], rtol=1e-5)


def test_labels_of_a_data_set_are_left_out():
    import tensorflow as tf

    model, y = model_of(), np.array([0, 1])
    wanted = predict(model, ROWS).probabilities
    data = tf.data.Dataset.from_tensor_slices((ROWS, y))
    for given in ((ROWS, y), data.batch(2), ROWS.tolist()):
        np.testing.assert_allclose(predict(model, given).probabilities, wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"dataset\.batch\(32\)"):
        predict(model, data)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    for name in ("b.png", "a.png", "c.png"):
        image = rng.integers(0, 256, (16, 16, 3)).astype("float32")
        keras.utils.save_img(tmp_path / name, image, scale=False)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_paths_folders_and_arrays_agree(folder):
    model = image_model()
    arrays = [
        keras.utils.img_to_array(keras.utils.load_img(folder / f"{n}.png")) for n in ("a", "b", "c")
    ]
    wanted = predict(model, np.stack(arrays)).probabilities
    whole = predict(model, folder)
    assert whole.examples == ("a.png", "b.png", "c.png")
    np.testing.assert_allclose(whole.probabilities, wanted, rtol=1e-5)
    listed = predict(model, [str(folder / "c.png"), folder / "a.png"])
    np.testing.assert_allclose(listed.probabilities, wanted[[2, 0]], rtol=1e-5)
    assert predict(model, str(folder / "b.png")).examples == ("b.png",)
    assert str(whole).startswith("a.png  ")


def test_files_are_resized_and_large_lists_are_read_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(images, "_AT_ONCE", 1)
    found = predict(image_model(size=8), [folder, folder], batch_size=4)
    assert len(found) == 6
    np.testing.assert_allclose(found.probabilities[:3], found.probabilities[3:], rtol=1e-5)


def test_a_folder_of_folders_of_classes_is_read_whole(folder):
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        (folder / "pets" / name / "0.png").write_bytes((folder / "b.png").read_bytes())
    model = image_model()
    found = predict(model, folder / "pets")
    assert found.examples == ("cat/0.png", "dog/0.png")
    one = predict(model, folder / "pets" / "cat" / "0.png")
    np.testing.assert_allclose(found.probabilities[1:], one.probabilities, rtol=1e-5)


def test_a_dict_of_splits_names_the_one_to_pass():
    from finetune_keras import check, data, fit

    model = image_model()
    x, y = np.zeros((4, 16, 16, 3)), [0, 1, 2, 0]
    splits = {name: data.arrays(x, y) for name in ("train", "val")}
    message = r"a dict of the data sets 'train', 'val': pass one, data\['train'\]"
    for call in (predict, check, fit):
        with pytest.raises(TypeError, match=message) as e:
            call(model, splits)
        assert "\n" not in str(e.value)
    with pytest.raises(TypeError, match="the validation data are " + message):
        fit(model, splits["train"], validation_data=splits)


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_pixels_of_files_are_those_of_training(tmp_path, resize):
    """Turned by EXIF, transparent, of 16 bits, and larger than the model takes."""
    from PIL import Image

    from finetune_keras import data

    rng = np.random.default_rng(2)
    for name in ("only", "other"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other/z.png")
    colours = np.kron(rng.integers(0, 256, (3, 5, 3)), np.ones((12, 12, 1))).astype("uint8")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "only/a.jpg", exif=exif, quality=95)
    alpha = np.where(colours[..., :1] > 99, 255, 0).astype("uint8")
    Image.fromarray(np.concatenate([colours, alpha], -1)).save(tmp_path / "only/b.png")
    Image.fromarray(colours[..., 0].astype("uint16") * 257).save(tmp_path / "only/c.tiff")
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, layers.Flatten()(inputs))
    model.compile(loss="mse")
    trained_on = data.images(tmp_path, size=16, shuffle=False, resize=resize)
    wanted = np.concatenate([x.numpy().reshape(len(x), -1) for x, _ in trained_on])[:3]
    found = predict(model, tmp_path / "only", resize=resize)
    assert found.examples == ("a.jpg", "b.png", "c.tiff")
    np.testing.assert_allclose(found.values, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("d.png", "no file .*did you mean '.\\.png'"),
        ("notes.txt", "cannot read '.*notes.txt' as an image"),
        ("empty", "no image in the folder .*png"),
    ],
)
def test_files_that_are_no_images(folder, given, message):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=message) as e:
        predict(image_model(), folder / given)
    assert "\n" not in str(e.value)


def test_a_model_of_any_size_cannot_take_files(folder):
    inputs = keras.Input((None, None, 3))
    pooled = layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(pooled))
    with pytest.raises(ValueError, match="no one size"):
        predict(model, folder / "a.png")


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings in the graph")
def test_texts_are_passed_on():
    inputs = keras.Input((), dtype="string")
    x = layers.StringLookup(vocabulary=["good", "bad"], output_mode="one_hot")(inputs)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    batch = predict(model, ["good", "bad", "good"])
    assert batch.names[0] == batch.names[2]
    np.testing.assert_allclose(predict(model, "bad").probabilities, batch.probabilities[1:2])


@pytest.mark.parametrize("bad", [{"top": 0}, {"top": 1.5}, {"top": True}, {"batch_size": 0}])
def test_numbers_out_of_range(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be an integer of 1 or more"):
        predict(model_of(), ROWS, **bad)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 28, 28, 3)), r"\(2, 28, 28, 3\) and the model takes \(None, 16, 16, 3\)"),
        (np.zeros((16, 16)), r"\(16, 16\) and the model takes"),
        ([np.zeros((2, 16, 16, 3)), object()], "given a object among them"),
        (np.zeros((0, 16, 16, 3)), "the inputs are empty"),
        (None, "arrays, a data set, paths or texts; given a NoneType"),
        ({"img": np.zeros((1, 16, 16, 3))}, "a dict of 'img', and the model takes '"),
    ],
)
def test_inputs_of_another_shape(data, message):
    with pytest.raises(ValueError, match=message) as e:
        predict(image_model(), data)
    assert "\n" not in str(e.value)


def test_a_generator_gives_batches_with_labels_or_without():
    for batches in ((ROWS, ROWS), ((ROWS, np.arange(2)),) * 2):
        found = predict(model_of(), (batch for batch in batches))
        np.testing.assert_allclose(found.probabilities, np.concatenate([ROWS, ROWS]), rtol=1e-6)


def test_numpys_integers_are_integers():
    found = predict(model_of(), ROWS, top=np.int64(2), batch_size=np.int32(1))
    assert [len(entry) for entry in found] == [2, 2]


def test_maps_of_classes_are_refused():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(inputs))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 4, 2\): use model.predict"):
        predict(model, np.zeros((1, 4, 4, 3)))


def test_something_else_than_a_model():
    base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
    with pytest.raises(TypeError, match=r"given a Backbone; pass its \.model"):
        predict(base, np.zeros((1, 24, 24, 3)))


def test_the_table_is_short_and_escaped():
    model = model_of(class_names=("<b>", "dog", "fox"))
    found = predict(model, np.repeat(ROWS, 10, axis=0))
    assert str(found).splitlines()[0] == "0  dog 0.700  <b> 0.200  fox 0.100"
    assert str(found).splitlines()[-1] == "... (20 examples)"
    assert len(str(found).splitlines()) == 9
    assert "&lt;b&gt;" in found._repr_html_()
    assert found[3:5].examples == ("3", "4")
    assert json.loads(json.dumps(found.to_dict()))["predictions"][0][0]["name"] == "dog"
