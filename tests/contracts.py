"""What holds for every backbone: each contract a function that raises ``AssertionError``.

`run` says what became of one: ``"yes"``; ``"no"``, where the library says in one line that it
does not do this with that network; ``"fails"``, which is a bug of somebody's; ``""`` where there
is nothing to ask. The battery of heads is in `head_contracts`.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from conftest import learners, moved, snapshot, value
from networks import Network

import finetune_keras as ftk
from finetune_keras import Backbone, backbone, blocks, flags, graph, heads, select, tape

__all__ = [
    "CHEAP",
    "CONTRACTS",
    "NothingError",
    "RefusedError",
    "Trial",
    "asked",
    "run",
    "trial",
]

CLASSES = ("ash", "beech", "cedar")
# Sums over many layers in another order.
CLOSE = 1e-4


class RefusedError(Exception):
    """The library says that it does not do this."""


class NothingError(Exception):
    """There is nothing to ask of this network."""


@contextlib.contextmanager
def asked():
    """What may be refused, in one line."""
    try:
        yield
    except ValueError as e:
        if "\n" in str(e):
            raise AssertionError(f"an error of several lines: {e}") from e
        raise RefusedError(str(e)) from e


class Trial:
    """A network on trial: built once, all contracts are held against the same."""

    def __init__(self, network: Network):
        self.network = network
        self.folder = tempfile.TemporaryDirectory()
        self.broken: Exception | None = None
        keras.utils.set_random_seed(7)
        try:
            with asked():
                self.base, self.reference = network.make()
        except RefusedError as e:
            self.broken = e
            return
        self.x = self.data(self.base)

    def data(self, base: Backbone) -> Any:
        """Two examples of what the backbone takes, in the structure in which it takes it."""
        rng = np.random.default_rng(0)

        def one(t):
            shape = (2, *(n or 6 for n in t.shape[1:]))
            if "mask" in t.name:
                return np.array([[1] * 6, [1] * 4 + [0] * 2], "int32")
            if "segment" in t.name:
                return rng.integers(0, 2, shape).astype("int32")
            return rng.uniform(0, self.network.top, shape).astype(t.dtype)

        return keras.tree.map_structure(one, base.inputs())

    @functools.cached_property
    def model(self) -> keras.Model:
        """With a head on the frozen backbone. Normalised, so that features of any scale do."""
        head = heads.Classification(class_names=CLASSES, normalization="layer")
        return self.built(self.base, head, freeze=select.backbone())

    def built(self, base: Backbone, head: heads.Classification, **settings: Any) -> keras.Model:
        settings = {"optimizer": "adam", "learning_rate": 1e-2, **settings}
        model = ftk.build(base, head, **settings)
        # Tracing a large graph for one step takes longer than the step.
        return ftk.compile(model, run_eagerly=keras.backend.backend() == "tensorflow")

    @property
    def images(self) -> bool:
        """Whether the network takes one image."""
        shapes = [t.shape for t in self.base.network.inputs]
        return len(shapes) == 1 and len(shapes[0]) == 4

    def saved(self) -> Path:
        """The model's file, as it is now."""
        path = Path(self.folder.name) / "model.keras"
        self.model.save(path)
        return path


def out(model: keras.Model, x: Any) -> np.ndarray:
    return value(keras.ops.cast(model(x, training=False), "float32"))


def step(model: keras.Model, x: Any) -> set[str]:
    """Trains on one batch; paths of the weights that moved."""
    before = snapshot(model)
    loss = model.train_on_batch(x, np.array([0, 1]))
    assert np.isfinite(value(keras.tree.flatten(loss)[0])), f"the loss is {loss}"
    return moved(before, model)


