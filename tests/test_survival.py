"""`fine_tune(directory=)`: a run that is killed and started again ends as one without a break."""

import errno
import json
import os
import random
import sys

import keras
import numpy as np
import pytest
from conftest import images

import finetune_keras as ftk
from finetune_keras import select
from finetune_keras.cache import engines, forward
from finetune_keras.data.order import Order
from finetune_keras.recipes import chance
from finetune_keras.recipes import folder as folders
from finetune_keras.recipes.examples import Examples
from finetune_keras.recipes.phase import Phase

layers = keras.layers


def network(dropout=0.3, policy="float32", **options):
    """Blocks with normalisation, dropout and augmentation, whose generators have states."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 8, 3))
    x = layers.RandomFlip(name="flip")(inputs)
    for i in range(3):
        x = layers.Conv2D(6, 3, padding="same", name=f"conv{i}", dtype=policy)(x)
        x = layers.BatchNormalization(name=f"bn{i}", dtype=policy)(x)
        x = layers.Activation("relu", name=f"act{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="drop")(layers.Dense(5, activation="relu", name="fc")(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))
    return ftk.compile(
        model, loss="sparse_categorical_crossentropy", metrics=["accuracy"], **options
    )


class Killed(BaseException):
    """As if the process ended there."""


class Kill(keras.callbacks.Callback):
    def __init__(self, epoch, where):
        super().__init__()
        self.epoch, self.where = epoch, where

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch
        if self.where == "begin" and epoch == self.epoch:
            raise Killed

    def on_train_batch_end(self, batch, logs=None):
        if self.where == "batch" and self.now == self.epoch and batch:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        if self.where == "end" and epoch == self.epoch:
            raise Killed


def run(directory, recipe, *, kill=None, seed=7, model=None, data=None, **options):
    """One process: its random states, its model, its data are its own."""
    model = model or network()
    train, held = data or (images(20, 8), images(12, 8))
    start = directory if isinstance(directory, str | os.PathLike) else "none"
    if os.path.exists(os.path.join(start, "start.npz")):  # a head is drawn anew each time
        head = model.get_layer("classes").kernel
        head.assign(np.random.default_rng().normal(size=head.shape))
        np.random.seed()
    callbacks = kill if isinstance(kill, list) else [kill] if kill else []
    given = {"epochs": 4, "patience": 9, "verbose": 0, "seed": seed, **options}
    history = ftk.fine_tune(
        model,
        train,
        validation_data=held,
        recipe=recipe,
        directory=directory,
        callbacks=callbacks,
        **given,
    )
    return [np.array(v) for v in model.get_weights()], history


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True)) and (
        json.dumps(one[1].history) == json.dumps(other[1].history)
        and one[1].epoch == other[1].epoch
        and one[1].best == other[1].best
    )


@pytest.mark.parametrize(
    "recipe",
    [
        "lp_ft",
        pytest.param("auto", marks=pytest.mark.slow),
        pytest.param("full", marks=pytest.mark.slow),
    ],
)
def test_killed_at_each_epoch_it_ends_the_same(recipe, tmp_path):
    whole = run(tmp_path / "whole", recipe, epochs=2)
    assert same(whole, run(None, recipe, epochs=2))
    for epoch in range(len(whole[1].epoch)):
        directory = tmp_path / f"at{epoch}"
        with pytest.raises(Killed):
            run(directory, recipe, epochs=2, kill=Kill(epoch, "end"))
        assert same(run(directory, recipe, epochs=2), whole), epoch


@pytest.mark.parametrize("kind", ["arrays", "data set"])
def test_killed_in_a_refit_it_ends_the_same(kind, tmp_path):
    def data():
        x, y = images(30, 8)
        train = (x, y) if kind == "arrays" else ftk.data.arrays(x, y, batch_size=6, seed=3)
        return train, None

    options = {"epochs": 2, "learning_rate": 3e-3}
    whole = run(tmp_path / "whole", "lp_ft", data=data(), **options)
    phases = whole[1].history["phase"]
    assert "refit probe" in phases, phases
    assert kind == "data set" or "refit all" in phases, phases
    again, last = phases.index("refit probe"), len(phases) - 1
    kills = [(again - 1, "end"), (again, "begin"), (again, "end"), (last, "end")]
    for epoch, where in [*(kills if kind == "arrays" else []), (last, "batch")]:
        directory = tmp_path / f"{where}{epoch}"
        with pytest.raises(Killed):
            run(directory, "lp_ft", data=data(), kill=Kill(epoch, where), **options)
        found = run(directory, "lp_ft", data=data(), **options)
        assert same(found, whole), (epoch, where)
        assert found[1].refit == whole[1].refit
        assert found[1].notes == whole[1].notes


@pytest.mark.parametrize("recipe", ["linear_probe", "lp_ft"])
def test_a_refit_that_goes_on_computes_each_row_among_the_same_others(
    recipe, tmp_path, monkeypatch
):
    """On PyTorch the last bit of a row depends on what else is in the batch."""
    seen, choose = [], engines.choose

    def noting(*args, **kwargs):
        engine = choose(*args, **kwargs)

        def run(arrays):
            seen.append(arrays[0].tobytes())
            return engine.run(arrays)

        return engines.Engine(engine.record, run)

    monkeypatch.setattr(forward.engines, "choose", noting)
    solved = recipe == "lp_ft"  # so that its head is softened before all learns
    options = {"data": (images(30, 8), None), "epochs": 1 if solved else 2}

    def ended(name, **kill):
        return run(tmp_path / name, recipe, model=network(0 if solved else 0.3), **kill, **options)

    whole = ended("whole")
    batches, last = set(seen), len(whole[1].epoch) - 1
    assert whole[1].history["phase"][last] == ("refit all" if solved else "refit probe")
    with pytest.raises(Killed):
        ended("run", kill=Kill(last, "batch"))
    seen.clear()
    assert same(ended("run"), whole)
    assert set(seen) == batches
    assert len(seen) == len(batches)


@pytest.mark.parametrize("epoch", [4, 5])
def test_a_refit_that_ends_worse_is_undone_in_a_later_process_too(epoch, tmp_path):
    def recipe(task):
        yield Phase("first", select.head(), epochs=1, learning_rate=1e-9)
        yield Phase("all", select.everything(), epochs=3, learning_rate=1e-9)

    def one(directory, *callbacks):
        options = {"data": (images(30, 8), None), "monitor": "val_loss"}
        return run(directory, recipe, kill=[*callbacks], model=network(dropout=0), **options)

    whole = one(tmp_path / "whole", Spoiled())
    assert whole[1].history["phase"][4:6] == ["refit first", "refit all"]
    assert whole[1].refit is False
    with pytest.raises(Killed):
        one(tmp_path / "broken", Kill(epoch, "end"), Spoiled())
    found = one(tmp_path / "broken", Spoiled())
    assert same(found, whole)
    assert found[1].refit is False
    assert found[1].notes == whole[1].notes


class Spoiled(keras.callbacks.Callback):
    """The second epoch is better than the first; what learns after the fourth is of no use."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            kernel = self.model.get_layer("classes").kernel
            kernel.assign(np.zeros(kernel.shape, "float32"))
        if epoch >= 4:
            for i, variable in enumerate(self.model.trainable_variables):
                value = np.random.default_rng(i).normal(0, 30, variable.shape)
                variable.assign(value.astype("float32"))


