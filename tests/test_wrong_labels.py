"""Labels, names of classes and inputs that would silently spoil a training, refused by ``fit``."""

import re

import keras
import numpy as np
import pytest
from conftest import images, moved, residual, snapshot

import finetune_keras as ftk
from finetune_keras import heads, select

tf = pytest.importorskip("tensorflow")
layers = keras.layers


def built(head=None, freeze=None):
    head = head or heads.Classification(3, class_names=["cat", "dog", "fox"])
    return ftk.build(residual(), head, freeze=select.backbone() if freeze is None else freeze)


def pets(names=("cat", "dog", "fox"), **settings):
    y = np.array(names)[np.arange(12) % len(names)]
    return ftk.data.arrays(images(12)[0], y, batch_size=4, **settings)


def refused(model, *args, match, **kwargs):
    """``fit`` raises one line that has the words, and the model is as before."""
    before = snapshot(model)
    with pytest.raises(ValueError, match=re.escape(match[0])) as caught:
        ftk.fit(model, *args, verbose=0, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    for words in match:
        assert words in text, text
    assert not moved(before, model)
    return text


@pytest.mark.parametrize("freeze", [select.backbone(), select.nothing()])
def test_validation_data_with_other_names_are_refused(freeze):
    other = pets(("cat", "fox", "owl"))
    match = [
        "label 1 is 'dog' in the training data",
        "'fox' in the validation data",
        "class_names=",
    ]
    refused(built(freeze=freeze), pets(), validation_data=other, match=match)


def test_validation_data_may_lack_the_last_class_or_have_numbers_for_names():
    x, y = images(12)
    for held in (
        pets(("cat", "dog")),
        ftk.data.arrays(x, y, batch_size=4),
        ftk.data.arrays(x, np.array(["cat", "dog"])[y % 2], class_names=pets(), batch_size=4),
        (x, y),
    ):
        ftk.fit(built(), pets(), validation_data=held, verbose=0)


def test_the_same_names_in_another_order_than_the_head_s_are_refused():
    model = built(heads.Classification(3, class_names=["fox", "dog", "cat"]))
    refused(model, pets(), match=["label 0 is 'cat' in the data set and 'fox' in the model"])
    # Other names may be nothing but nicer ones.
    ftk.fit(
        built(heads.Classification(3, class_names=["A cat", "A dog", "A fox"])), pets(), verbose=0
    )


def test_names_that_differ_by_their_unicode_form_only_are_the_same():
    model = built(heads.Classification(2, class_names=["caf\u00e9", "th\u00e9"]))
    data = pets()
    data.class_names = ["cafe\u0301", "the\u0301"]
    x, y = images(12)
    held = ftk.data.arrays(x, y % 2, class_names=["caf\u00e9", "th\u00e9"], batch_size=4)
    data = ftk.data.arrays(x, y % 2, batch_size=4)
    data.class_names = ["cafe\u0301", "the\u0301"]
    ftk.fit(model, data, validation_data=held, verbose=0)


@pytest.mark.parametrize("freeze", [select.backbone(), select.nothing()])
@pytest.mark.parametrize("kind", ["arrays", "ftk.data", "validation"])
def test_labels_out_of_range_are_refused_on_every_backend(kind, freeze):
    x, y = images(12)
    match = ["4 of 12 labels are outside the head's range (3)", "integers from 0 to 2", "y - 1"]
    model = built(freeze=freeze)
    if kind == "arrays":
        refused(model, x, y + 1, match=["the training data: ", *match])
    elif kind == "ftk.data":
        refused(model, ftk.data.arrays(x, y + 1, class_names=["", *"abc"]), match=match)
    else:
        match = ["the validation data: ", *match]
        refused(model, x, y, validation_data=(x, y + 1), match=match)


def test_labels_of_a_stream_are_looked_at_before_its_features_and_after():
    x, y = images(12)
    first = tf.data.Dataset.from_tensor_slices((x, y + 1)).batch(12)
    refused(built(), first, match=["4 of 12 labels", "(3)"])
    y[-1] = 7
    last = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    refused(built(), last, match=["1 of 12 labels", "(7)", "a head of 8 classes"])


def test_labels_without_weight_do_not_count():
    x, y = images(12)
    y[::4] = -1
    weight = (y >= 0).astype("float32")
    if keras.backend.backend() == "jax":  # the others raise or give NaN, whatever the weight
        ftk.fit(built(), x, y, sample_weight=weight, verbose=0)
    refused(built(), x, y, match=["3 of 12 labels", "(-1)"])


def test_what_a_loss_takes_all_the_same_is_left_to_it():
    x, y = images(12)
    hot = np.eye(3, dtype="float32")[y]
    model = built()
    ftk.compile(model, loss="categorical_crossentropy", metrics=["accuracy"])
    ftk.fit(model, x, 2 * hot, verbose=0)  # rows that are no probabilities: a matter for check
    assert [f.code for f in ftk.check(model, (x, 2 * hot))] == ["labels"]


def test_several_outputs_are_looked_at_by_their_names():
    head = heads.Multi({"kind": heads.Classification(3), "age": heads.Regression(1)})
    x, y = images(12)
    ages = np.linspace(0, 1, 12).astype("float32")
    ftk.fit(built(head), x, {"kind": y, "age": ages}, verbose=0)
    match = ["the training data: output 'kind': 4 of 12 labels"]
    refused(built(head), x, {"kind": y + 1, "age": ages}, match=match)


@pytest.mark.parametrize("freeze", [select.backbone(), select.nothing()])
def test_mixed_labels_for_a_head_of_class_numbers_are_refused_as_check_says_it(freeze):
    mixed = ftk.data.augmented(pets(), [], mixup=0.2)
    model = built(freeze=freeze)
    (finding,) = [f for f in ftk.check(model, mixed) if f.code == "labels"]
    text = refused(model, mixed, match=["one-hot", "the loss 'categorical_crossentropy'"])
    assert text == f"the training data: {finding.message}: {finding.fix}"
    assert "argmax" not in text  # which would undo the mixing
    ftk.compile(model, loss="categorical_crossentropy", metrics=["accuracy"])
    match = ["the validation data: labels are class numbers", "finetune_keras.data.one_hot"]
    refused(model, mixed, validation_data=pets(), match=match)
    ftk.fit(model, mixed, validation_data=ftk.data.one_hot(pets()), verbose=0)


def test_class_labels_for_a_head_of_values_are_refused():
    x, _ = images(12)
    ages = np.array(["30", "40", "35"] * 4)
    ds = ftk.data.arrays(x, ages, batch_size=4)
    model = built(heads.Regression(1))
    match = ["numbers of classes (0 is '30')", "labels='numbers'", "heads.Classification"]
    text = refused(model, ds, match=match)
    (finding,) = [f for f in ftk.check(model, ds) if f.code == "labels"]
    assert text == f"the training data: {finding.message}: {finding.fix}"
    for good in (
        ftk.data.arrays(x, ages, labels="numbers", batch_size=4),
        ftk.data.arrays(x, np.arange(12), batch_size=4),  # which stay what they are
    ):
        ftk.fit(model, good, verbose=0)
        assert "labels" not in [f.code for f in ftk.check(model, good)]


def test_check_tells_another_number_of_classes():
    few, many = pets(("cat", "dog")), pets(("cat", "dog", "fox", "owl"))
    model = built()
    (found,) = [f for f in ftk.check(model, few) if f.code == "class_names"]
    assert found.message.startswith("the data set has 2 classes and the model 3: 'fox', say, has")
    found = [f for f in ftk.check(model, many) if f.code in ("class_names", "labels")]
    assert len(found) == 1  # one cause is told once
    # The class that the first batches do not show is known all the same.
    x, y = np.resize(images(12)[0], (400, 16, 16, 3)), np.array([0] * 399 + [3])
    rare = ftk.data.arrays(x, y, class_names=list("abcd"), shuffle=False, batch_size=2)
    found = [f for f in ftk.check(built(heads.Classification(3)), rare) if f.code == "class_names"]
    assert found[0].message.startswith("the data set has 4 classes and the model 3: 'd' and")


def tokens():
    inputs = keras.Input((8,), dtype="int32", name="token_ids")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 4)(inputs))
    return keras.Model(inputs, x, name="words")


@pytest.mark.parametrize("freeze", [select.backbone(), select.nothing()])
def test_text_for_a_model_of_tokens_names_the_preprocessor(freeze):
    model = ftk.build(tokens(), heads.Classification(2), freeze=freeze)
    texts, y = ["good", "bad", "fine", "poor"], np.array([0, 1, 0, 1])
    ds = ftk.data.text({"text": texts, "label": list("abab")})
    match = ["the inputs are text", "int32 tokens", "finetune_keras.preprocessor(model)"]
    for data in ((texts, y), (np.array(texts), y), (ds,), (ds.map(lambda x, y: (x, y)),)):
        refused(model, *data, match=match)
    for data in ((texts, y), (np.array(texts, dtype=object), y), ds):
        (found,) = [f for f in ftk.check(model, data) if f.code == "shape"]
        assert found.message.startswith("the inputs are text ('")
        assert "finetune_keras.preprocessor(model)" in found.fix
    for data in ("good", texts, np.array(texts), ds):
        with pytest.raises(ValueError, match=r"are text.*finetune_keras\.preprocessor\(model\)"):
            ftk.predict(model, data)
