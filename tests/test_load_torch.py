"""PyTorch's weights in a network of one's own: by a table of names, all of them or none."""

import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import same, snapshot

import finetune_keras as ftk
from finetune_keras import SelectionError, WeightsError, graph

layers = keras.layers


@pytest.fixture
def nets():
    """The networks in PyTorch, where it is installed."""
    pytest.importorskip("torch")
    import torch_nets

    return torch_nets


def message(error, call, *args, **kwargs):
    """What an error says, which is one line."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def own():
    """One of each kind of layer that has another order of axes in PyTorch."""
    images = keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(images)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization(epsilon=1e-5, name="norm")(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(8, 3, padding="same", groups=2, name="grouped")(x)
    x = layers.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    x = layers.MaxPooling2D(4)(x)
    x = layers.Flatten()(x)
    x = layers.BatchNormalization(epsilon=1e-5, name="flat_norm")(x)
    x = layers.ReLU()(x)
    x = layers.Dense(6, name="fc1")(x)
    words = keras.Input((5,), dtype="int32", name="words")
    y = layers.Embedding(11, 6, name="embed")(words)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)
    y = layers.LayerNormalization(epsilon=1e-5, name="layer_norm")(y)
    y = layers.GlobalAveragePooling1D()(y)
    return keras.Model([images, words], layers.Dense(3, name="fc2")(layers.Add()([x, y])))


def own_in_torch():
    from torch import nn

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4)
            self.norm = nn.BatchNorm2d(8)
            self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.sep_depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
            self.sep_point = nn.Conv2d(8, 6, 1)
            self.up = nn.ConvTranspose2d(6, 4, 2, 2)
            self.flat_norm = nn.BatchNorm1d(64)
            self.fc1 = nn.Linear(64, 6)
            self.embed = nn.Embedding(11, 6)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.layer_norm = nn.LayerNorm(6)
            self.fc2 = nn.Linear(6, 3)

        def forward(self, images, words):
            x = self.grouped(self.norm(self.depthwise(self.conv(images))).relu())
            x = self.up(self.sep_point(self.sep_depth(x)))
            x = nn.functional.max_pool2d(x, 4).flatten(1)
            x = self.fc1(self.flat_norm(x).relu())
            y = self.embed(words)
            y = self.layer_norm(self.attention(y, y, y)[0]).mean(1)
            return self.fc2(x + y)

    return Own()


def third(i):
    return lambda array: np.split(array, 3)[i]


OWN = {
    r"separable/depthwise_kernel": "sep_depth.weight",
    r"separable/pointwise_kernel": "sep_point.weight",
    r"separable/bias": "sep_point.bias",
    **{
        f"attention/{name}/{kind}": (f"attention.in_proj_{torch_kind}", third(i))
        for i, name in enumerate(("query", "key", "value"))
        for kind, torch_kind in (("kernel", "weight"), ("bias", "bias"))
    },
    r"attention/attention_output": "attention.out_proj",
    r"(\w+)": r"\1",
}


def test_a_network_of_ones_own(nets):
    import torch

    net = nets.randomised(own_in_torch())
    model = own()
    record = ftk.load_torch(model, net.state_dict(), OWN)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    words = rng.integers(0, 11, (2, 5)).astype("int32")
    with torch.no_grad():
        expected = net(
            torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(words.astype("int64"))
        ).numpy()
    same(model([images, words], training=False), expected, atol=1e-5)
    assert set(record.loaded) == set(snapshot(model))
    assert set(record.skipped) == {
        "norm.num_batches_tracked",
        "flat_norm.num_batches_tracked",
    }


def test_the_guide_to_it_works(nets, tmp_path, monkeypatch):
    import torch

    net = nets.randomised(nets.ResNet20())
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20-12fca82f.th")
    page = (Path(__file__).parents[1] / "docs" / "guides" / "torch-weights.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(next(b for b in blocks if "load_torch" in b), found)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3)).astype("float32")
    scaled = ((images / 255 - mean) / deviation).astype("float32")
    same(found["base"].preprocessing[0](images), scaled, atol=1e-5)
    expected = nets.features(net, images, mean, deviation)
    same(found["model"](scaled, training=False), expected, atol=1e-4 * np.abs(expected).max())
    assert len(found["record"].loaded) == len(found["model"].weights)


def tiny():
    """A convolution, a normalisation and a dense layer, and their tensors."""
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(2, 3, name="block1_conv"),
            layers.BatchNormalization(name="block1_bn"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, name="classes"),
        ]
    )
    rng = np.random.default_rng(0)
    shapes = {
        "module.body.1.conv.weight": (2, 3, 3, 3),
        "module.body.1.conv.bias": (2,),
        "module.body.1.bn.weight": (2,),
        "module.body.1.bn.bias": (2,),
        "module.body.1.bn.running_mean": (2,),
        "module.body.1.bn.running_var": (2,),
        "module.head.weight": (2, 2),
        "module.head.bias": (2,),
    }
    return model, {k: rng.uniform(1, 2, s).astype("float32") for k, s in shapes.items()}


TINY = {r"block(\d)_(\w+)": r"body.\1.\2", "classes": "head"}


def test_square_kernels_are_turned_and_names_may_be_functions():
    model, state = tiny()
    ftk.load_torch(model, state, TINY)
    same(model.get_layer("classes").kernel, state["module.head.weight"].T, atol=0)
    other, _ = tiny()
    table = {r"block(\d)_(\w+)": lambda m: f"body.{int(m[1])}.{m[2]}", "classes": "head"}
    ftk.load_torch(other, state, table)
    paths = {u.path: u.path for u in graph.opened(other).units}
    by_path, _ = tiny()
    kinds = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
    kinds |= {"moving_mean": "running_mean", "moving_variance": "running_var"}

    def name(path):
        layer, kind = paths[path].split("/")
        return f"{layer.replace('block1_', 'body.1.').replace('classes', 'head')}.{kinds[kind]}"

    ftk.load_torch(by_path, state, name)
    for a, b, c in zip(model.weights, other.weights, by_path.weights, strict=True):
        same(a, b, atol=0)
        same(a, c, atol=0)


def test_a_kernel_of_a_layer_that_is_not_known_needs_a_function():
    """A square one would fit either way round."""
    model = keras.Sequential([keras.Input((5, 4)), layers.SimpleRNN(4, name="rnn")])
    state = {k: np.random.default_rng(0).normal(size=(4, 4)) for k in ("ih", "hh")}
    state["b"] = np.zeros(4)
    names = {"rnn/.*/kernel": "ih", "rnn/.*/recurrent_kernel": "hh", "rnn/.*/bias": "b"}
    before = snapshot(model)
    with pytest.raises(WeightsError, match="SimpleRNNCell.*give its row a function") as raised:
        ftk.load_torch(model, state, names)
    assert "\n" not in str(raised.value)
    after = snapshot(model)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    turned = {k: (v, np.transpose) if v != "b" else v for k, v in names.items()}
    ftk.load_torch(model, state, turned)
    kernel, recurrent, _ = model.get_weights()
    same(kernel, state["ih"].T, atol=1e-6)
    same(recurrent, state["hh"].T, atol=1e-6)


def test_none_leaves_a_variable_as_it_is():
    model, state = tiny()
    before = snapshot(model)
    record = ftk.load_torch(model, state, {**TINY, "classes": None})
    after = snapshot(model)
    assert np.array_equal(before["classes/kernel"], after["classes/kernel"])
    assert not np.array_equal(before["block1_bn/gamma"], after["block1_bn/gamma"])
    assert record.random == ("classes/kernel", "classes/bias")
    assert record.skipped == ("module.head.weight", "module.head.bias")


@pytest.mark.parametrize(
    ("names", "change", "error", "says"),
    [
        ({"classes": "head"}, {}, SelectionError, "'block1_conv/kernel', 'block1_conv/bias'"),
        ({**TINY, "clases": "head"}, {}, SelectionError, "did you mean 'classes'?"),
        ({**TINY, "classes": "haed"}, {}, WeightsError, "did you mean 'head.weight'"),
        ({"(": "head", **TINY}, {}, SelectionError, "no regular expression"),
        ({r"block(\d)_(\w+)": r"body.\7", "classes": "head"}, {}, SelectionError, "cannot be made"),
        ({r"block1_(\w+)": "body.1.bn", "classes": "head"}, {}, SelectionError, "the same tensor"),
        (TINY, {"module.head.weight": (3, 2)}, WeightsError, "(3, 2), (2, 3) here, and it takes"),
        (TINY, {"module.body.1.bn.bias": (4,)}, WeightsError, "7 of 8 weights"),
    ],
)
def test_what_does_not_fit_changes_nothing(names, change, error, says):
    model, state = tiny()
    before = snapshot(model)
    state |= {k: np.ones(shape, "float32") for k, shape in change.items()}
    assert says in message(error, ftk.load_torch, model, state, names)
    after = snapshot(model)
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_a_function_that_fails_is_named():
    model, state = tiny()

    def halved(array):
        return np.reshape(array, (5, 5))

    said = message(
        WeightsError, ftk.load_torch, model, state, {**TINY, "classes": ("head", halved)}
    )
    assert "'head.weight' of shape (2, 2) makes the function of its row fail" in said


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"a": 5}, "names= gave 5 for 'a'"),
        ({"a": b"fc"}, "names= gave b'fc' for 'a'"),
        ({"a": ["fc"]}, r"names= gave ['fc'] for 'a'"),
        ({"a": ("fc",)}, r"a pair in names= is (name, function of an array); given ('fc',)"),
        ({"a": ("fc", 3)}, "given ('fc', 3)"),
        (lambda path: 5, "names= gave 5"),
    ],
)
def test_rows_that_are_no_names(names, says):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="a")])
    state = {"fc.weight": np.ones((2, 2)), "fc.bias": np.ones(2)}
    assert says in message(TypeError, ftk.load_torch, model, state, names)


def test_a_deeper_network_is_noticed():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="a")])
    one = {"fc.0.weight": np.ones((2, 2)), "fc.0.bias": np.ones(2), "out.1.weight": np.ones(1)}
    state = one | {"fc.1.weight": np.ones((2, 2)), "fc.1.bias": np.ones(2)}
    state = {f"module.{k}": v for k, v in state.items()}
    with pytest.warns(UserWarning, match=r"has 2 tensors of layers like .*'fc\.1\.bias'") as caught:
        record = ftk.load_torch(model, state, {"a": "fc.0"})
    assert [w.filename for w in caught if "tensors of layers" in str(w.message)] == [__file__]
    assert len(record.skipped) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        record = ftk.load_torch(model, one, {"a": "fc.0"})
    assert record.skipped == ("out.1.weight",)


def test_what_load_torch_takes():
    model, state = tiny()
    assert "dict from Keras paths" in message(TypeError, ftk.load_torch, model, state, "head")
    assert "keras.Model" in message(TypeError, ftk.load_torch, layers.Dense(2), state, TINY)
    scale = keras.Sequential([keras.Input((2,)), layers.Dense(2, name="d"), layers.PReLU(name="p")])
    said = message(SelectionError, ftk.load_torch, scale, state, {r"d|p": "head"})
    assert "'p/alpha'" in said


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (np.ones((3, 2), "int8"), "holds int8 and it takes floats: are the weights quantised"),
        (np.array([[1, np.nan], [np.inf, 1], [1, 1]]), "has 2 values that are not finite"),
    ],
)
def test_values_that_no_layer_can_use(kernel, said):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="d")])
    before = model.get_weights()
    state = {"fc.weight": kernel, "fc.bias": np.zeros(3)}
    with pytest.raises(ftk.WeightsError, match=said) as e:
        ftk.load_torch(model, state, {"d": "fc"})
    assert "\n" not in str(e.value)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
