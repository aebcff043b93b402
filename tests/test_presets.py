"""Presets of KerasHub, checkpoints of Hugging Face and timm."""

import json
import os
import re
import shutil
import warnings

import checkpoints
import keras
import numpy as np
import pytest
import zoo
from conftest import moved, snapshot, value
from networks import CUTS

import finetune_keras as ftk
from finetune_keras import WeightsError, backbone, graph, heads, select
from finetune_keras.backbones import presets

# Tracing for a step or two takes longer than these.
EAGERLY = keras.backend.backend() == "tensorflow"
TEXTS = ["a great film", "the play was poor", "very good", "dull"]


@pytest.fixture(autouse=True)
def _quiet():
    """A network saved without its preprocessor is warned of; tests of that look for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"nothing is known of|the (image|tok)|.*preproc")
        yield


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folder, checkpoints.bert_preset(folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    return folder, *checkpoints.resnet_preset(folder)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("hugging_face")
    return folder, checkpoints.transformers_bert(folder)


def tokens(strings=TEXTS, length=checkpoints.LENGTH):
    import keras_hub

    tokenizer = checkpoints.bert_tokenizer()
    made = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=length)
    return made(strings)


def same(found, expected, to=1e-5):
    np.testing.assert_allclose(value(found), value(expected), atol=to, rtol=to)


# On JAX each new shape is compiled.
FAST = ("ResNet", "ViT", "BERT", "GPT-2", "HGNetV2", "Whisper") if EAGERLY else ("BERT",)
costly = pytest.mark.slow if not EAGERLY else lambda test: test


@pytest.mark.parametrize(
    "family",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in zoo.KERAS_HUB],
)
def test_every_family_gives_what_its_backbone_does(family, tmp_path):
    whole = checkpoints.randomized(zoo.KERAS_HUB[family]())
    whole.save_to_preset(str(tmp_path))
    base = backbone(tmp_path)
    direct = backbone(whole, cut_at="sequence_output" if family == "BERT" else CUTS.get(family))
    rng = np.random.default_rng(0)

    def one(t):
        shape = (2, *(n or 6 for n in t.shape[1:]))
        top = 49 if "token" in t.name else 2
        drawn = np.ones(shape) if "mask" in t.name else rng.uniform(0, top, shape)
        return drawn.astype(t.dtype)

    x = keras.tree.map_structure(one, base.inputs())
    same(base.model(x, training=False), direct.model(x, training=False))
    assert len(base.network.inputs) == len(direct.network.inputs)
    assert [len(b.units) for b in base.blocks] == [len(b.units) for b in direct.blocks]
    assert len(base.blocks) > 1
    assert not base.preprocessing
    assert base.loaded.random == ()


def test_strings_to_predictions(bert, tmp_path):
    tf = pytest.importorskip("tensorflow")
    folder, whole = bert
    base = backbone(folder, sequence_length=8)
    same(
        base.model(base.preprocessor(TEXTS), training=False),
        whole(tokens(length=8), training=False)["sequence_output"],
    )
    data = tf.data.Dataset.from_tensor_slices((TEXTS, [1, 0, 1, 0])).batch(4)
    data = data.map(lambda x, y: (base.preprocessor(x), y))
    head = heads.Classification(class_names=["bad", "good"])
    model = ftk.build(base, head, freeze=select.blocks(slice(0, 2)), learning_rate=0.02)
    ftk.compile(model, run_eagerly=EAGERLY)
    before = snapshot(model)
    model.fit(data, verbose=0)
    changed = moved(before, model)
    assert any("transformer_layer_1" in p for p in changed)
    assert not any("embedding" in p or "transformer_layer_0" in p for p in changed)
    path = tmp_path / "model.keras"
    model.save(path)
    again = ftk.load(path)
    found = ftk.preprocessor(again)
    assert found.sequence_length == 8
    moved_to = shutil.copytree(folder, tmp_path / "moved")
    assert ftk.preprocessor(again, source=moved_to, sequence_length=5).sequence_length == 5
    with pytest.raises(ValueError, match="there is no preset 'gone', which .* source= its folder"):
        ftk.preprocessor(again, source="gone")
    expected = model.predict(base.preprocessor(TEXTS), verbose=0)
    same(again.predict(found(TEXTS), verbose=0), expected)
    assert {p[0].name for p in ftk.predict(again, found(TEXTS))} <= {"bad", "good"}


def test_in_tf_data_tokens_are_those_of_a_list(bert):
    tf = pytest.importorskip("tensorflow")
    base = backbone(bert[0])
    data = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4).map(base.preprocessor)
    (mapped,) = data.as_numpy_iterator()
    for name, found in base.preprocessor(TEXTS).items():
        np.testing.assert_array_equal(mapped[name], value(found))
    assert base.preprocessor.sequence_length == checkpoints.LENGTH  # not the 512 of KerasHub


def test_pixels_are_scaled_in_the_graph(resnet):
    folder, whole, converter = resnet
    base = backbone(folder)
    images = np.random.default_rng(0).uniform(0, 255, (2, 96, 70, 3)).astype("float32")
    expected = whole(converter(images), training=False)
    assert base.model.input_shape == (None, None, None, 3)
    same(base.model(base.preprocessor(images), training=False), expected)
    # Of another size the pixels are scaled alike.
    small = images[:, :32, :32]
    scaled = small * np.array(checkpoints.SCALE) + np.array(checkpoints.OFFSET)
    same(base.model(small, training=False), whole(scaled, training=False), 1e-4)
    assert "trained at 48 x 40" in base.source
    bare = backbone(folder, preprocessing=None)
    same(bare.model(scaled, training=False), whole(scaled, training=False))


def test_images_of_the_size_that_is_asked_for(resnet):
    base = backbone(resnet[0], input_shape=(32, 24, 3))
    assert base.model.input_shape == (None, 32, 24, 3)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    assert base.preprocessor(images).shape == (2, 32, 24, 3)
    same(
        base.model(images[:, :32, :24], training=False),
        backbone(resnet[0]).model(images[:, :32, :24], training=False),
    )
    model = ftk.build(base, heads.Classification(2), freeze=select.backbone())
    assert "trained at 48 x 40" in ftk.describe(model).origin
    assert ftk.preprocessor(model)(images).shape == (2, 32, 24, 3)
    grey = backbone(resnet[0], input_shape=(32, 24, 1), in_channels=1)
    assert grey.model.input_shape == (None, 32, 24, 1)
    with pytest.raises(WeightsError, match="pass in_channels=1"):
        backbone(resnet[0], input_shape=(32, 24, 1))


@pytest.mark.slow
def test_every_efficientnet_takes_a_shape(tmp_path):
    zoo._efficientnet().save_to_preset(str(tmp_path))
    base = backbone(tmp_path, input_shape=(48, 48, 3))
    assert base.model.input_shape == (None, 48, 48, 3)
    assert base.preprocessor is None


@costly
def test_position_embeddings_keep_their_size(tmp_path):
    zoo._vit().save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match=r"is for images of \(32, 32, 3\) and cannot take") as e:
        backbone(tmp_path, input_shape=(64, 64, 3))
    assert "\n" not in str(e.value)


def test_random_weights_and_other_dtypes(bert, resnet):
    base = backbone(bert[0], weights=None)
    assert not base.loaded.loaded
    kernel = next(w for w in base.network.weights if "query/kernel" in w.path)
    theirs = next(w for w in bert[1].weights if "query/kernel" in w.path)
    assert kernel.shape == theirs.shape
    assert not np.allclose(value(kernel), value(theirs))
    half = backbone(bert[0], dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(half.model.output.dtype) == "bfloat16"
    assert {w.dtype for w in half.network.weights} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    pixels = backbone(resnet[0], dtype="mixed_bfloat16", input_shape=(32, 32, 3))
    assert pixels.preprocessing[0].compute_dtype == "float32"


def test_options_go_to_the_constructor(bert):
    base = backbone(bert[0], dropout=0.25)
    layers = {layer.name: layer for _, layer in graph.opened(base.network).layers}
    assert layers["transformer_layer_0"].dropout == 0.25
    with pytest.raises(TypeError, match=r"takes no dropuot=; did you mean 'dropout'\?"):
        backbone(bert[0], dropuot=0.25)


def test_features_are_the_sequence_unless_another_output_is_named(bert):
    assert backbone(bert[0]).model.output_shape == (None, None, 8)
    assert backbone(bert[0]).dropped == ("pooled_dense",)
    assert backbone(bert[0], cut_at="pooled_output").model.output_shape == (None, 8)
    assert len(backbone(bert[0], cut_at="transformer_layer_0").blocks) == 2
    with pytest.raises(ftk.SelectionError, match="'pooled_output'"):
        backbone(bert[0], cut_at="pooled")


def test_checkpoint_of_hugging_face(hugging_face):
    folder, whole = hugging_face
    base = backbone(str(folder))
    x = tokens()
    same(base.model(x, training=False), whole(x, training=False)["sequence_output"])
    for name, found in base.preprocessor(TEXTS).items():
        np.testing.assert_array_equal(value(found), value(x[name]))
    assert [b.name for b in base.blocks] == [
        "embeddings_dropout",
        "transformer_layer_0",
        "transformer_layer_1",
    ]
    pooled = backbone(folder, cut_at="pooled_output")
    same(pooled.model(x, training=False), whole(x, training=False)["pooled_output"])


@costly
def test_checkpoint_of_timm(tmp_path):
    pytest.importorskip("safetensors")
    whole = checkpoints.timm_resnet18(tmp_path)
    base = backbone(tmp_path, input_shape=(64, 64, 3))
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = value(whole((images / 255 - mean) / std, training=False))
    found = value(base.model(images, training=False))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert "trained at 224 x 224" in base.source
    assert len(base.blocks) == 9


@costly
def test_pixels_of_a_vit_of_hugging_face(tmp_path):
    """KerasHub reads no image processor for it."""
    config = {
        "model_type": "vit",
        "image_size": 32,
        "patch_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="nothing is known of how .* scales pixels"):
        backbone(tmp_path, weights=None)
    said = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.2],
        "size": {"height": 32, "width": 32},
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    base = backbone(tmp_path, weights=None)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    scaled = (images / 255 - np.array(said["image_mean"])) / np.array(said["image_std"])
    same(base.model(images, training=False), base.network(scaled, training=False))
    assert base.preprocessor.interpolation == "bicubic"
    assert base.preprocessor(images[:, :20, :20]).shape == (2, 32, 32, 3)


@costly
def test_strings_for_a_decoder_and_for_an_encoder(tmp_path):
    import keras_hub

    words = ["a", "b", "Ġ", "ab", "Ġa", "<|endoftext|>", "Ġb", "Ġab"]
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary={w: i for i, w in enumerate(words)}, merges=["a b", "Ġ a", "Ġ b", "Ġa b"]
    )
    zoo.KERAS_HUB["GPT-2"]().save_to_preset(str(tmp_path))
    tokenizer.save_to_preset(str(tmp_path))
    base = backbone(tmp_path, sequence_length=6)
    x = base.preprocessor(["ab a", "b"])
    assert {k: tuple(v.shape) for k, v in x.items()} == {
        "token_ids": (2, 6),
        "padding_mask": (2, 6),
    }
    np.testing.assert_array_equal(value(x["padding_mask"]).sum(1), [3, 2])
    assert base.model(x, training=False).shape == (2, 6, 8)


@pytest.mark.slow
def test_strings_for_a_t5(tmp_path):
    import io

    import keras_hub

    spm = pytest.importorskip("sentencepiece")
    proto = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=proto,
        vocab_size=30,
        model_type="WORD",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
    )
    zoo.KERAS_HUB["T5"]().save_to_preset(str(tmp_path))
    keras_hub.models.T5Tokenizer(proto=proto.getvalue()).save_to_preset(str(tmp_path))
    base = backbone(tmp_path, sequence_length=7)
    x = base.preprocessor(TEXTS)
    assert sorted(x) == ["encoder_padding_mask", "encoder_token_ids"]
    assert base.model(x, training=False).shape == (4, 7, 8)


def test_waves(tmp_path):
    import keras_hub

    whole = zoo.KERAS_HUB["Whisper"]()
    whole.save_to_preset(str(tmp_path))
    converter = keras_hub.layers.WhisperAudioConverter(
        num_mels=8, sampling_rate=2560, stride=160, max_audio_length=1
    )
    converter.save_to_preset(str(tmp_path))
    base = backbone(tmp_path)
    waves = np.random.default_rng(0).normal(size=(2, 2560)).astype("float32")
    x = {
        "encoder_features": converter(waves),
        "decoder_token_ids": keras.ops.ones((2, 3), "int32"),
        "decoder_padding_mask": keras.ops.ones((2, 3), "int32"),
    }
    expected = whole(x, training=False)["encoder_sequence_output"]
    same(base.model(base.preprocessor(waves), training=False), expected)
    model = ftk.build(base, heads.Classification(2))
    model.compile(loss="sparse_categorical_crossentropy", run_eagerly=EAGERLY)
    assert np.all(np.isfinite(model.train_on_batch(base.preprocessor(waves), np.array([0, 1]))))


def test_names_are_found_without_their_hyphens_and_passed_on(monkeypatch, bert):
    import keras_hub

    asked = []

    def from_preset(preset, load_weights=True, **options):
        asked.append((preset, load_weights, options))
        return checkpoints.bert()

    def nothing(preset):
        raise FileNotFoundError(preset)

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", from_preset)
    monkeypatch.setattr(keras_hub.models.TextClassifierPreprocessor, "from_preset", nothing)
    with pytest.warns(UserWarning, match="the tokenizer of 'hf://me/bert' cannot be read"):
        backbone("hf://me/bert", weights=None)
    with pytest.warns(UserWarning, match="tokenizer"):
        base = backbone("BERT-tiny-en-uncased", dtype="mixed_bfloat16")
    assert asked[0] == ("hf://me/bert", False, {})
    assert asked[1] == ("bert_tiny_en_uncased", True, {"dtype": "mixed_bfloat16"})
    assert base.source.startswith("bert_tiny_en_uncased, KerasHub")


def test_a_folder_in_the_way_of_a_preset_is_the_folder(bert, monkeypatch, tmp_path):
    os.symlink(bert[0], tmp_path / "bert_tiny_en_uncased")
    monkeypatch.chdir(tmp_path)
    assert backbone("bert_tiny_en_uncased").model.output_shape == (None, None, 8)


def test_keras_names_are_known_without_keras_hub(monkeypatch):
    monkeypatch.setattr(presets, "names", lambda: pytest.fail("asked KerasHub"))
    for name in ("ResNet-50", "letters_resnet"):
        with pytest.raises(TypeError, match="takes no alpha="):
            backbone(name, alpha=1)


def test_nearest_names_of_both_kinds():
    with pytest.raises(ValueError, match="did you mean 'resnet50' or"):
        backbone("resnet5")
    with pytest.raises(ValueError, match="did you mean 'bert_"):
        backbone("bert")
    with pytest.raises(ValueError, match="did you mean 'bert_base_en_uncased'"):
        backbone("bert-base-uncased")
    with pytest.raises(ValueError, match="'hf://google-bert/bert-base-uncased'"):
        backbone("google-bert/bert-base-uncased")


def offline(monkeypatch, error):
    import keras_hub

    def from_preset(*_, **__):
        raise error

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", from_preset)


def test_without_a_network(monkeypatch):
    offline(monkeypatch, ConnectionError("HTTPSConnectionPool(host='api.kaggle.com', port=443)"))
    with pytest.raises(WeightsError) as e:
        backbone("bert_tiny_en_uncased")
    said = r"'bert_tiny_en_uncased' cannot be downloaded \(no connection to api.kaggle.com\): .*"
    said += r"kagglehub.model_download\('keras/bert/keras/bert_tiny_en_uncased/\d+'\) .* its path"
    assert re.fullmatch(said, str(e.value))
    offline(monkeypatch, OSError("404 Client Error: no repository me/bert"))
    with pytest.raises(WeightsError, match="KerasHub cannot load 'hf://me/bert': 404"):
        backbone("hf://me/bert")
    offline(monkeypatch, ValueError("Preset hf://me/bert has no config.json."))
    with pytest.raises(WeightsError, match=r"huggingface_hub.snapshot_download\('me/bert'\)"):
        backbone("hf://me/bert")


def config(folder, **found):
    (folder / "config.json").write_text(json.dumps(found))


def unconverted(folder):
    config(folder, model_type="camembert")
    (folder / "model.safetensors").write_bytes(b"")


def other_timm(folder):
    config(folder, architecture="resnest50d")
    (folder / "model.safetensors").write_bytes(b"")


def only_bin(folder):
    config(folder, model_type="bert")
    (folder / "pytorch_model.bin").write_bytes(b"")


def outside(folder):
    config(folder, model_type="bert")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lost_shard(folder):
    config(folder, model_type="bert")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_pooler(folder):
    from safetensors.numpy import load_file

    checkpoints.transformers_bert(folder)
    path = folder / "model.safetensors"
    found = {k: v for k, v in load_file(path).items() if "pooler" not in k}
    checkpoints.write_safetensors(path, found)


def of_layers(number):
    """Weights of another number of layers than the config says, which is two."""

    def make(folder):
        checkpoints.bert_preset(folder)
        checkpoints.bert(num_layers=number).save_weights(folder / "model.weights.h5")

    return make


def said_to_have(**numbers):
    """A checkpoint of Hugging Face whose config was changed."""

    def make(folder):
        checkpoints.transformers_bert(folder)
        found = json.loads((folder / "config.json").read_text())
        config(folder, **{**found, **numbers})

    return make


def diverged(folder):
    network = checkpoints.bert_preset(folder)
    network.get_layer("token_embedding").embeddings.assign(np.full((60, 8), np.nan))
    network.save_weights(folder / "model.weights.h5")


def torn(folder):
    checkpoints.bert_preset(folder, strings=False)
    path = folder / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:2000])


def unpacked(folder):
    import zipfile

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.save(folder.parent / "own.keras")
    zipfile.ZipFile(folder.parent / "own.keras").extractall(folder)


def unregistered(folder):
    config(folder, registered_name="mine>Net", class_name="Net", module="mine", config={})
    (folder / "model.weights.h5").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: (d / "cat.jpg").touch(), r"has cat.jpg; expected a preset of KerasHub"),
        (lambda d: None, r"is empty; expected a preset of KerasHub \(config.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config.json in .* cannot be read"),
        (lambda d: config(d, hidden=3), r"has none of 'registered_name', 'model_type', 'archi"),
        (lambda d: config(d, registered_name="keras_hub>BertBackbone"), "has no model.weights.h5"),
        (unconverted, r"no converter for 'camembert' of Hugging Face in .*; (did|there)"),
        (other_timm, r"no converter for 'resnest50d' of timm in .*; did you mean 'resnet'"),
        (only_bin, r"no model.safetensors; it has config.json, pytorch_model.bin: write it by"),
        (outside, r"index.json in .* names a file outside it: '../secret.safetensors'"),
        (lost_shard, r"has no model-00001-of-00002.safetensors, which its"),
        (no_pooler, r"of another network than its config.json says: .* 'pooler.dense.weight'"),
        (of_layers(3), r"of a deeper network .*: 16 of 55 have no place.*layers/.*_2/.*cut_at="),
        (of_layers(1), r"of another network .* 8 of its layers do not find theirs"),
        (said_to_have(num_hidden_layers=1), r"deeper .*: 16 of 39 .*'bert.encoder.layer.1.att"),
        (said_to_have(num_hidden_layers=3), r"there is no 'encoder.layer.2.attention"),
        (said_to_have(vocab_size=70), r"\(60, 8\) in the file, where the network has \(70, 8\)"),
        (diverged, r"has 480 values that are not finite in '.*token_embedding/embeddings'"),
        (torn, r"KerasHub cannot load"),
        (unpacked, r"holds a model of Keras, as an unpacked .keras file does"),
        (unregistered, r"KerasHub cannot load .*mine>Net"),
    ],
)
def test_folders_that_are_something_else(make, said, tmp_path):
    pytest.importorskip("safetensors")
    make(tmp_path)
    with pytest.raises(WeightsError, match=said) as e:
        backbone(tmp_path)
    assert "\n" not in str(e.value)


def test_what_is_left_over_of_a_checkpoint_is_named(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    checkpoints.transformers_bert(tmp_path)
    path = tmp_path / "model.safetensors"
    more = {"cls.predictions.bias": np.zeros(60, "float32")}
    safetensors.save_file(safetensors.load_file(path) | more, path)
    base = backbone(tmp_path)
    assert base.loaded.skipped == ("cls.predictions.bias",)
    assert "1 skipped" in repr(base)
    assert backbone(tmp_path, weights=None).loaded.skipped == ()


def where_from(caught, begins):
    return [w.filename for w in caught if str(w.message).startswith(begins)]


def test_a_vocabulary_larger_than_the_network_is_named(tmp_path):
    pytest.importorskip("safetensors")
    checkpoints.transformers_bert(tmp_path)
    words = [*checkpoints.SPECIAL, *checkpoints.WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *(f"w{i}" for i in range(46))]))
    with pytest.warns(UserWarning, match="knows 61 tokens and the network 60") as caught:
        backbone(tmp_path)
    assert where_from(caught, "the tokenizer") == [__file__]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *(f"w{i}" for i in range(45))]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__")  # NumPy's, of KerasHub's converter
        backbone(tmp_path)


def test_what_cannot_be_asked_of_a_preset(bert, resnet):
    for call, error, said in [
        (lambda: backbone(bert[0], weights="imagenet"), WeightsError, "takes None, for random"),
        (lambda: backbone(bert[0], input_shape=(32, 32, 3)), TypeError, "takes no images"),
        (lambda: backbone(bert[0], sequence_length=13), ValueError, "from 1 up to 12; given 13"),
        (lambda: backbone(bert[0], sequence_length=0), ValueError, "given 0"),
        (lambda: backbone(resnet[0], sequence_length=8), TypeError, "inputs are not tokens"),
        (lambda: backbone(resnet[0], input_shape=(32, 32)), ValueError, "height, width, channels"),
    ]:
        with pytest.raises(error, match=said) as e:
            call()
        assert "\n" not in str(e.value)


def test_safetensors_that_is_missing(hugging_face, monkeypatch):
    monkeypatch.setattr("finetune_keras._optional.installed", lambda module: False)
    with pytest.raises(ImportError, match=r"pip install 'finetune_keras\[presets\]'"):
        backbone(hugging_face[0])
    backbone(hugging_face[0], weights=None)


def test_a_network_without_its_tokenizer(tmp_path):
    checkpoints.bert_preset(tmp_path, strings=False)
    with pytest.warns(UserWarning, match="the tokenizer of .* cannot be read") as said:
        base = backbone(tmp_path)
    assert base.preprocessor is None
    assert where_from(said, "the tokenizer") == [__file__]
    with pytest.raises(WeightsError, match="leave sequence_length= out"):
        backbone(tmp_path, sequence_length=8)
    model = ftk.build(base, heads.Classification(2))
    with pytest.raises(ValueError, match="has no preprocessor"):
        ftk.preprocessor(model)


def test_the_preprocessor_of_other_models():
    model = ftk.build(backbone("letters_resnet"), heads.Classification(2))
    with pytest.raises(ValueError, match="its backbone is .letters_resnet"):
        ftk.preprocessor(model)
