"""What a solved head leaves to the layers below it."""

import keras
import numpy as np
import pytest
from conftest import chain, snapshot

import finetune_keras as ftk
from finetune_keras import recipes, select
from finetune_keras.recipes.soften import soften

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(loss=LOGITS):
    keras.utils.set_random_seed(3)
    model = chain()
    metrics = [] if loss == "mse" else ["accuracy"]
    ftk.compile(model, optimizer="adam", loss=loss, metrics=metrics)
    return model


def examples(n=40, sure=True):
    """Three classes, which a head on random features tells apart, or not."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 6)) * (0.1 if sure else 3) + 2 * np.eye(6)[y]
    return x.astype("float32"), y


class Look(keras.callbacks.Callback):
    """All weights before and after each epoch."""

    def __init__(self):
        super().__init__()
        self.begins, self.ends = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.begins.append(snapshot(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(snapshot(self.model))


def trained(recipe, data, loss=LOGITS, **settings):
    """Phases, and the weights before and after each epoch."""
    look, model = Look(), network(loss)
    settings = {"batch_size": 8, "seed": 0, "verbose": 0, "refit": False, **settings}
    history = ftk.fine_tune(model, data, recipe=recipe, callbacks=[look], **settings)
    return history.history["phase"], look


def logits(weights, x):
    for name in "ab":
        x = np.tanh(x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"])
    return x @ weights["c/kernel"] + weights["c/bias"]


def loss_of(weights, x, y):
    z = logits(weights, x)
    z = z - z.max(1, keepdims=True)
    return -(z - np.log(np.exp(z).sum(1, keepdims=True)))[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("recipe", ["lp_ft", "full", "auto"])
def test_half_of_the_loss_by_chance_is_there_again(recipe, refit):
    data = examples()
    phases, look = trained(recipe, data, epochs=2, refit=refit)
    rest = recipes.examples.examples(network(), data, None, 0)
    x, y = (rest.whole if refit else rest).train[:2]
    probe = phases.index("refit probe") if refit else 0
    sure, soft = look.ends[probe], look.begins[probe + 1]
    assert loss_of(sure, x, y) < 0.2 * np.log(3)
    assert loss_of(soft, x, y) == pytest.approx(0.5 * np.log(3), rel=1e-3)
    factor = np.abs(soft["c/kernel"]).sum() / np.abs(sure["c/kernel"]).sum()
    for name, values in sure.items():
        times = factor if name.startswith("c/") else 1.0
        np.testing.assert_allclose(soft[name], times * values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("case", ["soften=False", "unsure", "regression", "later", "many"])
def test_a_head_is_left_as_it_is(case, monkeypatch):
    if case == "many":
        monkeypatch.setattr(recipes.run, "_FEW", 39)
    data, loss = examples(sure=case != "unsure"), LOGITS
    if case == "unsure":
        data = data[0], np.random.default_rng(0).integers(0, 3, 40)
    if case == "regression":
        data, loss = (data[0], logits(snapshot(network()), data[0])), "mse"

    def recipe(task):
        yield task.probe()
        if case == "later":
            yield task.phase("between", select.head() | select.named("b"), epochs=1)
        yield task.phase("last", select.everything(), epochs=1, soften=case != "soften=False")

    phases, look = trained(recipe, data, loss, validation_data=data)
    last = look.begins[phases.index("last")]
    befores = look.ends[: phases.index("last")]
    assert any(all(np.array_equal(end[p], last[p]) for p in last) for end in befores)


@pytest.mark.parametrize("kind", ["softmax", "one-hot", "sigmoid", "sigmoids"])
def test_every_kind_of_head_that_is_solved(kind):
    x, y = examples()
    keras.utils.set_random_seed(3)
    units, activation = {"sigmoid": (1, "sigmoid"), "sigmoids": (3, "sigmoid")}.get(
        kind, (3, "softmax")
    )
    body = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, activation="tanh")])
    model = keras.Sequential(
        [keras.Input((6,)), body, keras.layers.Dense(units, activation=activation, name="classes")]
    )
    loss = "sparse_categorical_crossentropy" if kind == "softmax" else "categorical_crossentropy"
    ftk.compile(model, loss="binary_crossentropy" if "sigmoid" in kind else loss)
    y = {"softmax": y, "sigmoid": (y > 0).astype("float32")}.get(kind, np.eye(3)[y])
    seen, answers = [], []

    def recipe(task):
        yield task.probe()
        answers.append(model.predict(x, verbose=0))
        seen.append((soften(task, task.data), model.evaluate(x, y, verbose=0)))
        answers.append(model.predict(x, verbose=0))
        seen.append(soften(task, task.data))
        yield task.probe()

    ftk.fine_tune(model, (x, y), validation_data=(x, y), recipe=recipe, batch_size=8, verbose=0)
    (factor, loss), again = seen
    assert 0 < factor < 1
    assert loss == pytest.approx(0.5 * np.log(2 if "sigmoid" in kind else 3), rel=1e-3)
    assert again == 1.0
    if units == 1:
        answers = [a > 0.5 for a in answers]
    np.testing.assert_array_equal(*(a.argsort(1) for a in answers))


def test_it_is_told(capsys):
    model = network()
    ftk.fine_tune(model, examples(), recipe="lp_ft", epochs=1, batch_size=8, verbose=1)
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("the head begins")]
    assert len(lines) == 2  # and in the refit
    assert 0 < float(lines[0].split()[4]) < 1
