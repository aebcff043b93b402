"""Folders as KerasHub, Hugging Face and timm write them, of tiny networks at random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["a", "dull", "film", "good", "great", "play", "poor", "the", "very", "was"]
LENGTH = 12  # of texts, at most
VOCABULARY = 60


def randomized(network: keras.Model) -> keras.Model:
    """With values in all weights that no initializer gives, statistics too."""
    rng = np.random.default_rng(5)
    network.set_weights(
        [
            (
                rng.uniform(0.5, 1.5, w.shape)
                if "variance" in w.path
                else rng.normal(0, 0.1, w.shape)
            )
            for w in network.weights
        ]
    )
    return network


def bert(**options) -> keras.Model:
    import keras_hub

    arguments = {
        "vocabulary_size": VOCABULARY,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "max_sequence_length": LENGTH,
    }
    return randomized(keras_hub.models.BertBackbone(**{**arguments, **options}))


def bert_tokenizer() -> keras.layers.Layer:
    import keras_hub

    return keras_hub.models.BertTokenizer(vocabulary=SPECIAL + WORDS, lowercase=True)


def bert_preset(folder: Path, *, strings: bool = True) -> keras.Model:
    """A preset of KerasHub; gives its network."""
    import keras_hub

    network = bert()
    network.save_to_preset(str(folder))
    if strings:
        made = keras_hub.models.BertTextClassifierPreprocessor(bert_tokenizer())
        made.save_to_preset(str(folder))
    return network


def resnet(**options) -> keras.Model:
    import zoo

    return randomized(zoo._resnet(**{"image_shape": (None, None, 3), **options}))


SCALE, OFFSET = [0.017, 0.018, 0.019], [-2.1, -2.0, -1.8]


def resnet_preset(folder: Path) -> tuple[keras.Model, keras.layers.Layer]:
    """A preset of KerasHub; gives its network and its image converter."""
    import keras_hub

    network = resnet()
    network.save_to_preset(str(folder))
    converter = keras_hub.layers.ResNetImageConverter((48, 40), scale=SCALE, offset=OFFSET)
    converter.save_to_preset(str(folder))
    return network, converter


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file({k: np.ascontiguousarray(v, "float32") for k, v in tensors.items()}, path)


def transformers_bert(folder: Path, *, vocabulary: bool = True) -> keras.Model:
    """A BERT as ``transformers`` writes it; gives the network with these weights."""
    network = bert()
    heads, width = network.num_heads, network.hidden_dim

    def of(layer, name):
        yield f"{name}.weight", layer.gamma
        yield f"{name}.bias", layer.beta

    def dense(layer, name):
        kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel))
        flat = kernel.reshape((width, -1) if kernel.shape[0] == width else (-1, width))
        yield f"{name}.weight", flat.T
        yield f"{name}.bias", np.ravel(keras.ops.convert_to_numpy(layer.bias))

    def tensors() -> Iterator[tuple[str, object]]:
        e = "bert.embeddings"
        get = network.get_layer
        yield f"{e}.word_embeddings.weight", get("token_embedding").embeddings
        yield f"{e}.position_embeddings.weight", get("position_embedding").position_embeddings
        yield f"{e}.token_type_embeddings.weight", get("segment_embedding").embeddings
        yield from of(get("embeddings_layer_norm"), f"{e}.LayerNorm")
        for i in range(network.num_layers):
            block, at = get(f"transformer_layer_{i}"), f"bert.encoder.layer.{i}"
            attention = block._self_attention_layer
            for part in ("query", "key", "value"):
                yield from dense(getattr(attention, f"{part}_dense"), f"{at}.attention.self.{part}")
            yield from dense(attention.output_dense, f"{at}.attention.output.dense")
            yield from of(block._self_attention_layer_norm, f"{at}.attention.output.LayerNorm")
            yield from dense(block._feedforward_intermediate_dense, f"{at}.intermediate.dense")
            yield from dense(block._feedforward_output_dense, f"{at}.output.dense")
            yield from of(block._feedforward_layer_norm, f"{at}.output.LayerNorm")
        yield from dense(get("pooled_dense"), "bert.pooler.dense")

    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": VOCABULARY,
        "num_hidden_layers": network.num_layers,
        "num_attention_heads": heads,
        "hidden_size": width,
        "intermediate_size": network.intermediate_dim,
        "max_position_embeddings": LENGTH,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    found = {k: np.asarray(keras.ops.convert_to_numpy(v)) for k, v in tensors()}
    write_safetensors(folder / "model.safetensors", found)
    if vocabulary:
        (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS))
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return network


def timm_resnet18(folder: Path) -> keras.Model:
    """A ResNet-18 as ``timm`` writes it; gives the network with these weights."""
    import keras_hub

    network = randomized(
        keras_hub.models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 128, 256, 512],
            stackwise_num_blocks=[2, 2, 2, 2],
            stackwise_num_strides=[1, 2, 2, 2],
            block_type="basic_block",
        )
    )
    tensors = {}

    def put(mine: str, theirs: str, norm: str) -> None:
        kernel = keras.ops.convert_to_numpy(network.get_layer(f"{mine}_conv").kernel)
        tensors[f"{theirs}.weight"] = np.transpose(kernel, (3, 2, 0, 1))
        layer = network.get_layer(f"{mine}_bn")
        for name, value in {
            "weight": layer.gamma,
            "bias": layer.beta,
            "running_mean": layer.moving_mean,
            "running_var": layer.moving_variance,
        }.items():
            tensors[f"{norm}.{name}"] = keras.ops.convert_to_numpy(value)

    put("conv1", "conv1", "bn1")
    for stack in range(4):
        for block in range(2):
            mine, theirs = f"stack{stack}_block{block}", f"layer{stack + 1}.{block}"
            if block == 0 and stack > 0:
                put(f"{mine}_0", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
            put(f"{mine}_1", f"{theirs}.conv1", f"{theirs}.bn1")
            put(f"{mine}_2", f"{theirs}.conv2", f"{theirs}.bn2")
    config = {
        "architecture": "resnet18",
        "num_classes": 1000,
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return network