@pytest.mark.parametrize(
    ("recipe", "epoch", "where"),
    [
        ("gradual", 2, "begin"),
        ("auto", 5, "end"),
        ("full", 5, "end"),
        ("surgical", 0, "begin"),
        ("surgical", 2, "batch"),
        ("linear_probe", 1, "batch"),
    ],
)
def test_killed_between_epochs_and_within_one(recipe, epoch, where, tmp_path):
    whole = run(tmp_path / "whole", recipe)
    with pytest.raises(Killed):
        run(tmp_path / "broken", recipe, kill=Kill(epoch, where))
    assert same(run(tmp_path / "broken", recipe), whole)


def test_killed_again_and_again(tmp_path):
    whole = run(tmp_path / "whole", "lp_ft", epochs=2)
    for epoch in range(len(whole[1].epoch)):
        with pytest.raises(Killed):
            run(tmp_path / "broken", "lp_ft", epochs=2, kill=Kill(epoch, "end"))
    assert same(run(tmp_path / "broken", "lp_ft", epochs=2), whole)


NADAM = keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam())


@pytest.mark.parametrize(
    "options", [{"ema_momentum": 0.5}, {"optimizer": "sgd"}, {"optimizer": NADAM}]
)
def test_averages_and_other_optimizers_go_on(options, tmp_path):
    whole = run(tmp_path / "whole", "lp_ft", model=network(**options))
    with pytest.raises(Killed):
        run(tmp_path / "broken", "lp_ft", model=network(**options), kill=Kill(5, "end"))
    assert same(run(tmp_path / "broken", "lp_ft", model=network(**options)), whole)


