"""Folders of images, arrays, and the data set that all sources end in."""

import dataclasses
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from PIL import Image, ImageOps

import finetune_keras as ftk
from finetune_keras import heads, select
from finetune_keras.data import formats
from finetune_keras.data.dataset import Examples, Plan, dataset
from finetune_keras.data.order import Order
from finetune_keras.data.split import stratified

tf = pytest.importorskip("tensorflow")


def picture(seed=0, width=40, height=30, mode="RGB"):
    """Smooth colours, so that JPEG keeps them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype="uint8"))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def folder_of(path, classes=("cat", "dog", "eel"), each=4, ending="jpg", **kwargs):
    for i, name in enumerate(classes):
        (path / name).mkdir(parents=True, exist_ok=True)
        for j in range(each):
            picture(10 * i + j, **kwargs).save(path / name / f"{j}.{ending}")
    return path


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("animals"))


def rows(ds):
    """All examples that a data set gives, in its order."""
    xs, ys = zip(*((x.numpy(), y.numpy()) for x, y in ds), strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def numbered(n=11, *, fails=(), batch_size=4, **kwargs):
    """A data set whose ``x`` is the number of the example; some cannot be read."""
    bad = tf.Variable(list(fails) or [-1], dtype=tf.int64, shape=[None])

    def load(i):
        failed = tf.reduce_any(tf.equal(bad, i))
        with tf.control_dependencies([tf.debugging.Assert(~failed, ["broken"])]):
            return tf.reshape(tf.cast(i, tf.float32), [1])

    names = [f"file{i}" for i in range(n)]
    examples = Examples(load, np.arange(n, dtype="int32") % 2, ["a", "b"], names, fallible=True)
    ds = dataset(Plan(examples, batch_size=batch_size, **kwargs))
    ds.bad = bad  # assign to it what fails from now on
    return ds


# -- What it gives


def test_it_is_what_keras_gives_in_the_same_order(animals):
    for name, options in {
        "squash": {},
        "crop": {"crop_to_aspect_ratio": True},
        "pad": {"pad_to_aspect_ratio": True},
    }.items():
        theirs = keras.utils.image_dataset_from_directory(
            animals, image_size=(16, 20), batch_size=5, shuffle=False, verbose=False, **options
        )
        ours = ftk.data.images(
            animals, size=(16, 20), batch_size=5, shuffle=False, resize=name, draft=False
        )
        assert ours.class_names == theirs.class_names == ["cat", "dog", "eel"]
        assert ours.file_paths == [str(p) for p in theirs.file_paths]
        assert ours.element_spec == theirs.element_spec
        (x, y), (x_keras, y_keras) = rows(ours), rows(theirs)
        np.testing.assert_allclose(x, x_keras, atol=1e-3)
        np.testing.assert_array_equal(y, y_keras)
    assert isinstance(ours, tf.data.Dataset)
    assert (len(ours), ours.num_classes, ours.counts.tolist()) == (3, 3, [4, 4, 4])


def test_crop_and_pad_keep_proportions(tmp_path):
    wide = np.zeros((20, 60, 3), "uint8")
    wide[:, 20:40] = 255  # the middle is white
    (tmp_path / "a").mkdir()
    Image.fromarray(wide).save(tmp_path / "a" / "1.png")

    def shown(resize):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a single class
            x, _ = rows(ftk.data.images(tmp_path, size=20, resize=resize))
        return x[0, :, :, 0]

    assert shown("crop").min() == 255
    assert shown("squash").mean() == pytest.approx(85, abs=15)
    assert shown("pad")[:6].max() == shown("pad")[-6:].max() == 0


FILES = {
    "png grey": ("L", "png", {}),
    "png palette": ("P", "png", {}),
    "png bits": ("1", "png", {}),
    "jpeg grey": ("L", "jpg", {}),
    "jpeg cmyk": ("CMYK", "jpg", {"quality": 95}),
    "jpeg progressive": ("RGB", "jpeg", {"progressive": True}),
    "bmp": ("RGB", "bmp", {}),
    "gif": ("P", "gif", {}),
    "webp": ("RGB", "webp", {"lossless": True}),
    "tiff": ("RGB", "tif", {}),
}


@pytest.mark.parametrize("channels", [3, 1])
def test_formats(tmp_path, channels):
    """Each is what Pillow makes of it, whichever decoder read it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    picture().save(tmp_path / "b" / "b.png")
    expected = []
    for i, (mode, ending, options) in enumerate(FILES.values()):
        path = tmp_path / "a" / f"{i:02}.{ending}"
        picture(i, mode=mode).save(path, **options)
        with Image.open(path) as image:
            made = image.convert("RGB" if channels == 3 else "L")
            expected.append(np.asarray(made).reshape(30, 40, channels))
    ds = ftk.data.images(tmp_path, size=(30, 40), channels=channels, shuffle=False)
    x, y = rows(ds)
    assert x.shape[1:] == (30, 40, channels)
    assert y.tolist() == [0] * len(FILES) + [1]
    for name, found, want in zip(FILES, x, expected, strict=False):
        # Two JPEG decoders may differ by a few levels.
        assert np.abs(found - want).max() <= (6 if "jpeg" in name else 1.5), name


