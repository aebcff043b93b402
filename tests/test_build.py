import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from conftest import classifier, images, moved, residual, same, snapshot

import finetune_keras as ftk
from finetune_keras import HeadError, build, describe, freeze, heads, load, record, select, thaw


def test_the_result_is_a_plain_functional_model_with_the_backbone_as_one_layer():
    base = ftk.backbone("mobilenetv2", weights=None, input_shape=(32, 32, 3), alpha=0.35)
    model = build(base, heads.Classification(4))
    names = [x.name for x in model.layers]
    assert names[1] == "ftk_preprocessing_rescaling"
    assert base.network in model.layers
    assert names[-1] == "ftk_head_output"


@pytest.mark.parametrize(
    ("freeze_", "rate"), [(None, 1e-5), (select.backbone(), 1e-3), (select.first(5), 1e-5)]
)
def test_the_default_rate_follows_from_what_learns(freeze_, rate):
    model = build(residual(), heads.Classification(3), freeze=freeze_)
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    assert isinstance(model.optimizer, keras.optimizers.AdamW)


def test_rates_and_optimizers_that_are_given_are_kept():
    model = build(residual(), heads.Classification(3), optimizer="sgd", learning_rate=0.2)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.2)
    own = keras.optimizers.RMSprop(3e-4, rho=0.8)
    model = build(residual(), heads.Classification(3), optimizer=own)
    assert model.optimizer is own
    assert float(model.optimizer.learning_rate) == pytest.approx(3e-4)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    model = build(residual(), heads.Classification(3), learning_rate=schedule)
    model.fit(*images(), epochs=2, verbose=0)
    assert float(model.optimizer.learning_rate) < 1e-3


def test_freeze_none_leaves_the_flags_as_handed_in():
    own = residual()
    own.get_layer("stem_conv").trainable = False
    model = build(own, heads.Classification(3), learning_rate=1e-2)
    before = snapshot(model)
    model.fit(*images(), verbose=0)
    changed = moved(before, model)
    assert "residual/stem_conv/kernel" not in changed
    assert "residual/block1_conv1/kernel" in changed


def test_augmentation_runs_on_raw_inputs_and_in_training_only():
    seen = keras.layers.RandomFlip("horizontal", seed=1)
    base = ftk.backbone(residual(), preprocessing=keras.layers.Rescaling(1 / 255))
    model = build(base, heads.Classification(3), augment=[seen])
    assert model.layers[1] is seen
    x, y = images()
    same(model(x, training=False), model(x, training=False), atol=0)
    model.fit(x, y, verbose=0)


def test_first_does_not_count_augmentation_in_a_sequential():
    augment = keras.Sequential([keras.layers.RandomFlip(), keras.layers.RandomRotation(0.1)])
    inner = residual()
    model = build(inner, heads.Classification(3), augment=augment, freeze=select.first(2))
    assert not inner.get_layer("stem_conv").trainable
    assert inner.get_layer("stem_bn").trainable
    assert model.layers[1] is augment


def test_augmentation_that_could_not_be_loaded_again_warns():
    class Odd(keras.layers.Layer):
        def __init__(self, amount):
            super().__init__()
            self.amount = amount

        def call(self, x):
            return x

    with pytest.warns(UserWarning, match="Odd cannot be made again"):
        build(residual(), heads.Classification(3), augment=Odd(amount=2))


def test_it_learns_from_raw_images():
    model = build(
        ftk.backbone(residual(), preprocessing=keras.layers.Rescaling(1 / 127.5, -1)),
        heads.Classification(3),
        learning_rate=1e-2,
    )
    x, y = images(30)
    history = model.fit(x, y, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_nothing_global_is_left_changed():
    before = (keras.config.dtype_policy().name, keras.config.floatx(), keras.backend.backend())
    model = build(residual(), heads.Classification(3), freeze=select.backbone())
    thaw(model, select.blocks(0))
    describe(model)
    after = (keras.config.dtype_policy().name, keras.config.floatx(), keras.backend.backend())
    assert after == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda b: build("resnet50", heads.Classification(3)),
            TypeError,
            r"backbone\('resnet50'\)",
        ),
        (lambda b: build(b, 3), TypeError, r"a head such as heads.Classification\(10\); given 3"),
        (
            lambda b: build(b, heads.Classification(3), freeze=select.everything()),
            ValueError,
            "nothing would learn",
        ),
        (
            lambda b: build(b, heads.Classification(3), freeze=select.named("typo")),
            ValueError,
            "matches no variable",
        ),
        (
            lambda b: build(b, heads.Classification(3), freeze="backbone"),
            TypeError,
            "expected a selector",
        ),
        (
            lambda b: build(b, heads.Classification(3), optimizer="adamm"),
            ValueError,
            "did you mean 'adam",
        ),
        (lambda b: build(b, heads.Classification(3), augment="flip"), TypeError, "given 'flip'"),
    ],
)
def test_bad_input_names_the_fix_and_leaves_the_backbone_as_it_was(call, error, message):
    base = residual()
    base.get_layer("stem_conv").trainable = False
    flags = [x.trainable for x in base.layers]
    with pytest.raises(error, match=message) as raised:
        call(base)
    assert "\n" not in str(raised.value)
    assert [x.trainable for x in base.layers] == flags


