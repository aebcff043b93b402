"""Augmentation in the pipeline and in the model, mixed images, and the picture of them."""

import warnings

import keras
import numpy as np
import pytest
from conftest import value
from PIL import Image

import finetune_keras as ftk
from finetune_keras import heads

CLASSES = ("ash", "beech", "cedar")


def constant(n=12, size=16, **settings):
    """Images of one colour each, 100 times its class."""
    y = np.arange(n) % 3
    x = np.broadcast_to(100.0 * y[:, None, None, None], (n, size, size, 3)).astype("float32")
    settings = {"batch_size": 4, "class_names": CLASSES, **settings}
    return ftk.data.arrays(x, y, **settings)


def noisy(n=12, size=16, **settings):
    settings = {"batch_size": 4, **settings}
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (n, size, size, 3)).astype("float32")
    return ftk.data.arrays(
        x, np.arange(n) % 3, class_names=CLASSES, **{"batch_size": 4, **settings}
    )


def epoch(ds, number=0):
    ds.order.epoch = number
    x, y = zip(*[(value(x), value(y)) for x, y in ds], strict=True)
    return np.concatenate(x), np.concatenate(y)


@pytest.mark.parametrize("strength", [pytest.param("medium", marks=pytest.mark.slow), "strong"])
def test_what_is_drawn_depends_on_seed_and_epoch_alone(strength):
    ds = noisy()
    one, two = ftk.data.augmented(ds, strength), ftk.data.augmented(ds, strength)
    (x, y), (same, labels) = epoch(one), epoch(two)
    np.testing.assert_array_equal(x, same)
    np.testing.assert_array_equal(y, labels)
    plain, again = epoch(ds)[0], epoch(one, 1)[0]
    assert np.abs(x - plain).max() > 1
    assert np.abs(again - epoch(ds, 1)[0]).max() > 1
    other = epoch(ftk.data.augmented(noisy(seed=5), strength))[0]
    assert not np.array_equal(np.sort(x.sum((1, 2, 3))), np.sort(other.sum((1, 2, 3))))
    np.testing.assert_array_equal(epoch(one, 1)[0], again)
    assert x.shape == plain.shape
    assert x.dtype == plain.dtype
    assert x.min() >= 0
    assert x.max() <= 256


def test_strengths_differ_by_how_much_they_change():
    ds = noisy(24)
    plain = epoch(ds)[0]
    far = [np.abs(epoch(ftk.data.augmented(ds, s))[0] - plain).mean() for s in ("light", "strong")]
    assert 0 < far[0] < far[1]
    assert ftk.data.augment("light", flip=None)[0].__class__ is keras.layers.RandomTranslation


def test_images_of_a_batch_are_varied_each_in_its_own_way():
    x = np.repeat(np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 3)), 8, axis=0)
    ds = ftk.data.arrays(x, np.zeros(8, int), class_names=["a"], batch_size=8)
    x = epoch(ftk.data.augmented(ds, keras.layers.RandomTranslation(0.4, 0.4)))[0]
    assert len(np.unique(x.sum((1, 2, 3)).round(2))) > 4


