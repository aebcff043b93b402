import warnings

import keras
import numpy as np
import pytest
from conftest import value

from finetune_keras import heads, losses
from finetune_keras.cache import solver
from finetune_keras.cache.solver import solvable, solve
from finetune_keras.heads.missing import KnownLoss

layers = keras.layers
WIDTH = 6


def suffix(units=3, activation=None, **options):
    return keras.Sequential(
        [keras.Input((WIDTH,)), layers.Dense(units, activation=activation, name="d", **options)]
    )


def probe(task, units=3, **options):
    loss, activation = {
        "classification": ("sparse_categorical_crossentropy", "softmax"),
        "one-hot": ("categorical_crossentropy", "softmax"),
        "binary": ("binary_crossentropy", "sigmoid"),
        "multi_label": ("binary_crossentropy", "sigmoid"),
        "regression": ("mse", None),
    }[task]
    return solvable(suffix(units, activation, **options), loss)


def whitened(n=150, seed=0, weight=None):
    """Features of mean 0 and deviation 1, so that standardisation changes nothing."""
    x = np.random.default_rng(seed).normal(size=(n, WIDTH))
    x -= np.average(x, axis=0, weights=weight)
    return x / np.sqrt(np.average(x**2, axis=0, weights=weight))


def labels(x, classes=3, seed=1):
    rng = np.random.default_rng(seed)
    scores = x @ rng.normal(size=(WIDTH, classes)) + rng.gumbel(size=(len(x), classes))
    return scores.argmax(1)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# ---- the optimum