def test_16_bits_transparency_and_animations(tmp_path):
    (tmp_path / "a").mkdir()
    folder = tmp_path / "a"
    ramp = np.linspace(0, 65535, 400).reshape(20, 20).astype("uint16")
    Image.fromarray(ramp).save(folder / "1.png")
    clear = np.zeros((20, 20, 4), "uint8")
    clear[:10] = (200, 10, 10, 255)
    Image.fromarray(clear).save(folder / "2.png")
    frames = [Image.new("RGB", (20, 20), c) for c in ("red", "blue")]
    frames[0].save(folder / "3.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="only one class"):
        ds = ftk.data.images(tmp_path, size=20, shuffle=False)
    x, _ = rows(ds)
    np.testing.assert_allclose(x[0, :, :, 0], ramp / 257, atol=0.51)
    assert x[1, 0, 0].tolist() == [200, 10, 10]
    assert x[1, -1, 0].tolist() == [255, 255, 255]
    assert x[2].reshape(-1, 3).mean(0).tolist() == [255, 0, 0]


def test_every_exif_orientation_is_turned_upright(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = []
    for n in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = n
        path = tmp_path / "a" / f"{n}.jpg"
        picture(3, width=64, height=48).save(path, exif=exif, quality=95)
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        expected.append(upright.resize((32, 32), Image.Resampling.BILINEAR))
    picture().save(tmp_path / "b" / "1.webp")
    ds = ftk.data.images(tmp_path, size=32, resize="squash", shuffle=False)
    x, _ = rows(ds)
    assert {formats.header(p).orientation for p in ds.file_paths} == set(range(1, 9))
    assert all(formats.header(p).plain for p in ds.file_paths[:8])
    for found, want in zip(x, expected, strict=False):
        assert np.abs(found - np.asarray(want)).mean() < 4


def test_large_jpegs_are_decoded_small_and_look_the_same(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        picture(ord(name), width=400, height=300).save(tmp_path / name / "1.jpg", quality=95)
    fast, _ = rows(ftk.data.images(tmp_path, size=64, shuffle=False))
    slow, _ = rows(ftk.data.images(tmp_path, size=64, shuffle=False, draft=False))
    assert 0 < np.abs(fast - slow).mean() < 3


def test_channels_first(animals):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        x, _ = next(iter(ftk.data.images(animals, size=(8, 12))))
    finally:
        keras.config.set_image_data_format(before)
    assert x.shape[1:] == (3, 8, 12)


# -- Order


def test_the_order_is_a_function_of_seed_and_epoch():
    ds = numbered(seed=5)
    for epoch in range(3):
        assert ds.order.epoch == epoch
        next(iter(ds))  # whoever only looks changes nothing
        expected = np.random.default_rng([5, epoch]).permutation(11)
        np.testing.assert_array_equal(rows(ds)[0][:, 0], expected)
    assert sorted(expected) == list(range(11))
    other = numbered(seed=5)
    other.order.epoch = 2
    np.testing.assert_array_equal(rows(other)[0][:, 0], expected)
    assert rows(numbered(seed=6))[0].tolist() != rows(numbered(seed=5))[0].tolist()
    assert Order(np.arange(9), 3)(1).tolist() != Order(np.arange(9), 3)(2).tolist()


def test_check_and_preview_move_no_epoch(animals):
    ds = ftk.data.images(animals, size=8, batch_size=16)  # a single batch: read to its end
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ds.order.epoch = 3
    ftk.check(model, ds)
    ftk.data.preview(ds)
    assert ds.order.epoch == 3


def test_each_epoch_of_fit_has_its_own_order_and_a_second_fit_goes_on():
    ds = numbered(seed=1)
    seen = []

    def note(x):
        made = tf.numpy_function(lambda v: seen.extend(v[:, 0].tolist()) or v, [x], tf.float32)
        return tf.ensure_shape(made, [None, 1])

    noted = ds.map(lambda x, y: (note(x), y))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(noted, epochs=2, verbose=0)
    assert ds.order.epoch == 2
    seen.clear()
    model.fit(noted, epochs=4, initial_epoch=2, verbose=0)
    # Keras makes iterators that it only looks into; whole epochs are among what was seen.
    text = ",".join(str(int(n)) for n in seen)
    for epoch in (2, 3):
        assert ",".join(map(str, ds.order(epoch))) in text
    assert ds.order.epoch == 4


def test_a_transform_gets_another_seed_for_each_epoch_and_batch():
    def seeds(x, y, seed):
        return tf.tile(seed[None], [tf.shape(x)[0], 1]), y

    ds = numbered()
    ds = dataset(dataclasses.replace(ds.plan, transforms=(seeds,)))
    first, second = (np.unique(rows(ds)[0], axis=0) for _ in range(2))
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 2 * len(ds)
    ds.order.epoch = 0
    np.testing.assert_array_equal(np.unique(rows(ds)[0], axis=0), first)
    part = ds.split(0.3)[1]
    assert part.plan.transforms == ()


# -- Splits


def test_split_is_stratified_disjoint_and_the_same_each_time(animals):
    ds = ftk.data.images(animals, size=8)
    train, val = ds.split(0.25)
    assert (train.counts.tolist(), val.counts.tolist()) == ([3, 3, 3], [1, 1, 1])
    assert sorted(train.file_paths + val.file_paths) == sorted(ds.file_paths)
    assert not set(train.file_paths) & set(val.file_paths)
    again = ftk.data.images(animals, size=8).split(0.25)[1]
    assert again.file_paths == val.file_paths
    assert ds.split(0.25, seed=1)[1].file_paths != val.file_paths
    np.testing.assert_array_equal(rows(val)[1], val.labels)  # not shuffled
    assert train.class_names == val.class_names == ds.class_names
    inner, outer = train.split(1 / 3)
    assert set(inner.file_paths) | set(outer.file_paths) == set(train.file_paths)


def test_small_classes_are_in_both_parts():
    labels = np.repeat([0, 1, 2], [100, 2, 1])
    rest, part = stratified(labels, 0.1)
    assert np.bincount(labels[part], minlength=3).tolist() == [10, 1, 0]
    assert np.bincount(labels[rest], minlength=3).tolist() == [90, 1, 1]
    for fraction in (0, 1, 1.5, -0.1, True, "x"):
        with pytest.raises(ValueError, match="between 0 and 1"):
            stratified(labels, fraction)
    with pytest.raises(ValueError, match="leaves 1 and 0"):
        stratified(np.array([0]), 0.5)


def test_folders_of_splits(tmp_path):
    folder_of(tmp_path / "train")
    folder_of(tmp_path / "validation", classes=("cat", "eel"), each=2)
    folder_of(tmp_path / "Test", each=1)
    every = ftk.data.images(tmp_path, size=8)
    assert {k: len(v.labels) for k, v in every.items()} == {"train": 12, "val": 4, "test": 3}
    val = ftk.data.images(tmp_path, size=8, split="val")
    assert val.class_names == ["cat", "dog", "eel"]
    assert val.counts.tolist() == [2, 0, 2]
    assert rows(val)[1].tolist() == [0, 0, 2, 2]
    assert not val.plan.shuffle
    assert every["train"].plan.shuffle
    with pytest.raises(ValueError, match="no split 'vla'; did you mean 'val'"):
        ftk.data.images(tmp_path, split="vla")
    folder_of(tmp_path / "Test", classes=("dgo",), each=1)
    with pytest.raises(ValueError, match="class 'dgo' that the training data have not: did you m"):
        ftk.data.images(tmp_path, split="test")


def test_a_class_may_be_called_train(tmp_path):
    folder_of(tmp_path, classes=("train", "bus"), each=1)
    assert ftk.data.images(tmp_path, size=8).class_names == ["bus", "train"]
    folder_of(tmp_path / "b", classes=("train", "test"), each=1)
    assert ftk.data.images(tmp_path / "b", size=8).class_names == ["test", "train"]
    with pytest.raises(ValueError, match="no split 'val'; there are none: use .split"):
        ftk.data.images(tmp_path / "b", split="val")


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ("unlabeled", "splits 'train' and 'val', and 'unlabeled', which is no split: move it else"),
        ("validation", "and 'validation', which is 'val' as 'val' is: move it elsewhere"),
    ],
)
def test_an_odd_folder_beside_splits_makes_no_classes_of_them(tmp_path, odd, words):
    for part in ("train", "val", odd):
        folder_of(tmp_path / part, each=1)
    with pytest.raises(ValueError, match=words):
        ftk.data.images(tmp_path, size=8)


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    closed = str(folder_of(tmp_path, each=1) / "cat" / "more")
    os.mkdir(closed)
    scandir = os.scandir

    def refused(path):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match="folder '.*more' cannot be read: Permission denied"):
        ftk.data.images(tmp_path, size=8)