def test_half_precision_goes_on(tmp_path):
    def half(directory, kill=None):
        return run(directory, "lp_ft", model=network(policy="bfloat16"), epochs=2, kill=kill)

    whole = half(tmp_path / "whole")
    with pytest.raises(Killed):
        half(tmp_path / "broken", Kill(3, "end"))
    assert same(half(tmp_path / "broken"), whole)


class Drops(keras.callbacks.ReduceLROnPlateau):
    """Its counters decide when the rate drops."""

    def __init__(self, kill=None):
        super().__init__(monitor="val_loss", patience=2, factor=0.1, min_delta=10.0)
        self.kill = kill

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if epoch == self.kill:
            raise KeyboardInterrupt


def test_counters_of_callbacks_go_on_and_ctrl_c_is_a_break_as_well(tmp_path, capsys):
    whole = run(tmp_path / "whole", "lp_ft", kill=Drops(), epochs=6)
    broken = run(tmp_path / "broken", "lp_ft", kill=Drops(8), epochs=6, verbose=2)
    assert broken[1].interrupted
    assert not same(broken, whole)
    assert "the same call goes on from there" in capsys.readouterr().out
    again = run(tmp_path / "broken", "lp_ft", kill=Drops(), epochs=6, verbose=2)
    assert "goes on after epoch 8, phase 'all'" in capsys.readouterr().out
    assert same(again, whole)
    rates = whole[1].history["learning_rate"]
    assert len(set(rates[-6:])) > 1  # or else counters would not matter


def test_callbacks_of_keras_decide_the_same(tmp_path):
    def stops(*kill):
        # ``min_delta``, whose sign Keras turns once, is no counter.
        return [keras.callbacks.EarlyStopping("val_loss", patience=2, min_delta=10.0), *kill]

    whole = run(tmp_path / "whole", "linear_probe", kill=stops())
    assert len(whole[1].epoch) == 3  # stopped, of 4
    with pytest.raises(Killed):
        run(tmp_path / "broken", "linear_probe", kill=stops(Kill(1, "end")))
    assert same(run(tmp_path / "broken", "linear_probe", kill=stops()), whole)


class Counts(keras.callbacks.Callback):
    """Counts over all phases."""

    epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1


class First(keras.callbacks.Callback):
    """Notes the first epoch that it sees."""

    def __init__(self):
        super().__init__()
        self.epoch = None

    def on_epoch_end(self, epoch, logs=None):
        self.epoch = epoch if self.epoch is None else self.epoch


def test_counters_of_one_callback_are_not_those_of_another(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, "linear_probe", kill=[Counts(), First(), Kill(2, "end")])
    counts, first = Counts(), First()
    whole = run(tmp_path, "linear_probe", kill=[first, counts])
    assert (counts.epochs, first.epoch) == (len(whole[1].epoch), 0)


def test_files_of_callbacks_may_lie_in_the_folder(tmp_path):
    def log():
        return keras.callbacks.CSVLogger(tmp_path / "log.csv", append=True)

    with pytest.raises(Killed):
        run(tmp_path, "linear_probe", kill=[log(), Kill(2, "end")])
    (tmp_path / "mine.partial").write_text("mine")
    run(tmp_path, "linear_probe", kill=log())
    assert (tmp_path / "mine.partial").exists()
    assert len((tmp_path / "log.csv").read_text().splitlines()) > 4


def test_weights_of_classes_by_numbers_of_numpy_are_part_of_a_run(tmp_path):
    weights = dict(zip(np.arange(3), [1.0, 2.0, 3.0], strict=True))
    whole = run(tmp_path, "linear_probe", class_weight=weights)
    assert same(run(tmp_path, "linear_probe", class_weight=weights), whole)
    with pytest.raises(ftk.CacheError, match="other class_weight"):
        run(tmp_path, "linear_probe", class_weight={0: 1.0, 1: 2.0, 2: 4.0})


def test_a_model_that_is_trained_already_is_to_be_made_anew(tmp_path):
    run(tmp_path, "full")
    model = network()
    model.fit(*images(12, 8), verbose=0)
    with pytest.raises(ftk.CacheError, match="has to be made anew, as the first call"):
        run(tmp_path, "full", model=model)