def test_a_layer_with_a_name_of_the_head_is_a_clash():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, activation="relu", name="ftk_head_mine")(inputs)
    inner = keras.Model(inputs, x, name="inner")
    with pytest.raises(HeadError, match=r"'ftk_head_mine'.*rename it"):
        build(keras.Model(inputs, inner(inputs)), heads.Classification(2))


def test_describe_tells_what_learns_and_at_which_rate():
    model = build(residual(), heads.Classification(3, hidden=[4]), freeze=select.backbone())
    table = describe(model)
    assert [r.name for r in table.rows] == [
        "stem_relu",
        "block1_out",
        "block2_out",
        "ftk_head_hidden_1",
        "ftk_head_output",
    ]
    assert [r.state for r in table.rows] == ["frozen"] * 3 + ["learning"] * 2
    assert table.rows[0].rate is None
    assert table.rows[-1].rate == pytest.approx(1e-3)
    assert table.parameters == model.count_params()
    assert table.learning == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    thaw(model, select.blocks(-1))
    table = describe(model)
    assert table.rows[2].state == "partly"
    assert table.learning == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    as_dict = table.to_dict()
    assert as_dict["rows"][2]["name"] == "block2_out"
    assert as_dict["learning"] == table.learning
    assert "integers from 0 to 2" in str(table)
    assert table._repr_html_().count("<tr>") == 7
    assert "batch normalisations are frozen" in str(table)


def test_describe_notes_normalisations_that_learn():
    model = build(residual(), heads.Classification(3), freeze=select.first(2))
    assert "3 batch normalisations learn" in str(describe(model))


def test_describe_says_what_it_took_as_the_head():
    assert "what follows the nested model 'inner'" in str(describe(classifier()))
    assert "no head found" in str(describe(residual()))


# --- the file ---------------------------------------------------------------------------------


def trained():
    model = build(
        ftk.backbone(residual(), preprocessing=keras.layers.Rescaling(1 / 127.5, -1)),
        heads.Classification(3, hidden=[4], class_names=["a", "b", "ü"]),
        freeze=select.backbone(),
        learning_rate=1e-2,
    )
    x, y = images()
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    thaw(model, select.blocks(slice(-1, None)), learning_rate=1e-3)
    model.fit(x, y, epochs=1, batch_size=4, verbose=0)
    return model, x, y


def test_keras_alone_loads_the_file_in_another_process(tmp_path):
    model, x, _ = trained()
    model.save(tmp_path / "mine.keras")
    np.savez(tmp_path / "x.npz", x=x, p=model.predict(x, verbose=0))
    code = (
        "import sys, keras, numpy as np\n"
        "m = keras.models.load_model('mine.keras', compile=False)\n"
        "d = np.load('x.npz')\n"
        "np.testing.assert_allclose(m.predict(d['x'], verbose=0), d['p'], atol=1e-6)\n"
        "assert not any(n.startswith('finetune_keras') for n in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_load_goes_on_as_if_it_had_never_stopped(tmp_path):
    model, x, y = trained()
    model.save(tmp_path / "mine.keras")
    again = load(tmp_path / "mine.keras")
    assert [v.path.split("/")[-2:] for v in again.trainable_variables] == [
        v.path.split("/")[-2:] for v in model.trainable_variables
    ]
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations)
    for m in (model, again):
        m.fit(x, y, epochs=3, batch_size=4, shuffle=False, verbose=0)
    a, b = snapshot(model), snapshot(again)
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-5, atol=1e-6)
    assert str(describe(again)) == str(describe(model))


def test_class_names_labels_and_origin_travel_also_through_plain_keras(tmp_path):
    model, _, _ = trained()
    model.save(tmp_path / "one.keras")
    keras.models.load_model(tmp_path / "one.keras").save(tmp_path / "two.keras")
    outer_inputs = keras.Input((16, 16, 3))
    outer = keras.Model(outer_inputs, model(outer_inputs))
    for m in (load(tmp_path / "two.keras"), keras.models.clone_model(model), outer):
        found = record.read(m)
        assert found.class_names == ("a", "b", "ü")
        assert found.labels == "integers from 0 to 2, shape (batch,)"
        assert found.origin == "keras.Model 'residual'"
        assert describe(m).class_names == ("a", "b", "ü")