@pytest.mark.parametrize("how", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_labels_are_mixed_as_the_images_are(how):
    ds = ftk.data.augmented(constant(), [], **how)
    x, y = epoch(ds)
    np.testing.assert_allclose(y.sum(1), 1, atol=1e-5)
    assert ((y > 0.02) & (y < 0.98)).any()
    expected = y @ np.array([0, 100, 200], "float32")
    # A rectangle of whole pixels has not just the area that was drawn.
    np.testing.assert_allclose(x.mean((1, 2, 3)), expected, atol=1e-2 if "mixup" in how else 30)
    if "cutmix" in how:
        assert set(np.unique(x)) <= {0, 100, 200}
    assert ds.counts.tolist() == [4, 4, 4]
    assert ds.class_names == list(CLASSES)


def test_with_both_a_batch_is_mixed_one_way_or_the_other():
    x, y = epoch(ftk.data.augmented(constant(48), [], mixup=1.0, cutmix=1.0))
    whole = np.isin(x, [0, 100, 200]).all((1, 2, 3))
    batches = (whole | (y.max(1) > 0.99)).reshape(-1, 4).all(1)
    assert 0 < batches.sum() < len(batches)


def test_training_on_mixed_images_and_validating_on_whole_ones():
    train, val = constant(24).split(0.25)
    mixed = ftk.data.augmented(train, "medium", mixup=0.2, cutmix=1.0)
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Dense(8, activation="tanh", name="d")(keras.layers.Flatten()(x))
    head = heads.Classification(class_names=CLASSES)
    model = ftk.build(keras.Model(inputs, x), head, learning_rate=0.03)
    ftk.compile(model, loss="categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(mixed, validation_data=ftk.data.one_hot(val), epochs=8, verbose=0).history
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert history["val_accuracy"][-1] > 0.6
    assert mixed.order.epoch == 8


def test_training_on_one_draw_of_each_image_is_told():
    base = ftk.backbone("letters_resnet", input_shape=(16, 16, 3))
    model = ftk.build(base, heads.Classification(3), freeze=ftk.select.backbone())
    ds = ftk.data.augmented(constant(), "light")
    with pytest.warns(UserWarning, match="drawn once for each example .* views=4"):
        ftk.fit(model, ds, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*drawn once")
        ftk.fit(model, ds, views=2, verbose=0)
        ftk.fit(model, constant(), verbose=0)


def test_what_is_split_off_is_not_augmented():
    train, val = ftk.data.augmented(noisy(), "strong").split(0.5)
    plain = {i.sum().round(3) for i in epoch(noisy())[0]}
    assert {i.sum().round(3) for i in epoch(val)[0]} <= plain
    assert not {i.sum().round(3) for i in epoch(train)[0]} <= plain


def test_one_hot_labels_stay_so_in_both_parts():
    for part in ftk.data.one_hot(constant(24)).split(0.25):
        assert part.element_spec[1].shape == (None, 3)
        x, y = epoch(part)
        np.testing.assert_allclose(x.mean((1, 2, 3)), 100 * y.argmax(1))
        assert y.sum(1).tolist() == [1] * len(y)
    val = ftk.data.augmented(constant(24), "light", mixup=0.2).split(0.25)[1]
    assert set(np.unique(epoch(val)[1])) == {0, 1}


def test_the_layers_go_into_a_model_too(tmp_path):
    inputs = keras.Input((16, 16, 3))
    own = keras.Model(inputs, keras.layers.Conv2D(4, 3, activation="relu", name="c")(inputs))
    model = ftk.build(own, heads.Classification(3), augment=ftk.data.augment("strong"))
    x, y = epoch(constant())
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras", compile=False)
    np.testing.assert_allclose(
        value(again(x, training=False)), value(model(x, training=False)), atol=1e-5
    )


def test_a_preview_is_a_png_of_the_next_epoch(tmp_path):
    pytest.importorskip("matplotlib")
    ds = ftk.data.augmented(constant(), "light", mixup=1.0)
    path = ftk.data.preview(ds, tmp_path / "seen.png", rows=2, columns=3)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 100
    assert [p.name for p in tmp_path.iterdir()] == ["seen.png"]
    small = constant(3)
    figure = ftk.data.preview(small)  # reads to the end
    assert small.order.epoch == 0
    order = [CLASSES[i] for i in small.order(0) % 3]
    assert [a.get_title() for a in figure.axes] == order
    shown = [a.get_images()[0].get_array() for a in figure.axes]
    np.testing.assert_allclose(shown[0][0, 0], 100 * (small.order(0)[0] % 3) / 255, atol=1e-6)
    text = " ".join(a.get_title() for a in ftk.data.preview(ds, rows=3, columns=4).axes)
    assert any(f"0.{i}" in text for i in range(1, 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ftk.data.augment("stronk"), "did you mean 'strong'"),
        (lambda: ftk.data.augmented(noisy(), "lihgt"), "did you mean 'light'"),
        (lambda: ftk.data.augmented(noisy(), [3]), "Keras layers or a strength; given 3"),
        (lambda: ftk.data.augmented(noisy(), mixup=-1), "mixup is a number from 0 on; given -1"),
        (lambda: ftk.data.augmented(noisy(), cutmix=2), "cutmix is a number from 0 to 1; given 2"),
        (lambda: ftk.data.augmented(noisy().map(lambda x, y: (x, y))), "before any map"),
        (
            lambda: ftk.data.augmented(ftk.data.arrays(np.zeros((4, 3)), [0, 1, 0, 1])),
            r"images \(batch, height, width, channels\); given \(None, 3\)",
        ),
        (
            lambda: ftk.data.augmented(
                ftk.data.arrays(np.zeros((4, 8, 8, 3)), [0.5, 1.5, 2.5, 0.1]), mixup=0.2
            ),
            "the labels are no classes",
        ),
        (lambda: ftk.data.preview(noisy(), rows=0), "rows is a whole number from 1 on; given 0"),
        (lambda: ftk.data.preview(noisy(), "no/such/folder.png"), "there is no folder 'no/such'"),
        (
            lambda: ftk.data.preview(ftk.data.arrays(np.zeros((4, 3)), [0, 1, 0, 1])),
            r"given float32 of shape \(4, 3\)",
        ),
    ],
)
def test_bad_input_names_the_fix(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