def far(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the scale of what is expected."""
    assert found.shape == expected.shape, f"shape {found.shape} in place of {expected.shape}"
    assert np.isfinite(expected).all(), "the features are not finite"
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-3))


def assert_close(found: np.ndarray, expected: np.ndarray, what: str, to: float = CLOSE) -> None:
    distance = far(found, expected)
    assert distance <= to, f"{what} differ by {distance:.2g} of their scale (allowed: {to:g})"


def assert_same(found: set[str], expected: set[str], what: str) -> None:
    def shown(paths):
        return ", ".join(sorted(paths)[:4]) + (f", ... ({len(paths)})" if len(paths) > 4 else "")

    more, less = found - expected, expected - found
    assert not more, f"{what}, and shall not: {shown(more)}"
    assert not less, f"not {what}, and shall: {shown(less)}"


def head_of(model: keras.Model) -> set[str]:
    return {u.path for u in select.resolve(model, select.head()) if u.learnable}


def features(t: Trial) -> None:
    """Raw inputs give what the bare network gives on the family's own preprocessing."""
    # The MobileNets at random, with statistics of a batch, amplify rounding: 1.1e-4 on JAX.
    to = 5 * CLOSE if t.network.half > 0.05 else CLOSE
    assert_close(out(t.base.model, t.x), t.reference(t.x), "the features", to)


def blocks_share(t: Trial) -> None:
    """Blocks share out every weight exactly once, and their names find them."""
    found = t.base.blocks
    units = [id(u.variable) for b in found for u in b.units]
    own = [id(u.variable) for u in graph.opened(t.base.network).units]
    assert len(units) == len(set(units)), "a weight is in two blocks"
    assert set(units) == set(own), f"{len(set(own) ^ set(units))} weights are in no block"
    notes = " ".join(ftk.describe(t.base.network).notes)
    assert len(found) > 1 or "one block" in notes, "one block, and describe does not say why"
    if t.network.towers > 1:
        return
    seen: set[str] = set()
    for block in found:
        seen |= {u.path for u in block.units}
        chosen = {u.path for u in select.resolve(t.base.network, select.up_to(block.name))}
        assert_same(chosen, seen, f"chosen by up_to({block.name!r})")


def taps(t: Trial) -> None:
    """One tensor for each stride, finer ones first, of the size that the stride says."""
    if not t.images or t.network.opaque:
        raise NothingError
    strides = [int(name[1:]) for name in t.base.taps]
    assert strides, "no taps"
    assert strides == sorted(set(strides)), f"strides {strides} do not grow"
    pyramid = keras.Model(t.base.model.inputs, t.base.taps)
    size = t.base.model.inputs[0].shape[1]
    for name, tensor in pyramid(t.x, training=False).items():
        stride = int(name[1:])
        if len(tensor.shape) == 3:  # tokens, a class token and a few registers besides
            patches = (size // stride) ** 2
            assert patches <= tensor.shape[1] <= patches + 8, f"{tensor.shape[1]} tokens at {name}"
            continue
        most = -(-size // stride)
        least = max(1, most - 4)  # convolutions without padding eat the rim
        assert least <= tensor.shape[1] <= most, f"{name} of {size} pixels has {tensor.shape[1]}"


def freeze(t: Trial) -> None:
    """A step with a frozen backbone moves all of the head and nothing else."""
    ftk.freeze(t.model, select.backbone(), only=True)
    assert_same(step(t.model, t.x), head_of(t.model), "moved")


def thaw(t: Trial) -> None:
    """After thawing the last block its weights move, normalisations aside, and the head's."""
    ftk.freeze(t.model, select.backbone(), only=True)
    units = select.resolve(t.model, select.blocks(-1))
    block = {u.path for u in units if u.learnable and not blocks.is_norm(u.layer)}
    if not block:
        raise RefusedError("the last block has normalisations only")
    ftk.thaw(t.model, select.blocks(-1), learning_rate=1e-2)
    changed = step(t.model, t.x)
    # What is added to all keys alike cancels in the softmax: its gradient is zero but for
    # rounding, and it may move or not.
    free = {p for p in block if re.search(r"key(_dense)?/bias$|k_proj/bias$", p)}
    assert_same(changed | free, block | head_of(t.model) | free, "moved")


def file(t: Trial) -> None:
    """The saved model is loaded by Keras alone and predicts the same."""
    path = t.saved()
    with asked():
        again = keras.models.load_model(path, compile=False)
    config = zipfile.ZipFile(path).read("config.json")
    assert b"finetune_keras" not in config, "the file needs finetune_keras to be loaded"
    assert_close(out(again, t.x), out(t.model, t.x), "the predictions", 1e-5)


def load(t: Trial) -> None:
    """`ftk.load` brings back flags and class names, and training goes on."""
    again = ftk.load(t.saved(), safe_mode=not t.network.opaque)

    def learning(model):
        units = graph.opened(model).units
        on = flags.on(units, model)
        return [(u.path, id(u.variable) in on) for u in units]

    # By place: KerasHub numbers the layers of some networks anew in each instance.
    pairs = list(zip(learning(again), learning(t.model), strict=True))
    wrong = [path for (path, found), (_, was) in pairs if found != was]
    assert not wrong, f"{len(wrong)} flags are not what they were, as of {wrong[0]}"
    found = ftk.record.read(again)
    assert found is not None, "there is no record"
    assert found.class_names == CLASSES, f"the classes are {found.class_names}"
    again.run_eagerly = t.model.run_eagerly
    changed = step(again, t.x)
    assert head_of(again) <= changed, "the head does not learn after loading"
    on = {path for path, is_on in learning(again) if is_on}
    assert changed <= on, "what is frozen moved after loading"


def copy(t: Trial) -> None:
    """A copy computes the same with variables of its own."""
    with asked():
        other = t.base.copy()
    mine = {id(v) for v in t.base.network.variables}
    assert not mine & {id(v) for v in other.network.variables}, "the copy shares variables"
    assert_close(out(other.model, t.x), out(t.base.model, t.x), "the features", 1e-5)


def half(t: Trial) -> None:
    """In mixed bfloat16 features are bfloat16, 5 % from those of float32
    at most (30 % of random MobileNets); the output is float32."""
    before = keras.config.dtype_policy().name
    with asked():
        other = backbone(t.base, dtype="mixed_bfloat16")
    assert keras.config.dtype_policy().name == before, "the global policy has changed"
    found = other.model(t.x, training=False)
    dtype = keras.backend.standardize_dtype(found.dtype)
    assert dtype == "bfloat16", f"the features are {dtype}"
    expected = out(t.base.model, t.x)
    found = value(keras.ops.cast(found, "float32"))
    distance = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    allowed = t.network.half
    assert distance <= allowed, f"the features differ by {distance:.1%} (allowed: {allowed:.0%})"
    model = ftk.build(other, heads.Classification(3))
    dtype = keras.backend.standardize_dtype(model(t.x, training=False).dtype)
    assert dtype == "float32", f"the output is {dtype}"


def stem(t: Trial) -> None:
    """``stem="small"`` makes maps finer, at the same width, with one new convolution."""
    if not t.images:
        raise NothingError
    with asked():
        small = backbone(t.base, stem="small")
    ours, theirs = out(small.model, t.x), out(t.base.model, t.x)
    assert np.isfinite(ours).all(), "the features are not finite"
    assert ours.shape[-1] == theirs.shape[-1], "the features have another width"
    first = [next(iter(b.taps)) for b in (t.base, small)]
    assert int(first[1][1:]) < int(first[0][1:]) or ours.shape[1] > theirs.shape[1], "no finer"
    shared = {id(u.variable) for u in graph.opened(t.base.network).units}
    new = [u for u in graph.opened(small.network).units if id(u.variable) not in shared]
    assert len({id(u.layer) for u in new}) == 1, f"new: {[u.path for u in new]}"


def one_channel(t: Trial) -> None:
    """With ``in_channels=1`` a grey image gives what it gives as RGB, on shared weights."""
    if not t.images:
        raise NothingError
    with asked():
        one = backbone(t.base, in_channels=1)
    assert one.model.inputs[0].shape[-1] == 1, f"it takes {one.model.inputs[0].shape}"
    grey = keras.tree.map_structure(lambda a: a[..., :1], t.x)
    found = out(one.model, grey)
    expected = out(t.base.model, keras.tree.map_structure(lambda a: np.repeat(a, 3, -1), grey))
    if t.base.pretrained:
        assert_close(found, expected, "the features")
    else:  # the new kernel is random too
        assert np.isfinite(found).all(), "the features are not finite"
        assert found.shape == expected.shape, f"features of shape {found.shape}"
    shared = {id(u.variable) for u in graph.opened(t.base.network).units}
    new = [u for u in graph.opened(one.network).units if id(u.variable) not in shared]
    assert new, "the kernel that reads the image is shared"
    assert len(new) < 1 + len(shared) / 2, f"{len(new)} of {len(shared)} weights are new"


def remat(t: Trial) -> None:
    """``remat=True`` computes the same gradients, for transformers."""
    if not any(tape.is_block(c.op) for c in graph.opened(t.base.network).calls):
        raise NothingError
    changes = []
    for options in ({}, {"remat": True}):
        with asked():
            base = backbone(t.base.copy(), **options)
        for _, layer in graph.opened(base.network).layers:
            for rate in ("rate", "drop_rate", "drop_prob", "dropout_rate"):
                if "Drop" in type(layer).__name__ and hasattr(layer, rate):
                    setattr(layer, rate, 0.0)  # each has random states of its own
        keras.utils.set_random_seed(7)
        model = t.built(base, heads.Classification(3), optimizer="sgd", learning_rate=1.0)
        ftk.thaw(model, select.everything(), norms=True, learning_rate=1.0)
        before = snapshot(model)
        step(model, t.x)
        after = snapshot(model)
        # By place: KerasHub numbers the layers of some networks anew in each instance.
        changes.append([(p, after[p] - before[p]) for p in before])
    own = learners(model)
    assert any(np.abs(d).max() > 0 for p, d in changes[1] if p in own), "nothing has a gradient"
    for (path, plain), (_, again) in zip(*changes, strict=True):
        difference = float(np.abs(plain - again).max())
        assert difference <= 1e-5, f"the gradient of {path} differs by {difference:.2g}"


CONTRACTS: dict[str, Callable[[Trial], None]] = {
    "features": features,
    "blocks": blocks_share,
    "taps": taps,
    "freeze": freeze,
    "thaw": thaw,
    "file": file,
    "load": load,
    "copy": copy,
    "bfloat16": half,
    "small stem": stem,
    "one channel": one_channel,
    "remat": remat,
}
CHEAP = ("features", "blocks", "taps")


@functools.lru_cache(maxsize=1)
def trial(network: Network) -> Trial:
    """The trial of a network; the last one is kept."""
    return Trial(network)


def run(name: str, subject: Any, contracts: dict[str, Callable] = CONTRACTS) -> tuple[str, str]:
    """What became of one contract: ``"yes"``, ``"no"``, ``"fails"`` or ``""``; and why."""
    if subject.broken is not None:
        return "no", str(subject.broken)
    try:
        contracts[name](subject)
    except NothingError:
        return "", ""
    except RefusedError as e:
        return "no", str(e)
    except Exception as e:
        said = " ".join(str(e).split())[:300]
        return "fails", said if isinstance(e, AssertionError) else f"{type(e).__name__}: {said}"
    return "yes", ""