def test_flags_of_single_variables_and_inner_layers_come_back(tmp_path):
    inputs = keras.Input((5, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    body = keras.Model(inputs, keras.layers.Dense(4, name="mix")(y), name="body")
    model = build(body, heads.Classification(2), learning_rate=1e-2)
    freeze(model, select.named("mha/query") | select.named("mix/bias"))
    x = np.random.default_rng(0).normal(size=(8, 5, 8)).astype("float32")
    labels = np.arange(8) % 2
    model.fit(x, labels, epochs=2, verbose=0)
    model.save(tmp_path / "mine.keras")
    again = load(tmp_path / "mine.keras")
    frozen = {"body/mha/query/kernel", "body/mha/query/bias", "body/mix/bias"}
    before = snapshot(again)
    again.fit(x, labels, verbose=0)
    assert moved(before, again) == set(before) - frozen
    assert int(again.optimizer.iterations) == 3
    model.fit(x, labels, verbose=0)
    a, b = snapshot(model), snapshot(again)
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-3, atol=1e-4)


def test_a_thousand_class_names_travel(tmp_path):
    names = [f"Species number {i}, ssp. {i * 7919 % 1000}" for i in range(1000)]
    model = build(residual(), heads.Classification(1000, class_names=names))
    x, y = images()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "mine.keras")
    assert list(record.read(load(tmp_path / "mine.keras")).class_names) == names


def test_a_record_cannot_make_us_inflate_without_bound():
    import base64
    import json
    import zlib

    def with_origin(text):
        fields = {"origin": text, "outputs": [], "frozen": [], "newcomers": []}
        packed = base64.b32encode(zlib.compress(json.dumps(fields).encode()))
        x = keras.Input((2,))
        name = f"ftk_head_record_{packed.decode().rstrip('=')}"
        return record.read(keras.Model(x, keras.layers.Identity(name=name)(x)))

    assert with_origin("small").origin == "small"
    assert with_origin("0" * (64 << 20)) is None


def test_a_file_of_plain_keras_loads_as_keras_would(tmp_path):
    model = classifier()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*images(), verbose=0)
    model.save(tmp_path / "plain.keras")
    again = load(tmp_path / "plain.keras")
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations)
    assert record.read(again) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.keras", "no file .*that folder has .*other.keras"),
        ("torn.keras", "damaged|not whole"),
        ("bad.keras", "not a .keras archive"),
    ],
)
def test_load_names_the_fix(tmp_path, name, message):
    residual().save(tmp_path / "other.keras")
    whole = (tmp_path / "other.keras").read_bytes()
    (tmp_path / "torn.keras").write_bytes(whole[: len(whole) // 2])
    if name == "bad.keras":
        (tmp_path / name).write_text("not a model")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


def test_the_front_page_snippet_runs(tmp_path):
    base = ftk.backbone("resnet50", weights=None, input_shape=(64, 64, 3))
    model = ftk.build(base, heads.Classification(200, hidden=[1024]), freeze=select.backbone())
    x = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3)).astype("uint8")
    y = np.arange(8) * 20
    model.fit(x, y, epochs=1, verbose=0)
    head = list(model.trainable_variables)
    steps = int(model.optimizer.iterations)
    ftk.thaw(model, select.after("conv4_block6_out"))
    assert int(model.optimizer.iterations) == steps
    before = snapshot(model)
    model.fit(x, y, epochs=1, verbose=0)
    changed = {p.split("/")[1] for p in moved(before, model) if p.startswith("resnet50")}
    assert changed == {
        x.name
        for x in base.network.layers
        if x.name.startswith("conv5")
        and "conv" in x.name[5:]
        and x.weights
        and not x.name.endswith("_bn")
    }
    assert len(head) == 4
    model.save(tmp_path / "mine.keras")
    again = keras.models.load_model(tmp_path / "mine.keras", compile=False)
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_a_random_stem_that_is_frozen_is_told_of():
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(32, 32, 3))
    base = ftk.backbone(network, stem="small")
    with pytest.warns(UserWarning, match=r"'conv1_conv'.*at random and frozen.*~select.named"):
        build(base, heads.Classification(2), freeze=select.backbone())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build(
            ftk.backbone(network, stem="small"),
            heads.Classification(2),
            freeze=select.backbone() & ~select.named("conv1_conv"),
        )


def test_flags_come_back_to_networks_that_number_their_layers_anew(tmp_path):
    import zoo

    model = build(zoo.KERAS_HUB["VGG"](), heads.Classification(2), freeze=select.backbone())
    thaw(model, select.blocks(-1))
    model.save(tmp_path / "model.keras")
    again = load(tmp_path / "model.keras")
    assert [v.trainable for v in again.variables] == [v.trainable for v in model.variables]
    assert len(record.read(again).frozen) == len(record.read(model).frozen) > 0
    again.save(tmp_path / "twice.keras")
    twice = load(tmp_path / "twice.keras")
    assert [v.trainable for v in twice.variables] == [v.trainable for v in model.variables]


def test_a_record_from_before_places_is_read_by_its_paths():
    model = build(residual(), heads.Classification(3), freeze=select.backbone())
    units = ftk.graph.opened(model).units
    old = record.Record(frozen=(units[0].path,), newcomers=((3, (units[1].path,)),))
    assert record.placed(old, units) == old
    assert record.placed(record.Record(frozen=("gone/kernel",), places=(2,)), units).frozen == (
        units[2].path,
    )