@pytest.mark.parametrize("l2", [100.0, 1.0, 0.01])
@pytest.mark.parametrize(
    ("task", "units"),
    [("classification", 3), ("classification", 2), ("binary", 1), ("multi_label", 3)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_losses_and_penalty_is_zero(task, units, l2, bias):
    weight = np.random.default_rng(3).uniform(0, 2, 150)
    x = whitened(weight=weight)
    y = labels(x, max(units, 2))
    truth = np.eye(units)[y] if units > 1 else y[:, None].astype(float)
    given = truth if task == "multi_label" else y
    found = solve(probe(task, units, use_bias=bias), x, given, sample_weight=weight, grid=[l2])
    assert found.converged
    assert (found.bias is not None) == bias
    kernel = found.kernel.astype("float64")
    z = x @ kernel + (0 if found.bias is None else found.bias)
    error = weight[:, None] * ((softmax(z) if task == "classification" else sigmoid(z)) - truth)
    np.testing.assert_allclose(x.T @ error + l2 * kernel, 0, atol=2e-4)
    if bias:
        np.testing.assert_allclose(error.sum(0), 0, atol=2e-4)


def test_it_is_what_scikit_learn_finds_on_the_raw_features():
    from sklearn.linear_model import LogisticRegression, Ridge

    x = whitened()
    y = labels(x)
    plain = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(x, y)
    found = solve(probe("classification"), x, y, grid=[2.0])
    np.testing.assert_allclose(found.kernel, plain.coef_.T, atol=1e-4)
    np.testing.assert_allclose(
        softmax(x @ found.kernel + found.bias), plain.predict_proba(x), atol=1e-5
    )
    hot = solve(probe("one-hot"), x, np.eye(3)[y], grid=[2.0])
    np.testing.assert_array_equal(hot.kernel, found.kernel)
    two = (y > 0).astype("int32")
    plain = LogisticRegression(C=0.5, tol=1e-8).fit(x, two)
    for given in (two, two[:, None], two.astype("float32"), two.astype(bool)):
        binary = solve(probe("binary", 1), x, given, grid=[2.0])
        np.testing.assert_allclose(binary.kernel, plain.coef_.T, atol=1e-4)
        np.testing.assert_allclose(binary.bias, plain.intercept_, atol=1e-4)
    numbers = x @ np.ones((WIDTH, 2)) + np.array([5.0, -3.0]) + 0.1 * x[:, :2] ** 2
    plain = Ridge(2.0).fit(x, numbers)
    ridge = solve(probe("regression", 2), x, numbers, grid=[2.0])
    np.testing.assert_allclose(ridge.kernel, plain.coef_.T, atol=1e-5)
    np.testing.assert_allclose(ridge.bias, plain.intercept_, atol=1e-5)


def test_small_products_run_on_one_thread_and_later_ones_on_as_many_as_before(monkeypatch):
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_info

    def threads():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    during, fit, before = [], LogisticRegression.fit, threads()

    def seen(*args, **kwargs):
        during.append(threads())
        return fit(*args, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", seen)
    x = whitened()
    solve(probe("classification"), x, labels(x))
    assert during
    assert all(found == {1} for found in during)
    assert threads() == before


@pytest.mark.parametrize("task", ["classification", "multi_label"])
@pytest.mark.parametrize("bias", [True, False])
def test_few_examples_of_many_features_are_a_small_problem(task, bias, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x, y, weight = rng.normal(size=(20, 50)), np.arange(20) % 3, rng.uniform(0.5, 2, 20)
    dense = layers.Dense(3, activation="softmax" if task == "classification" else "sigmoid",
                         use_bias=bias)  # fmt: skip
    loss = "sparse_categorical_crossentropy" if task == "classification" else "binary_crossentropy"
    wide = solvable(keras.Sequential([keras.Input((50,)), dense]), loss)
    truth, shapes, fit = np.eye(3)[y], [], LogisticRegression.fit

    def seen(self, x, *args, **kwargs):
        shapes.append(x.shape)
        return fit(self, x, *args, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", seen)
    given = y if task == "classification" else truth
    found = solve(wide, x, given, sample_weight=weight, grid=[0.1])
    assert {shape[1] for shape in shapes if shape[0] == 20} == {20}
    # What the optimum is, on features as the penalty takes them.
    share = weight / weight.sum()
    rest = x - share @ x
    scale = np.sqrt((rest**2).sum(1) @ share / 50)
    if not bias:
        rest = x
    rest = rest / scale
    kernel = found.kernel.astype("float64")
    z = x @ kernel + (found.bias if bias else 0)
    error = weight[:, None] * ((softmax(z) if task == "classification" else sigmoid(z)) - truth)
    np.testing.assert_allclose(rest.T @ error + 0.1 * kernel * scale, 0, atol=2e-4)


@pytest.mark.parametrize("task", ["classification", "binary", "regression"])
def test_the_scale_of_features_does_not_matter_and_constant_ones_are_no_harm(task):
    x = whitened()
    y = labels(x, 2)
    units = 3 if task == "classification" else 1
    plain = solve(probe(task, units), x, y, grid=[1.0])
    expected = x @ plain.kernel + plain.bias
    for scale in (1e-3, 1e3):
        moved = scale * (x + np.arange(WIDTH))
        other = solve(probe(task, units), moved, y, grid=[1.0])
        found = moved @ other.kernel.astype("float64") + other.bias
        np.testing.assert_allclose(found, expected, atol=1e-3)
    constant = x.copy()
    constant[:, 2] = 7.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(probe(task, units), constant, y)
    assert np.isfinite(solution.kernel).all()
    np.testing.assert_allclose(solution.kernel[2], 0, atol=1e-6)


def test_an_example_of_weight_two_counts_as_two():
    x = whitened(40) * 3 + 1
    y = labels(x)
    twice = np.arange(40) % 2 == 0
    weighted = solve(probe("classification"), x, y, sample_weight=1.0 + twice, grid=[0.5])
    rows = np.concatenate([np.arange(40), np.flatnonzero(twice)])
    repeated = solve(probe("classification"), x[rows], y[rows], grid=[0.5])
    np.testing.assert_allclose(weighted.kernel, repeated.kernel, atol=1e-4)
    np.testing.assert_allclose(weighted.bias, repeated.bias, atol=1e-4)


def test_float16_features_are_widened_and_maps_flattened():
    x = (whitened(60) * 300).astype("float16")
    y = labels(x.astype("float32") / 300)
    found = solve(probe("classification"), x, y, grid=[1.0])
    wide = solve(probe("classification"), x.astype("float32"), y, grid=[1.0])
    np.testing.assert_array_equal(found.kernel, wide.kernel)
    maps = keras.Sequential(
        [keras.Input((2, 3)), layers.Dropout(0.5), layers.Flatten(), layers.Dense(3)]
    )
    flat = solvable(maps, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    np.testing.assert_array_equal(
        solve(flat, x.reshape(-1, 2, 3), y, grid=[1.0]).kernel, found.kernel
    )


# ---- against training in Keras


def noisy(n=240):
    x = whitened(n, seed=5) * np.array([1, 2, 0.5, 3, 1, 1]) + 0.5
    return x.astype("float32"), labels(x, seed=6)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="arrays, and 10 s of training for each head"
)
@pytest.mark.parametrize(
    ("head", "of"),
    [
        (heads.Classification(3, dropout=0.2), lambda y: y),
        (heads.Classification(3, from_logits=True), lambda y: y),
        (heads.Classification(1), lambda y: y > 0),
        (heads.Classification(3, multi_label=True), lambda y: np.eye(3)[y][:, ::-1]),
        (heads.Regression(mean=40.0, std=20.0), lambda y: 40.0 + 20.0 * y),
        (heads.Regression(2), lambda y: np.stack([y, 1 - 2 * y], 1)),
    ],
)
def test_the_loss_is_no_higher_than_after_long_training(head, of):
    x, y = noisy()
    y = np.asarray(of(y), "float32")
    given = keras.Input((WIDTH,))
    model = keras.Model(given, head(given))
    arguments = head.compile_arguments()
    model.compile(keras.optimizers.Adam(0.03), **arguments)
    first = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    model.fit(x, y, epochs=60, batch_size=240, verbose=0)
    model.optimizer.learning_rate = 0.003
    model.fit(x, y, epochs=60, batch_size=240, verbose=0)
    trained = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert trained < first
    found = solvable(model, arguments["loss"])
    solve(found, x, y, grid=[1e-6]).put(found)
    solved = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    assert solved <= trained + 1e-6


def test_the_solution_is_a_copy():
    x, y = noisy()
    model = suffix(3, "softmax")
    found = solvable(model, "sparse_categorical_crossentropy")
    solution = solve(found, x, y, grid=[1.0])
    solution.put(found)
    before = solution.kernel.copy()
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(solution.kernel, before)
    assert not np.array_equal(value(found.layer.kernel), before)
    wrong = solvable(suffix(4, "softmax"), "sparse_categorical_crossentropy")
    kept = value(wrong.layer.kernel)
    with pytest.raises(ValueError, match="solve for this layer"):
        solution.put(wrong)
    np.testing.assert_array_equal(value(wrong.layer.kernel), kept)


# ---- the choice of the penalty


def test_the_penalty_of_the_least_validation_loss_is_chosen():
    x = np.random.default_rng(8).normal(size=(60, WIDTH)).astype("float32")
    y = labels(x, seed=9)
    a, b = slice(0, 30), slice(30, None)
    model = suffix(3)
    # From probabilities Keras clips the loss, on some backends.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss)
    found = solvable(model, loss)
    solution = solve(found, x[a], y[a], validation=(x[b], y[b]))
    expected = []
    for l2 in solver.GRID:
        solve(found, x[a], y[a], grid=[l2]).put(found)
        expected.append(model.evaluate(x[b], y[b], verbose=0))
    assert [s[0] for s in solution.scores] == sorted(solver.GRID, reverse=True)
    assert [s[1] for s in solution.scores] == pytest.approx(expected, rel=2e-2)
    assert solution.l2 == solver.GRID[int(np.argmin(expected))]
    assert solution.l2 not in (solver.GRID[0], solver.GRID[-1])
    assert solution.folds == 0
    assert "on validation data, best of 7" in str(solution)
    solution.put(found)
    assert model.evaluate(x[b], y[b], verbose=0) == pytest.approx(min(expected), rel=1e-3)


def test_without_validation_data_it_is_cross_validated():
    x = np.random.default_rng(8).normal(size=(60, WIDTH))
    y = labels(x, seed=9)
    for task, given, units in (
        ("classification", y, 3),
        ("binary", y > 0, 1),
        ("multi_label", np.eye(3)[y], 3),
        ("regression", x @ np.ones(WIDTH) + np.random.default_rng(0).normal(size=60), 1),
    ):
        solution = solve(probe(task, units), x, given)
        assert solution.folds == 5
        assert solution.l2 == min(solution.scores, key=lambda s: s[1])[0]
        assert solution.scores[0][1] > min(s[1] for s in solution.scores)
        again = solve(probe(task, units), x, given)
        assert again.scores == solution.scores
        assert "5 folds" in str(solution)
    # Noise has nothing to learn: the strongest penalty.
    noise = solve(probe("classification"), x, np.random.default_rng(1).integers(0, 3, 60))
    assert noise.l2 >= 100


def test_folds_fall_with_the_examples_of_the_least_class():
    x = whitened(20)
    for counts, folds in (([10, 7, 3], 3), ([10, 8, 2], 2), ([10, 9, 1], 5), ([17, 2, 1], 2)):
        y = np.repeat(np.arange(3), counts)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert solve(probe("classification"), x, y).folds == folds
    one = solve(probe("classification"), x[:3], np.arange(3))
    assert (one.folds, one.scores, one.l2) == (0, (), 10.0)
    assert "the middle of the grid" in str(one)
    assert (softmax(x[:3] @ one.kernel + one.bias).argmax(1) == np.arange(3)).all()


def test_what_does_not_converge_is_said_and_does_not_warn(monkeypatch):
    monkeypatch.setattr(solver, "_STEPS", 2)
    x, y = noisy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = solve(probe("classification"), x, y)
    assert not solution.converged
    assert "not converged after 2 iterations" in str(solution)


# ---- classes and labels that are not there


def test_a_class_without_examples_is_improbable_wherever_the_features_lie():
    x, y = noisy()
    y = np.array([0, 3, 4])[y]
    model = suffix(5, "softmax")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    found = solvable(model, "sparse_categorical_crossentropy")
    solution = solve(found, x, y, validation=(x[::2], np.where(y == 3, 1, y)[::2]))
    assert np.isfinite([s[1] for s in solution.scores]).all()
    assert max(s[1] for s in solution.scores) < 2  # examples of the class 1 are not scored
    solution.put(found)
    for scale in (1, -1, 1000, -1000):
        p = model.predict(scale * x, verbose=0)
        assert np.isfinite(p).all()
        assert p[:, [1, 2]].max() < 1e-12
    without = solve(probe("classification"), x, np.searchsorted([0, 3, 4], y), grid=[solution.l2])
    np.testing.assert_allclose(
        model.predict(x, verbose=0)[:, [0, 3, 4]],
        softmax(x @ without.kernel + without.bias),
        atol=1e-5,
    )
    assert np.isfinite(model.evaluate(x, np.full(len(x), 1), verbose=0)).all()


def test_labels_that_are_all_alike():
    x = whitened(20)
    one = solve(probe("classification"), x, np.full(20, 1))
    assert one.bias.argmax() == 1
    assert not one.kernel.any()
    yes = solve(probe("binary", 1), x, np.ones(20))
    assert yes.bias[0] == 30
    several = np.stack([np.zeros(20), x[:, 0] > 0, np.ones(20)], axis=1)
    mixed = solve(probe("multi_label"), x, several, grid=[1.0])
    alone = solve(probe("binary", 1), x, several[:, 1], grid=[1.0])
    assert mixed.bias[[0, 2]].tolist() == [-30, 30]
    np.testing.assert_allclose(mixed.kernel[:, 1], alone.kernel[:, 0], atol=1e-6)


@pytest.mark.parametrize("task", ["classification", "binary", "multi_label", "regression"])
def test_missing_labels_are_left_out(task):
    x = whitened(80)
    y = labels(x)
    units = {"binary": 1, "regression": 2}.get(task, 3)
    given = {
        "classification": y,
        "binary": (y > 0).astype(float),
        "multi_label": np.eye(3)[y],
        "regression": np.stack([y, -y], 1).astype(float),
    }[task]
    model = suffix(units, {"classification": "softmax", "regression": None}.get(task, "sigmoid"))
    plain = {
        "classification": keras.losses.SparseCategoricalCrossentropy(),
        "regression": keras.losses.MeanSquaredError(),
    }.get(task, keras.losses.BinaryCrossentropy())
    known = np.arange(80) % 3 > 0
    holes = given.astype("float64").copy()
    holes[~known] = np.nan if task == "regression" else -1
    found = solvable(model, {"a": KnownLoss(plain, task)})
    assert found.missing
    solution = solve(found, x, holes, grid=[1.0])
    complete = solve(solvable(model, plain), x[known], given[known], grid=[1.0])
    np.testing.assert_allclose(solution.kernel, complete.kernel, atol=1e-4)
    np.testing.assert_allclose(solution.bias, complete.bias, atol=1e-4)
    assert solve(found, x, holes).folds == 5
    with pytest.raises(ValueError, match="no example has a label"):
        solve(found, x, np.full_like(holes, np.nan))


def test_single_labels_of_several_may_be_missing():
    x = whitened(80)
    y = np.eye(3)[labels(x)]
    y[:40, 0] = -1
    found = solvable(
        suffix(3, "sigmoid"), KnownLoss(keras.losses.BinaryCrossentropy(), "multi_label")
    )
    both = solve(found, x, y, grid=[1.0])
    half = solve(probe("binary", 1), x[40:], y[40:, 0], grid=[1.0])
    # Centred and scaled on other rows, the penalty differs a little.
    np.testing.assert_allclose(both.kernel[:, 0], half.kernel[:, 0], atol=0.2)
    whole = solve(probe("binary", 1), x, y[:, 1], grid=[1.0])
    np.testing.assert_allclose(both.kernel[:, 1], whole.kernel[:, 0], atol=0.2)


def test_an_ignored_class_and_class_weights_of_the_loss_count():
    x = whitened(80)
    y = labels(x)
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=2)
    found = solve(solvable(suffix(3, "softmax"), ignoring), x, y, grid=[1.0])
    rows = y < 2
    plain = solve(probe("classification"), x[rows], y[rows], grid=[1.0])
    np.testing.assert_allclose(found.kernel, plain.kernel, atol=1e-4)
    heavy = losses.adjusted("sparse_categorical_crossentropy", class_weight=[1.0, 2.0, 4.0])
    found = solve(solvable(suffix(3, "softmax"), heavy), x, y, grid=[1.0])
    plain = solve(probe("classification"), x, y, sample_weight=2.0**y, grid=[1.0])
    np.testing.assert_array_equal(found.kernel, plain.kernel)
    heavy = losses.adjusted("binary_crossentropy", class_weight=[1.0, 3.0])
    found = solve(solvable(suffix(1, "sigmoid"), heavy), x, y > 0, grid=[1.0])
    plain = solve(probe("binary", 1), x, y > 0, sample_weight=1 + 2.0 * (y > 0), grid=[1.0])
    np.testing.assert_array_equal(found.kernel, plain.kernel)


# ---- refusals


def head_model(head):
    given = keras.Input((WIDTH,))
    return keras.Model(given, head(given)), head.loss


def built(*more, **options):
    return keras.Sequential(
        [keras.Input((WIDTH,)), *more, layers.Dense(3, activation="softmax", name="d", **options)]
    )


def frozen():
    model = built()
    model.get_layer("d").trainable = False
    return model


def adapted():
    model = built()
    model.get_layer("d").enable_lora(2)
    return model


SPARSE = "sparse_categorical_crossentropy"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            lambda: head_model(heads.Classification(3, hidden=[4])),
            "hidden_1.*without hidden layers",
        ),
        (lambda: head_model(heads.Classification(3, normalization="batch")), "normalization"),
        (lambda: head_model(heads.Classification(3, feature_noise=0.1)), "feature_noise="),
        (
            lambda: head_model(heads.Classification(3, feature_brightness=0.1)),
            "feature_brightness=: replace the head by one without, or leave solver= out to train",
        ),
        (lambda: head_model(heads.Ordinal(3)), "one dense layer that learns; found"),
        (
            lambda: head_model(
                heads.Multi({"a": heads.Classification(3), "b": heads.Regression()})
            ),
            "one dense layer",
        ),
        (lambda: head_model(heads.Regression(loss="mae")), "MeanAbsoluteError: compile with one"),
        (lambda: (built(layers.ReLU(name="r")), SPARSE), r"'r' \(ReLU\) before"),
        (lambda: (built(kernel_constraint="max_norm"), SPARSE), "kernel_constraint.*leave solver="),
        (lambda: (frozen(), SPARSE), "kernel and bias is frozen: thaw it"),
        (lambda: (adapted(), SPARSE), "LoRA|frozen"),
        (lambda: (built(), None), "compile it with one"),
        (
            lambda: (built(), losses.adjusted(SPARSE, label_smoothing=0.1)),
            "label_smoothing=0.1: compile with label_smoothing=0",
        ),
        (
            lambda: (built(), keras.losses.CategoricalCrossentropy(label_smoothing=0.2)),
            "label_smoothing=0.2",
        ),
        (
            lambda: (built(), keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
            r"compile with SparseCategoricalCrossentropy\(from_logits=False\)",
        ),
        (lambda: (suffix(3), SPARSE), r"the model's is linear: .*\(from_logits=True\)"),
        (lambda: (suffix(3, "sigmoid"), SPARSE), "end the model in softmax"),
        (lambda: (suffix(3, "relu"), "mse"), "the model's is relu: end the model in linear"),
        (lambda: (built(), "categorical_focal_crossentropy"), "leave solver= out to train it"),
        (lambda: (suffix(1, "softmax"), SPARSE), "use BinaryCrossentropy"),
        (
            lambda: (
                keras.Sequential([keras.Input((4, WIDTH)), layers.Dense(3, activation="softmax")]),
                SPARSE,
            ),
            r"\(None, 4, 3\): pool or flatten",
        ),
    ],
)
def test_what_cannot_be_solved_names_the_fix(case, message):
    with pytest.raises(ValueError, match=message) as raised:
        solvable(*case())
    assert "\n" not in str(raised.value)


X = whitened(10)


@pytest.mark.parametrize(
    ("task", "call", "message"),
    [
        ("classification", {"y": np.full(10, 3)}, "integers from 0 to 2; given 3"),
        ("classification", {"y": np.full(10, 0.5)}, r"given 0\.5"),
        ("classification", {"y": np.zeros((10, 3))}, r"shape \(examples, 1\) or \(examples,\)"),
        ("classification", {"y": np.zeros(9, int)}, "10 rows of features and 9 of labels"),
        ("classification", {"y": np.array(["a"] * 10)}, "labels are numbers"),
        ("one-hot", {"y": np.full((10, 3), 1 / 3)}, "one 1 a row"),
        ("multi_label", {"y": np.full((10, 3), 0.3)}, r"0 or 1; given 0\.3: leave solver="),
        ("regression", {"y": np.full((10, 3), np.nan)}, "drop the rows"),
        ("classification", {"x": X[:, :4]}, r"\(examples, 6\); given \(10, 4\)"),
        ("classification", {"x": np.full_like(X, np.inf)}, "NaN or infinity"),
        ("classification", {"sample_weight": np.full(10, -1)}, "none below 0"),
        ("classification", {"sample_weight": np.zeros(10)}, "a weight above 0"),
        ("classification", {"grid": [0.0, 1.0]}, "penalties above 0"),
        ("classification", {"grid": []}, "penalties above 0"),
        ("classification", {"validation": X}, "validation is features and labels"),
    ],
)
def test_data_that_do_not_fit_name_the_fix(task, call, message):
    with pytest.raises(ValueError, match=message) as raised:
        solve(probe(task), **{"x": X, "y": np.arange(10) % 3, **call})
    assert "\n" not in str(raised.value)