def test_a_relative_directory_stays_where_it_is(tmp_path, monkeypatch):
    class Moves(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            os.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run("run", "linear_probe", kill=Moves())
    assert (tmp_path / "run" / "state.npz").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_directory_that_cannot_be_used_is_told_in_one_line(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "run").mkdir()
    for name in ("iterdir", "mkdir"):
        with monkeypatch.context() as patched:
            patched.setattr(type(tmp_path), name, denied)
            with pytest.raises(ftk.CacheError, match=r"\(Permission denied\): give another"):
                run(tmp_path / "run", "linear_probe")
    monkeypatch.setattr("finetune_keras.cache.manifest.open", denied, raising=False)
    with pytest.raises(ftk.CacheError, match=r"\(Permission denied\): give another"):
        run(tmp_path / "run", "linear_probe")
    with pytest.raises(TypeError, match="directory= takes a path; given 5"):
        run(5, "linear_probe")


def test_backup_and_restore_beside_it_is_refused(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(ValueError, match=r"BackupAndRestore would: leave it out"):
        run(tmp_path / "run", "linear_probe", kill=backup)


def test_a_run_that_is_over_is_given_again(tmp_path):
    whole = run(tmp_path, "auto")
    model = network()

    class No(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise AssertionError("an epoch is trained again")

    again = run(tmp_path, "auto", model=model, kill=No(), test_data=images(6, 8))
    assert same(again, whole)
    assert again[1].test.keys() == {"loss", "accuracy"}
    assert again[1].notes == whole[1].notes


class Poison(keras.callbacks.Callback):
    """A loss that is no number, from an epoch on."""

    def __init__(self, epoch):
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= self.at:
            bias = self.model.get_layer("classes").bias
            bias.assign(np.full(bias.shape, np.nan, "float32"))


def test_a_loss_that_is_no_number_stays_the_end(tmp_path):
    runs = []
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="training stopped in phase 'all', as loss is nan"):
            runs.append(run(tmp_path, "lp_ft", kill=Poison(5)))
    assert same(*runs)
    assert runs[1][1].epoch == [0, 1, 2, 3, 4, 5]
    assert all(np.isfinite(a).all() for a in runs[1][0])


def test_while_it_is_stored(tmp_path, monkeypatch):
    """The process dies when a file is half written, or written and not yet renamed."""
    whole = run(tmp_path / "whole", "lp_ft")
    usual, calls = os.replace, []

    def dies(source, target):
        calls.append(target)
        if len(calls) == at:
            raise Killed
        return usual(source, target)

    # 1: what the run is of; 2: how it began; then one an epoch.
    for at in (1, 2, 4):
        directory = tmp_path / f"at{at}"
        calls.clear()
        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(Killed):
            run(directory, "lp_ft")
        monkeypatch.setattr(os, "replace", usual)
        (directory / "state.npz.partial").write_bytes(b"half")
        assert same(run(directory, "lp_ft"), whole), at
        assert sorted(p.name for p in directory.iterdir()) == [
            "lock",
            "run.json",
            "start.npz",
            "state.npz",
        ]


def test_a_full_disk_keeps_what_was_stored(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", "lp_ft")
    usual, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if 4 <= len(calls) <= 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="cannot be stored in .*no space left.*is kept") as seen:
        on = run(tmp_path / "full", "lp_ft")
    assert len([w for w in seen if "cannot be stored" in str(w.message)]) == 1
    assert same(on, whole)
    calls.clear()
    with pytest.warns(RuntimeWarning, match="no space left"), pytest.raises(Killed):
        run(tmp_path / "killed", "lp_ft", kill=Kill(2, "end"))
    monkeypatch.setattr(os, "fsync", usual)
    assert same(run(tmp_path / "killed", "lp_ft"), whole)


def test_a_full_disk_at_the_start_is_an_error_and_changes_nothing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    model = network()
    before = model.get_weights()
    with pytest.raises(ftk.CacheError, match="cannot be stored in .*no space left.*another dir"):
        run(tmp_path / "full", "lp_ft", model=model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not [p.name for p in (tmp_path / "full").iterdir() if p.suffix != ""]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 5}, "epochs 4 there, 5 here"),
        ({"recipe": "full"}, "recipe lp_ft there, full here"),
        ({"seed": 8}, "seed 7 there, 8 here"),
        ({"learning_rate": 1e-4}, "learning_rate None there, 0.0001 here"),
        ({"data": (images(21, 8), images(12, 8))}, "other training data"),
        ({"data": (images(20, 8), images(9, 8))}, "other validation data"),
        ({"model": 0.2}, "other model"),
    ],
)
def test_the_folder_of_another_run_is_refused_with_the_reason(changed, message, tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, "lp_ft", kill=Kill(1, "end"))
    kept = (tmp_path / "state.npz").read_bytes()
    if "model" in changed:
        changed = {"model": network(changed["model"])}
    with pytest.raises(ftk.CacheError, match="is another: " + message):
        run(tmp_path, **{"recipe": "lp_ft", **changed})
    assert (tmp_path / "state.npz").read_bytes() == kept


