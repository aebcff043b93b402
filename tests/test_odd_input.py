"""Types that a user may well hand in: NumPy's numbers are taken, others are told in one line."""

import re

import keras
import numpy as np
import pytest
from PIL import Image

import finetune_keras as ftk

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pets")
    for name in ("cat", "dog"):
        (path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (12, 12), (90 * i, 0, 0)).save(path / name / f"{i}.png")
    return path


def small():
    x = np.zeros((4, 8, 8, 3), "float32")
    return ftk.data.arrays(x, ["a", "b", "a", "b"], batch_size=np.int64(2))


def test_numbers_of_numpy_are_numbers(folder):
    for size in (np.int64(8), (np.int32(8), 8), np.array([8, 8])):
        ds = ftk.data.images(folder, size=size, channels=np.int64(1))
        assert ds.element_spec[0].shape.as_list() == [None, 8, 8, 1]
    for fraction in (np.float32(0.5), np.float64(0.5)):
        assert [len(part.labels) for part in ds.split(fraction)] == [2, 2]
    for mixing in ({"mixup": np.float32(0.2)}, {"cutmix": np.int64(1)}):
        mixed = ftk.data.augmented(small(), [], **mixing)
        assert mixed.element_spec[1].shape.as_list() == [None, 2]
    drawn = ftk.data.preview(small(), rows=np.int64(1), columns=np.int32(2))
    assert len(drawn.axes) == 2
    assert ftk.data.scan(folder, tiny=np.int64(16)).of("tiny")
    ds.order.epoch = np.int64(3)
    assert ds.order.epoch == 3


A_FOLDER = "a path is wanted; given "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, _: ftk.data.images(None), A_FOLDER + "None"),
        (lambda d, _: ftk.data.images(["a", "b"]), A_FOLDER + "a list"),
        (lambda d, _: ftk.data.scan(None), A_FOLDER + "None"),
        (lambda d, _: ftk.data.scan(d, tiny="x"), "tiny is a whole number from 0 on; given 'x'"),
        (lambda d, _: ftk.data.images(d, size=np.float32(8)), "size is (height, width)"),
        (lambda d, _: ftk.data.images(d, size=True), "size is (height, width)"),
        (lambda d, _: ftk.data.images(d, size=(True, 8)), "size is (height, width)"),
        (lambda d, _: ftk.data.images(d, size=8, channels="3"), "channels is 3 for RGB or 1"),
        (lambda d, _: ftk.data.images(d, size=8, channels=True), "channels is 3 for RGB or 1"),
        (lambda d, ds: ds.split(np.float32(1.5)), "between 0 and 1; given 1.5"),
        (lambda d, ds: ds.split("half"), "between 0 and 1; given 'half'"),
        (lambda d, ds: ds.split(np.array([0.5])), "between 0 and 1; given"),
        (lambda d, ds: ftk.data.augmented(ds, None), "expected Keras layers or a strength; given"),
        (lambda d, ds: ftk.data.augmented(ds, 5), "expected Keras layers or a strength; given 5"),
        (lambda d, ds: ftk.data.augmented(ds, "med"), "no strength 'med': did you mean 'medium'?"),
        (lambda d, ds: ftk.data.augmented(None), "expected a data set of ftk.data"),
        (lambda d, _: ftk.data.augment("light", flip="diag"), "no flip='diag': there are: 'hor"),
        (lambda d, _: ftk.data.augment("light", flip=True), "no flip=True: there are: 'hor"),
        (lambda d, _: ftk.data.augment("light", value_range=5), "value_range is (low, high)"),
        (lambda d, _: ftk.data.augment("light", value_range=(9, 1)), "value_range is (low, high)"),
        (lambda d, ds: ftk.data.preview(ds, rows=0), "rows is a whole number from 1 on; given 0"),
        (lambda d, ds: ftk.data.preview(None), "a data set of images is wanted; given None"),
        (lambda d, ds: ftk.data.preview(ds, 5), A_FOLDER + "an int"),
        (lambda d, ds: setattr(ds.order, "epoch", "x"), "epoch is a whole number from 0 on"),
        (lambda d, ds: setattr(ds.order, "epoch", -1), "epoch is a whole number from 0 on"),
        (lambda d, ds: setattr(ds.order, "epoch", 1.5), "epoch is a whole number from 0 on"),
        (lambda d, _: ftk.data.text({"text": ["a"], "label": ["b"]}, preprocessor=3), "called on"),
    ],
)
def test_odd_types_are_told_in_one_line(folder, call, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as caught:
        call(folder, small())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, np.nan, np.inf, "0.2", (0.1, 0.2), True, None])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_an_alpha_that_cannot_be_is_told_before_anything_is_traced(name, value, recwarn, capfd):
    with pytest.raises(ValueError, match=f"^{name} is a number from .*given") as caught:
        ftk.data.augmented(small(), "medium", **{name: value})
    assert "\n" not in str(caught.value)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_layers_that_mix_images_and_not_their_labels_are_refused():
    for layer in (keras.layers.MixUp(0.2), keras.layers.CutMix(1.0)):
        with pytest.raises(ValueError, match="mixes images, and labels only with (mixup|cutmix)="):
            ftk.data.augmented(small(), [layer])
