import keras
import numpy as np
import pytest
from conftest import chain, classifier, images, moved, residual, snapshot, value

import finetune_keras as ftk
from finetune_keras import HeadError, build, describe, heads, load, record, replace_head, select

layers = keras.layers


def built(**kwargs):
    base = ftk.backbone(residual(), preprocessing=layers.Rescaling(1 / 127.5, -1))
    augment = layers.RandomFlip("horizontal", seed=1)
    return build(base, heads.Classification(3), augment=augment, **kwargs)


def test_the_backbone_goes_on_as_it_was_tuned_and_all_before_it_is_shared():
    old = built(learning_rate=1e-2)
    old.fit(*images(), epochs=2, verbose=0)
    before = snapshot(old)
    new = replace_head(old, heads.Classification(5))
    assert moved(before, old) == set()
    assert new.output_shape == (None, 5)
    assert [x.name for x in new.layers][:-2] == [x.name for x in old.layers][:-2]
    assert new.get_layer("residual") is old.get_layer("residual")
    assert record.read(new).origin == record.read(old).origin
    assert new is not old
    features = [keras.Model(m.inputs, m.get_layer("ftk_head_pool").output) for m in (old, new)]
    x, _ = images()
    np.testing.assert_array_equal(*(f.predict(x, verbose=0) for f in features))


def test_both_models_train_by_turns_on_one_backbone():
    old = built(learning_rate=1e-2)
    x, y = images()
    old.fit(x, y, verbose=0)
    new = replace_head(old, heads.Regression(), learning_rate=1e-2)
    before = snapshot(new)
    new.fit(x, y, verbose=0)
    assert "residual/stem_conv/kernel" in moved(before, new)
    old.fit(x, y, verbose=0)
    new.fit(x, y, verbose=0)
    assert np.isfinite(new.predict(x, verbose=0)).all()


def test_flags_stay_by_layer_and_by_variable():
    old = built()
    ftk.freeze(old, select.named("block1_conv1/kernel") | select.first(2))
    flags = {u.path: u.variable.trainable for u in ftk.graph.opened(old).units}
    new = replace_head(old, heads.Classification(2))
    after = {u.path: u.variable.trainable for u in ftk.graph.opened(new).units}
    backbone = {p for p in flags if p.startswith("residual/")}
    assert {p: flags[p] for p in backbone} == {p: after[p] for p in backbone}
    assert not after["residual/block1_conv1/kernel"]
    assert after["residual/block1_conv1/bias"]
    assert after["ftk_head_output/kernel"]


def test_freeze_and_a_failure_leaves_everything_as_it_was():
    old = built()
    flags = [v.trainable for v in old.weights]
    with pytest.raises(ValueError, match="nothing would learn"):
        replace_head(old, heads.Classification(2), freeze=select.everything())
    assert [v.trainable for v in old.weights] == flags
    new = replace_head(old, heads.Classification(2), freeze=select.backbone())
    assert len(new.trainable_variables) == 2


def test_the_optimizer_is_fresh_and_of_the_same_kind():
    old = built(optimizer=keras.optimizers.SGD(0.05, momentum=0.7))
    old.fit(*images(), verbose=0)
    new = replace_head(old, heads.Classification(2))
    assert isinstance(new.optimizer, keras.optimizers.SGD)
    assert new.optimizer is not old.optimizer
    assert new.optimizer.momentum == 0.7
    assert float(new.optimizer.learning_rate) == pytest.approx(0.05)
    assert int(value(new.optimizer.iterations)) == 0
    given = replace_head(old, heads.Classification(2), optimizer="adam", learning_rate=0.3)
    assert isinstance(given.optimizer, keras.optimizers.Adam)
    assert float(given.optimizer.learning_rate) == pytest.approx(0.3)


def test_an_optimizer_that_was_not_used_yet_is_not_taken_away():
    old = classifier()
    own = keras.optimizers.Adam(1e-3)
    old.compile(own, "sparse_categorical_crossentropy", run_eagerly=True)
    new = replace_head(old, heads.Classification(3))
    assert new.optimizer is not own
    assert not own.built
    assert new.run_eagerly


def test_a_default_rate_follows_what_learns_and_a_schedule_starts_again():
    old = built()
    assert float(old.optimizer.learning_rate) == pytest.approx(1e-5)
    frozen = replace_head(old, heads.Classification(2), freeze=select.backbone())
    assert float(frozen.optimizer.learning_rate) == pytest.approx(1e-3)
    old = built(learning_rate=keras.optimizers.schedules.CosineDecay(1e-2, 4))
    old.fit(*images(), epochs=4, verbose=0)
    new = replace_head(old, heads.Classification(2))
    assert float(value(new.optimizer.learning_rate)) == pytest.approx(1e-2)


def pooled():
    """Not nested, with a head of two dense layers."""
    x = inputs = keras.Input((16, 16, 3))
    x = residual().call(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(7, activation="relu", name="wide")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="flat")


@pytest.mark.parametrize(
    ("make", "nested"), [(classifier, "inner"), (pooled, "flat"), (chain, "chain")]
)
def test_any_model_whose_head_is_found_can_change_it(make, nested):
    old = make()
    gone = {r.name for r in describe(old).rows if r.part == "head"}
    assert gone
    new = replace_head(old, heads.Classification(4))
    paths = {u.path for u in ftk.graph.opened(new).units}
    assert not any(set(p.split("/")) & gone for p in paths)
    assert any(p.startswith(f"{nested}/") for p in paths)
    assert isinstance(new.get_layer(nested), type(old) if nested == old.name else keras.Model)
    kept = {id(u.variable) for u in ftk.graph.opened(new).units if "ftk_head" not in u.path}
    assert kept <= {id(v) for v in old.weights}
    assert [r.name for r in describe(new).rows if r.part == "head"] == ["ftk_head_output"]
    x = np.zeros((2, *new.input_shape[1:]), "float32")
    new.fit(x, np.array([0, 3]), verbose=0)


def test_heads_of_several_outputs_come_and_go(tmp_path):
    multi = heads.Multi({"kind": heads.Classification(3), "size": heads.Regression()})
    old = built()
    two = replace_head(old, multi, learning_rate=1e-3)
    x, y = images()
    two.fit(x, {"kind": y, "size": y.astype("float32")}, verbose=0)
    one = replace_head(two, heads.Ordinal(3))
    one.fit(x, y, verbose=0)
    assert not any("kind" in layer.name for layer in one.layers)
    one.save(tmp_path / "one.keras")
    again = load(tmp_path / "one.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), one.predict(x, verbose=0), atol=1e-6)
    cut = ftk.backbone(two)
    assert cut.network.output_shape == (None, 8, 8, 8)


def test_bad_input_names_the_fix():
    with pytest.raises(HeadError, match=r"no head found.*build\(model, head\)"):
        replace_head(residual(), heads.Classification(3))
    with pytest.raises(TypeError, match=r"takes a head such as heads.Classification\(10\)"):
        replace_head(built(), {"a": 1})
    with pytest.raises(TypeError, match=r"takes a keras.Model; given a str"):
        replace_head("resnet50", heads.Classification(3))


def test_what_a_sequential_model_does_first_is_shared():
    inner = residual()
    old = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(1 / 255, name="scaled"),
            inner,
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    new = replace_head(old, heads.Classification(2), freeze=select.first(2))
    assert [x.name for x in new.layers][1:4] == ["scaled", "residual", "ftk_head_pool"]
    assert new.get_layer("residual") is inner
    assert not inner.get_layer("stem_conv").trainable
    assert inner.get_layer("block1_conv1").trainable