def test_a_model_made_again_on_the_backbone_that_a_probe_froze(tmp_path):
    """Its optimizer is compiled at a head's rate then, which is not that of the run."""
    made = keras.Model((whole := network(dropout=0)).input, whole.get_layer("pool").output)
    base = ftk.backbone(made)

    def built():
        return ftk.build(base, ftk.heads.Classification(3))

    settings = {"recipe": "linear_probe", "directory": tmp_path, "verbose": 0}
    first = built()
    one = ftk.fine_tune(first, images(20, 8), **settings)
    second = built()
    assert float(second.optimizer.learning_rate) == pytest.approx(1e-3)
    assert ftk.fine_tune(second, images(20, 8), **settings).best == one.best
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_pretrained_weights_and_versions_are_refused(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, "lp_ft", kill=Kill(1, "end"))
    model = network()
    model.get_layer("conv0").bias.assign(np.ones(6))
    with pytest.raises(ftk.CacheError, match="other pretrained weights"):
        run(tmp_path, "lp_ft", model=model)
    told = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**told, "keras": "3.0.0"}))
    with pytest.raises(ftk.CacheError, match=r"keras 3.0.0 there, \d"):
        run(tmp_path, "lp_ft")
    (tmp_path / "run.json").write_text(json.dumps({**told, "format": folders.FORMAT + 1}))
    with pytest.raises(ftk.CacheError, match=r"is of format \d, and finetune_keras"):
        run(tmp_path, "lp_ft")


