"""TensorFlow Datasets: a builder written here, a prepared folder, ImageFolder."""

import keras
import numpy as np
import pytest
from conftest import value
from PIL import Image

import finetune_keras as ftk
from finetune_keras import heads, select

tfds = pytest.importorskip("tensorflow_datasets")

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


class TinyColours(tfds.core.GeneratorBasedBuilder):
    """Images of one colour, with a caption and a number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=sorted(COLOURS)),
                    "caption": tfds.features.Text(),
                    "word": tfds.features.Text(),
                    "vector": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                    "value": np.float32,
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(6)}

    def _generate_examples(self, count=0):
        for i in range(count):
            name = sorted(COLOURS)[i % 3]
            image = np.broadcast_to(np.array(COLOURS[name], "uint8"), (20 + i, 30, 3))
            yield (
                i,
                {
                    "image": np.array(image),
                    "label": name,
                    "caption": f"a {name} image",
                    "word": name,
                    "vector": [i, -i],
                    "value": i / 2,
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    TinyColours(data_dir=folder).download_and_prepare()
    return folder


def colours(ds):
    """The colour of each image's middle, and its label."""
    for x, y in ds:
        for image, label in zip(value(x), value(y), strict=True):
            yield tuple(image[8, 8].round().astype(int)), ds.class_names[int(label)]


def test_by_name_from_a_local_folder(prepared):
    ds = ftk.data.tfds("tiny_colours", "train", data_dir=prepared, size=16, batch_size=5)
    assert ds.class_names == sorted(COLOURS)
    assert ds.counts.tolist() == [4, 4, 4]
    assert [x.shape for x, _ in ds] == [(5, 16, 16, 3), (5, 16, 16, 3), (2, 16, 16, 3)]
    assert all(COLOURS[name] == colour for colour, name in colours(ds))
    train, val = ds.split(0.25)
    assert (train.counts.tolist(), val.counts.tolist()) == ([3, 3, 3], [1, 1, 1])


def test_splits_keys_and_builders(prepared):
    builder = TinyColours(data_dir=prepared)
    parts = ftk.data.tfds(builder, size=16)
    assert {n: len(d.labels) for n, d in parts.items()} == {"train": 12, "test": 6}
    assert list(parts["test"].order(0)) == list(range(6))
    assert list(parts["train"].order(0)) != list(range(12))
    assert len(ftk.data.tfds(builder, "train[:50%]", size=16).labels) == 6
    text = ftk.data.tfds(builder, "test", keys=("caption", "label"))
    assert next(iter(text))[0].numpy()[0].startswith(b"a ")
    words = ftk.data.tfds(builder, "test", keys=("vector", "word"))
    assert words.class_names == sorted(COLOURS)
    assert next(iter(words))[0].shape == (6, 2)
    numbers = ftk.data.tfds(builder, "test", keys=("vector", "value"))
    x, y = next(iter(numbers))
    np.testing.assert_allclose(x[:, 0] / 2, y)
    assert numbers.num_classes is None
    grey = ftk.data.tfds(builder, "test", size=(12, 16), channels=1)
    assert next(iter(grey))[0].shape == (6, 12, 16, 1)


def test_a_folder_of_images(tmp_path):
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (24, 20), colour).save(tmp_path / split / name / "1.png")
    builder = tfds.folder_dataset.ImageFolder(str(tmp_path))
    parts = ftk.data.tfds(builder, size=16)
    assert set(parts) == {"train", "test"}
    assert all(COLOURS[name] == colour for d in parts.values() for colour, name in colours(d))


@pytest.mark.trains
def test_fine_tuning_on_it(prepared):
    train, val = ftk.data.tfds("tiny_colours", "train", data_dir=prepared, size=16).split(0.25)
    base = ftk.backbone("letters_resnet", input_shape=(16, 16, 3))
    model = ftk.build(base, heads.Classification(class_names=train), freeze=select.backbone())
    before = value(model.get_layer("ftk_head_output").kernel)
    history = model.fit(train, validation_data=val, epochs=2, verbose=0)
    assert np.isfinite(history.history["val_loss"]).all()
    assert np.abs(value(model.get_layer("ftk_head_output").kernel) - before).max() > 0
    assert keras.ops.shape(model(next(iter(val))[0])) == (3, 3)


class UnevenSplits(tfds.core.GeneratorBasedBuilder):
    """The test split lacks the first class, and the last one."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "x": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "word": tfds.features.Text(),
            "number": np.int64,
            "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("abcd"), "test": self._generate_examples("bc")}

    def _generate_examples(self, words=""):
        for i, word in enumerate(words):
            number = "abcd".index(word)
            yield i, {"x": [number, number], "word": word, "number": number, "label": number}


def test_a_class_has_one_number_in_all_splits(tmp_path):
    builder = UnevenSplits(data_dir=tmp_path)
    builder.download_and_prepare()
    for key, names in (("word", list("abcd")), ("number", list("0123")), ("label", list("abcd"))):
        test = ftk.data.tfds(builder, keys=("x", key))["test"]
        assert (test.class_names, sorted(test.labels.tolist())) == (names, [1, 2]), key
        x, y = next(iter(test))
        np.testing.assert_array_equal(x[:, 0], y)
        alone = ftk.data.tfds(builder, "test", keys=("x", key))
        assert (alone.class_names, alone.labels.tolist()) == (names, test.labels.tolist()), key
    order = ["3", "2", "1", "0"]
    turned = ftk.data.tfds(builder, "test", keys=("x", "number"), class_names=order)
    assert (turned.class_names, sorted(turned.labels.tolist())) == (order, [1, 2])
    for key in ("word", "label"):
        other = ftk.data.tfds(builder, "test", keys=("x", key), class_names=["c", "b"])
        assert (other.class_names, sorted(other.labels.tolist())) == (["c", "b"], [0, 1])
        with pytest.raises(ValueError, match="is no class: there are: 'b', 'c'|'[ad]'.*is no cl"):
            ftk.data.tfds(builder, "train", keys=("x", key), class_names=["b", "c"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: ftk.data.tfds("beens", data_dir=d), ValueError, "did you mean 'beans'"),
        (lambda d: ftk.data.tfds("beans", data_dir=d), ValueError, "not prepared.*download=True"),
        (lambda d: ftk.data.tfds("beans", data_dir="no"), ValueError, "no folder data_dir='no'"),
        (lambda d: ftk.data.tfds(3), TypeError, "given a int"),
        (
            lambda d: ftk.data.tfds("tiny_colours", "trian", data_dir=d),
            ValueError,
            "has no split 'trian'; did you mean 'train'|no split 'trian': did you mean 'train'",
        ),
        (
            lambda d: ftk.data.tfds("tiny_colours", data_dir=d, keys=("imge", "label")),
            ValueError,
            "no feature 'imge': did you mean 'image'",
        ),
        (
            lambda d: ftk.data.tfds("tiny_colours", data_dir=d, keys="image"),
            ValueError,
            "two names of features",
        ),
        (lambda d: ftk.data.tfds("tiny_colours", data_dir=d, size=0), ValueError, "size is"),
    ],
)
def test_bad_input_names_the_fix(prepared, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(prepared)
    assert "\n" not in str(raised.value)