# -- What cannot be read


@pytest.mark.parametrize("fails", [(2,), (0, 1, 2, 3), (3, 10), tuple(range(10))])
def test_what_cannot_be_read_is_skipped_counted_and_named(fails):
    ds = numbered(fails=fails, seed=2)
    with pytest.warns(UserWarning, match=f"{len(fails)} examples could not be read.*'file"):
        x, y = rows(ds)
    assert sorted(ds.skipped) == sorted(f"file{i}" for i in fails)
    good = [i for i in ds.order(0) if i not in fails]
    # As many examples as ever: the first ones of the epoch stand in.
    np.testing.assert_array_equal(x[:, 0], np.resize(good, 11))
    np.testing.assert_array_equal(y, x[:, 0] % 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # named once
        rows(ds)
    assert ds.order.epoch == 2


@pytest.mark.parametrize(
    ("n", "batch_size", "fails"),
    [(10, 5, (5, 6, 7, 8, 9)), (5, 4, (4,)), (4, 1, (1, 3)), (9, 3, (3, 4, 5, 6, 7, 8))],
)
def test_what_is_skipped_at_the_edge_of_a_batch_is_named(n, batch_size, fails):
    ds = numbered(n, fails=fails, batch_size=batch_size, shuffle=False, check=False)
    next(iter(ds))  # another reading under way
    with pytest.warns(UserWarning, match=f"{len(fails)} examples could not be read"):
        rows(ds)
    assert ds.skipped == [f"file{i}" for i in fails]


@pytest.mark.parametrize("fails", [(0,), (2, 3, 10), tuple(range(10))])
def test_rows_of_what_is_not_shuffled_keep_together(fails):
    with pytest.warns(UserWarning, match=f"^{len(fails)} examples could not be read and are left"):
        ds = numbered(fails=fails, shuffle=False)
    good = [i for i in range(11) if i not in fails]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # named once
        x, y = rows(ds)
        again = ds.in_order()
    assert x[:, 0].tolist() == good  # none twice
    assert len(ds) == -(-len(good) // 4)
    np.testing.assert_array_equal(y, ds.labels)
    assert ds.file_paths == again.file_paths == [f"file{i}" for i in good]
    assert ds.counts.tolist() == np.bincount(ds.labels, minlength=2).tolist()
    assert sorted(ds.skipped) == sorted(f"file{i}" for i in fails)


def test_what_is_validated_on_is_tried_and_what_is_trained_on_is_not():
    ds = numbered(fails=range(0, 11, 2))
    with pytest.warns(UserWarning, match="could not be read and are left out") as raised:
        train, val = ds.split(0.4)
    assert len(raised) == 1
    assert len(train.labels) + len(val.labels) + len(val.skipped) == 11
    assert not train.skipped
    np.testing.assert_array_equal(rows(val)[1], val.labels)


def test_what_could_be_read_before_and_cannot_any_more():
    ds = numbered(shuffle=False)
    ds.bad.assign([6])
    with pytest.raises(tf.errors.InvalidArgumentError, match="one of 4 examples, from file4 on, c"):
        rows(ds)
    ds.bad.assign(range(11))
    with pytest.raises(tf.errors.InvalidArgumentError, match="none of 11 examples can be"):
        rows(ds)
    shuffled = numbered()
    shuffled.bad.assign(range(11))
    with pytest.raises(tf.errors.InvalidArgumentError, match="none of 11 examples can be") as e:
        rows(shuffled)
    assert "Traceback" not in str(e.value)


@pytest.mark.parametrize("strict", [False, True])
def test_a_part_of_which_nothing_can_be_read_is_an_error(strict):
    words = "'file.*' cannot be read: .*broken" if strict else "none of 4 examples can be read"
    with pytest.raises(ValueError, match=words):
        numbered(fails=range(11), strict=strict).split(0.4)


def test_each_data_set_has_its_own_list_of_what_it_skipped():
    ds = numbered(fails=range(0, 11, 2), shuffle=False, check=False)
    train, val = ds.split(0.4)
    for part in (train, val):
        with pytest.warns(UserWarning, match="examples could not be read") as raised:
            rows(part)
        assert len(raised) == 1
    for part in (train, val):
        assert set(part.skipped) == set(part.file_paths) & {f"file{i}" for i in range(0, 11, 2)}
    assert not ds.skipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows(train.in_order(check=False))  # the same data set: named already


def test_a_late_reading_does_not_set_the_epoch_back():
    ds = numbered()
    late = iter(ds)
    next(late)
    for _ in range(2):
        rows(ds)
    assert len(list(late)) == len(ds) - 1
    assert ds.order.epoch == 2


def test_readings_in_threads_have_numbers_of_their_own():
    ds = numbered(40, fails=(3, 30), batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: rows(ds), range(16)))
    assert sorted(ds.skipped) == ["file3", "file30"]


@pytest.mark.parametrize("fails", [(2,), (0, 5), (3, 4, 5, 6, 7, 10), tuple(range(1, 11))])
def test_rows_that_are_not_tried_first_come_once(fails):
    """Of a shuffled data set features are made in this order: none may stand in another's row."""
    ds = numbered(fails=fails).in_order(check=False)
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            late = iter(ds)
            next(late)  # another reading under way
            x, y = rows(ds)
        assert x[:, 0].tolist() == [i for i in range(11) if i not in fails]
        np.testing.assert_array_equal(y, x[:, 0] % 2)
    assert all(len(y) for _, y in ds)


def test_features_of_a_shuffled_data_set_with_a_broken_file(tmp_path):
    """Their rows are not those of ``labels``: there are fewer, each with its own label."""
    folder = folder_of(tmp_path / "data", each=4, width=24, height=24)
    path = folder / "cat" / "1.png"
    picture(1, width=24, height=24).save(path)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    ds = ftk.data.images(folder, size=24, batch_size=4)
    model = keras.Sequential([keras.Input((24, 24, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.warns(UserWarning, match="1 images could not be read"):
        found = ftk.features(model, ds, verbose=0)
    assert len(found) == len(ds.labels) - 1
    good = [i for i, name in enumerate(ds.file_paths) if name not in ds.skipped]
    np.testing.assert_array_equal(found.labels, ds.labels[good])
    each = ftk.data.images(folder, size=24, batch_size=1, shuffle=False)
    means = np.concatenate([x.numpy().mean((1, 2)) for x, _ in each])
    np.testing.assert_allclose(found.features[0], means, rtol=1e-4)
    steps = ftk.features(model, ds, steps=len(ds), verbose=0)  # of so many batches as ever
    assert len(steps) >= len(found)


def test_strict_stops_at_the_first():
    for shuffle in (False, True):
        with pytest.raises(ValueError, match="^'file3' cannot be read: .*broken.*; stri") as e:
            numbered(fails=(3, 4), shuffle=shuffle, strict=True)
        assert "\n" not in str(e.value)


def test_broken_images_are_left_out_and_named(tmp_path):
    folder_of(tmp_path, each=3)
    (tmp_path / "cat" / "0.jpg").write_bytes(b"not an image")
    path = tmp_path / "dog" / "1.jpg"
    picture(width=200, height=200).save(path)
    path.write_bytes(path.read_bytes()[:-500])  # its header is sound
    with pytest.warns(UserWarning, match="1 of 9 images cannot be read .* it is no image: .*0.jpg"):
        ds = ftk.data.images(tmp_path, size=8)
    assert ds.counts.tolist() == [2, 3, 3]
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match=r"^1 images could not be read.*1\.jpg"):
        model.fit(ds, verbose=0)
    assert [os.path.basename(p) for p in ds.skipped] == ["0.jpg", "1.jpg"]
    with pytest.raises(ValueError, match=r"0\.jpg' cannot be read: it is no image; strict=True"):
        ftk.data.images(tmp_path, strict=True)
    (tmp_path / "cat" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"1\.jpg' cannot be read: .*; strict=True stops") as e:
        ftk.data.images(tmp_path, size=8, strict=True)
    assert "\n" not in str(e.value)
    with pytest.warns(UserWarning, match=r"1 images could not be read and are left out: .*1\.jpg"):
        sure = ftk.data.images(tmp_path, size=8, shuffle=False)
    assert sure.counts.tolist() == [2, 2, 3]
    np.testing.assert_array_equal(rows(sure)[1], sure.labels)


def test_no_image_can_be_read(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(ValueError, match="none of 2 images can be read, the first: .*1.jpg"):
        ftk.data.images(tmp_path)


# -- Odd folders


def test_links_and_their_loops(tmp_path):
    real = folder_of(tmp_path / "real", classes=("cat",), each=2)
    folder = folder_of(tmp_path / "data", classes=("dog",), each=2)
    (folder / "cat").symlink_to(real / "cat")
    (folder / "dog" / "loop").symlink_to(folder)
    (folder / "dog" / "self.jpg").symlink_to(folder / "dog" / "self.jpg")
    (folder / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.warns(UserWarning, match="2 of .* images cannot be read .* broken link: .*gone"):
        ds = ftk.data.images(folder, size=8)
    assert ds.class_names == ["cat", "dog"]
    assert len(ds.file_paths) == len(set(map(os.path.realpath, ds.file_paths)))


def test_names_that_are_long_or_in_other_letters(tmp_path):
    names = ("кошка", "犬 🐕", "é" * 60)
    folder_of(tmp_path, classes=names, each=2)
    picture().save(tmp_path / names[0] / ("a" * 240 + ".jpg"))
    try:
        raw = os.fsencode(tmp_path / names[0]) + b"/\xff\xfe.jpg"  # no UTF-8
        with open(raw, "wb") as file:
            picture().save(file, "JPEG")
    except OSError:
        raw = None  # a file system that has only UTF-8
    ds = ftk.data.images(tmp_path, size=8)
    assert ds.class_names == sorted(names)
    assert ds.counts.sum() == 7 + (raw is not None)
    rows(ds)
    assert not ds.skipped


def test_hidden_and_other_files_are_left_out(animals, tmp_path):
    folder_of(tmp_path, each=2)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "cat" / "._0.jpg").write_bytes(b"of a Mac")
    (tmp_path / "cat" / "more").mkdir()
    picture().save(tmp_path / "cat" / "more" / "UPPER.JPG")
    ds = ftk.data.images(tmp_path, size=8)
    assert (ds.class_names, ds.counts.tolist()) == (["cat", "dog", "eel"], [3, 2, 2])


def make_empty_class(path):
    folder_of(path, each=1)
    (path / "none").mkdir()


def make_loose(path):
    picture().save(path / "a.jpg")


def make_file(path):
    path.rmdir()
    picture().save(path, "JPEG")


BAD = {
    "no folder": (lambda p: p.rmdir(), {}, "there is no folder"),
    "empty": (lambda p: None, {}, "has no folder of a class with images: expected class/file"),
    "loose images": (make_loose, {}, "and images that are in no class: expected class/file.jpg"),
    "empty class": (make_empty_class, {}, "class 'none' .* has no image .* class_names= without"),
    "a file": (make_file, {}, "is a file; give the folder"),
    "class names": (folder_of, {"class_names": ["cta"]}, "no folder of a class 'cta'.*'cat'"),
    "class twice": (folder_of, {"class_names": ["cat", "cat"]}, "class_names has 'cat' twice"),
    "resize": (folder_of, {"resize": "corp"}, "no resize='corp': did you mean 'crop'"),
    "interpolation": (folder_of, {"interpolation": "biliner"}, "did you mean 'bilinear'"),
    "size": (folder_of, {"size": (224,)}, r"size is \(height, width\).*given \(224,\)"),
    "channels": (folder_of, {"channels": 4}, "3 for RGB or 1 for grey; given 4"),
    "batch size": (folder_of, {"batch_size": 0}, "batch_size is a whole number from 1.*given 0"),
    "seed": (folder_of, {"seed": -1}, "seed is a whole number from 0 on; given -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_that_names_the_fix(case, tmp_path):
    make, options, words = BAD[case]
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(ValueError, match=words) as caught:
        ftk.data.images(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.zip", "an archive: unpack it"), ("a.tar.gz", "an archive"), ("a.pkl", "is a pickle")],
)
def test_archives_and_pickles_are_refused(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=words):
        ftk.data.images(tmp_path / name)


# -- Arrays


def test_arrays():
    x = np.arange(24, dtype="uint8").reshape(6, 2, 2, 1)
    ds = ftk.data.arrays(x, [1, 0, 1, 0, 1, 1], class_names=["no", "yes"], batch_size=4, seed=3)
    found, y = rows(ds)
    assert found.dtype == "float32"
    np.testing.assert_array_equal(found, x[ds.order(0)])
    np.testing.assert_array_equal(y, np.array([1, 0, 1, 0, 1, 1])[ds.order(0)])
    assert (ds.class_names, ds.counts.tolist(), len(ds)) == (["no", "yes"], [2, 4], 2)
    numbers = ftk.data.arrays(x, [0.5, 1, 2, 3, 4, 5])
    assert (numbers.num_classes, numbers.class_names, numbers.labels.dtype) == (None,) * 2 + (
        np.dtype("float32"),
    )
    ids = ftk.data.arrays({"a": np.arange(6), "b": ["x"] * 6}, ["q", "p"] * 3, shuffle=False)
    (batch, y) = next(iter(ids))
    assert batch["a"].dtype == tf.int64
    assert batch["b"].numpy().tolist() == [b"x"] * 6
    assert y.numpy().tolist() == [1, 0] * 3


def test_a_second_array_gets_the_numbers_of_the_first():
    def labels(y, **options):
        ds = ftk.data.arrays(np.zeros((len(y), 2)), y, **options)
        return ds.labels.tolist(), ds.class_names

    # A class that has no example moves none of the others.
    assert labels([0, 2]) == ([0, 2], ["0", "1", "2"])
    assert labels(np.array([True, True])) == ([1, 1], ["False", "True"])
    with pytest.warns(UserWarning, match="from 1 to 3, so that the class 0 has no example: give c"):
        assert labels([1, 3, 2]) == ([1, 3, 2], ["0", "1", "2", "3"])
    # Names that are numbers are what labels are matched with.
    for names, y, expected in (
        (["1", "2", "3"], [1, 3], [0, 2]),
        (["5", "7", "9"], [7, 9], [1, 2]),
        (["0", "1", "2"], [2, 2], [2, 2]),
        ([str(10**12), str(10**12 + 1)], [10**12 + 1], [1]),
    ):
        assert labels(y, class_names=names) == (expected, names)
    assert labels([10**12 + 1, 10**12])[0] == [1, 0]
    with pytest.raises(ValueError, match="'4' in row 1 is no class"):
        labels([1, 4], class_names=["1", "2", "3"])


def test_arrays_of_the_backend():
    x = keras.ops.convert_to_tensor(np.ones((4, 3), "float32"))
    found, y = rows(ftk.data.arrays(x, keras.ops.convert_to_tensor(np.array([1, 0, 2, 1]))))
    np.testing.assert_array_equal(found, np.ones((4, 3)))
    assert sorted(y.tolist()) == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("x", "y", "options", "words"),
    [
        (np.zeros((3, 2)), [0, 1], {}, "different lengths: 3, 2"),
        (np.zeros((3, 2)), None, {}, "y, the labels, is missing"),
        (np.zeros((0, 2)), [], {}, "there are no examples"),
        (np.zeros((2, 2)), [0, 2], {"class_names": ["a", "b"]}, "go from 0 to 2.*expected 0 to 1"),
        (np.zeros((2, 2)), ["a", ""], {}, "1 labels are missing, the first in row 1"),
        (np.zeros((2, 2)), ["a", "c"], {"class_names": ["a", "b"]}, "'c' in row 1 is no class"),
        (np.zeros((2, 2)), [0, 1], {"labels": "class"}, "no labels='class': did you mean 'class"),
        (np.array([{}, {}]), [0, 1], {}, "Python objects"),
    ],
)
def test_arrays_that_do_not_fit(x, y, options, words):
    with pytest.raises(ValueError, match=words):
        ftk.data.arrays(x, y, **options)


# -- With the rest


def test_a_head_takes_its_names_and_counts(animals):
    train, val = ftk.data.images(animals, size=24, batch_size=4).split(0.25)
    base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))
    model = ftk.build(
        base,
        heads.Classification(class_names=train),
        freeze=select.backbone(),
        class_weight="balanced",
        counts=train.counts,
    )
    history = model.fit(train, validation_data=val, epochs=2, verbose=0)
    assert len(history.history["val_loss"]) == 2
    assert train.order.epoch == 2


def test_kept_features_are_found_again_until_a_file_changes(tmp_path):
    folder = folder_of(tmp_path / "data", each=2, width=24, height=24)
    base = ftk.backbone("letters_resnet", input_shape=(24, 24, 3))

    def features(**options):
        ds = ftk.data.images(folder, size=24, **{"batch_size": 4} | options)
        kept = ftk.features(base.model, ds, directory=tmp_path / "kept", verbose=0)
        return ds, kept

    ds, first = features()
    np.testing.assert_array_equal(np.asarray(first.labels), ds.labels)  # in the order of the files
    features()
    ds.order.epoch = 3  # the order of epochs changes nothing
    ftk.features(base.model, ds, directory=tmp_path / "kept", verbose=0)
    with pytest.raises(ftk.CacheError):
        features(resize="pad")
    assert features(batch_size=3)[1].reused  # which examples they are, however divided
    path = folder / "cat" / "0.jpg"
    picture(99, width=24, height=24).save(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ftk.CacheError):
        features()
    with pytest.raises(ftk.CacheError):  # a data set that was made before it
        ftk.features(base.model, ds, directory=tmp_path / "kept", verbose=0)