def test_a_folder_of_something_else_and_damaged_files_are_refused(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ftk.CacheError, match=r"has 'thesis.txt', which is of no run"):
        run(other, "lp_ft")
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(ftk.CacheError, match="is a file: give a directory"):
        run(other / "thesis.txt", "lp_ft")
    with pytest.raises(Killed):
        run(tmp_path / "run", "lp_ft", kill=Kill(1, "end"))
    whole = (tmp_path / "run" / "state.npz").read_bytes()
    (tmp_path / "run" / "state.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ftk.CacheError, match=r"state.npz is damaged .*: delete"):
        run(tmp_path / "run", "lp_ft")


def test_two_processes_do_not_share_a_folder(tmp_path):
    run(tmp_path, "linear_probe")
    with folders.Folder(tmp_path).locked(), pytest.raises(ftk.CacheError, match="another process"):
        run(tmp_path, "linear_probe")


def test_a_recipe_that_decides_otherwise_is_told_to_measure(tmp_path):
    decided = iter([1e-3, 1e-4])

    def recipe(task):
        yield task.probe()
        yield task.phase("all", select.everything(), learning_rate=next(decided))

    with pytest.raises(Killed):
        run(tmp_path, recipe, kill=Kill(5, "end"))
    with pytest.raises(ftk.CacheError, match=r"phase 2, 'all': learning_rate .*task.measured"):
        run(tmp_path, recipe)


def test_what_a_recipe_measured_is_stored(tmp_path):
    calls = []

    def measure(task):
        task.say("a half, ten times")
        calls.append(task)
        return np.float32(0.5**10)

    def recipe(task):
        yield task.probe()
        rate = task.measured("rate", measure)
        assert task.measured("rate", measure) == rate
        assert task.measured("several", lambda task: np.arange(2)) == (0, 1)
        yield task.phase("all", select.everything(), learning_rate=rate)

    with pytest.raises(Killed):
        run(tmp_path, recipe, kill=Kill(5, "end"))
    _, history = run(tmp_path, recipe)
    assert len(calls) == 1
    assert history.notes == ("a half, ten times",)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data in its own process")
def test_a_stream_goes_on_and_says_that_it_is_another_order(tmp_path):
    import tensorflow as tf

    def streams():
        train = tf.data.Dataset.from_tensor_slices(images(20, 8)).shuffle(20).batch(5)
        return train, tf.data.Dataset.from_tensor_slices(images(12, 8)).batch(5)

    with pytest.raises(Killed):
        run(tmp_path, "full", data=streams(), kill=Kill(5, "end"))
    with pytest.warns(RuntimeWarning, match="not to the bit"):
        history = run(tmp_path, "full", data=streams())[1]
    assert len(history.epoch) == len(run(None, "full", data=streams())[1].epoch)


class Interrupts(Kill):
    def __init__(self, epoch):
        super().__init__(epoch, "end")

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_cell_that_is_run_again_goes_on_with_its_model(tmp_path):
    whole = run(tmp_path / "whole", "lp_ft")
    model = network()
    with pytest.raises(Killed):
        run(tmp_path / "cell", "lp_ft", model=model, kill=Kill(2, "end"))
    broken = run(tmp_path / "cell", "lp_ft", model=model, kill=Interrupts(6))
    assert broken[1].interrupted
    assert same(run(tmp_path / "cell", "lp_ft", model=model), whole)
    assert same(run(tmp_path / "cell", "lp_ft", model=model), whole)
    with pytest.raises(ftk.CacheError, match="other pretrained weights"):
        run(tmp_path / "whole", "lp_ft", model=model)


def test_the_end_of_patience_goes_on(tmp_path):
    """At such a rate nothing gets better after the first epoch."""
    options = {"learning_rate": 1e-30, "patience": 2, "epochs": 6}
    whole = run(tmp_path / "whole", "linear_probe", **options)
    assert len(whole[1].epoch) == 3
    assert whole[1].best.epoch == 0
    with pytest.raises(Killed):
        run(tmp_path / "broken", "linear_probe", kill=Kill(2, "end"), **options)
    for _ in range(2):  # the rest, and what is over
        assert same(run(tmp_path / "broken", "linear_probe", **options), whole)


def test_data_sets_of_files_go_on_in_their_order(tmp_path):
    from PIL import Image

    for name in ("a", "b", "c"):
        (tmp_path / "files" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng([ord(name), i]).integers(0, 255, (8, 8, 3), "uint8")
            Image.fromarray(pixels).save(tmp_path / "files" / name / f"{i}.png")

    def data():
        ds = ftk.data.images(tmp_path / "files", size=(8, 8), batch_size=4, seed=3)
        return ds.split(0.3, seed=3)

    whole = run(tmp_path / "whole", "full", data=data(), epochs=2)
    with pytest.raises(Killed):
        run(tmp_path / "broken", "full", data=data(), epochs=2, kill=Kill(3, "end"))
    assert same(run(tmp_path / "broken", "full", data=data(), epochs=2), whole)


def test_every_random_state_is_put_back():
    model = network()

    class Data:
        order = Order(np.arange(5))

    data = Examples((Data(), None, None), None, 5, 1, None, None, "")
    torch = sys.modules.get("torch")

    def draw():
        Data.order.epoch += 1
        model(np.ones((2, 8, 8, 3), "float32"), training=True)
        states = [v for v in model.variables if "seed" in v.path]
        seeds = [np.array(keras.ops.convert_to_numpy(v)) for v in states]  # PyTorch's is a view
        assert len(seeds) == 2  # of dropout and augmentation
        drawn = [random.gauss(0, 1), np.random.normal(), Data.order.epoch]
        drawn += [np.array(keras.ops.convert_to_numpy(keras.random.normal((2,))))]
        return drawn + ([np.array(torch.rand(2))] if torch else []) + seeds

    draw()  # from now on half of a pair of normal numbers is kept for the next draw
    state = chance.take(model, data)
    first, second = draw(), draw()
    # But for the seeds: dropout draws from PyTorch's own state there.
    assert not any(np.array_equal(a, b) for a, b in zip(first[:-2], second[:-2], strict=True))
    chance.put(state, model, data)
    again = draw()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_file_takes_its_name_when_it_is_on_the_disk(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def renamed(source, target):
        with np.load(source) as file:
            assert file["a"].shape == (3,)
        done.append(target.name)
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: done.append("flushed") or sync(file))
    monkeypatch.setattr(os, "replace", renamed)
    folder = folders.Folder(tmp_path)
    folder.write_start({"a": np.ones(3)}, {})
    folder.write_state({"a": np.ones(3)}, {"b": 1})
    assert done == ["flushed", "start.npz", "flushed", "state.npz"]
    assert folder.state()[1] == {"b": 1}
