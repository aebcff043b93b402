"""Tiny random instances of KerasHub's architectures, and shapes of users' own networks."""

from __future__ import annotations

from collections.abc import Callable

import keras

layers = keras.layers


def _resnet(block_type="basic_block", **options):
    import keras_hub

    arguments = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": block_type,
        "image_shape": (64, 64, 3),
    }
    return keras_hub.models.ResNetBackbone(**{**arguments, **options})


def _mobilenet():
    import keras_hub

    return keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[40, 56], [64, 144, 144], [72, 72]],
        stackwise_num_blocks=[2, 3, 2],
        stackwise_num_filters=[[16, 16], [24, 24, 24], [24, 24]],
        stackwise_kernel_size=[[3, 3], [5, 5, 5], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1, 1], [1, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25, 0.25], [0.3, 0.3]],
        stackwise_activation=[["relu"] * 2, ["hard_swish"] * 3, ["hard_swish"] * 2],
        stackwise_padding=[[1, 1], [2, 2, 2], [2, 2]],
        output_num_filters=64,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=32,
        squeeze_and_excite=0.5,
        image_shape=(64, 64, 3),
    )


def _efficientnet():
    import keras_hub

    return keras_hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["v1", "v1", "v1"],
        stackwise_width_coefficients=[1.0] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        input_shape=(64, 64, 3),
    )


def _densenet():
    import keras_hub

    return keras_hub.models.DenseNetBackbone(
        stackwise_num_repeats=[2, 2], growth_rate=8, image_shape=(64, 64, 3)
    )


def _vit():
    import keras_hub

    return keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def _dinov2():
    import keras_hub

    return keras_hub.models.DINOV2Backbone(
        patch_size=14,
        num_layers=3,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        image_shape=(56, 56, 3),
        position_embedding_shape=(56, 56, 3),
    )


def _swin():
    import keras_hub

    return keras_hub.models.SwinTransformerBackbone(
        image_shape=(64, 64, 3),
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=4,
        patch_size=4,
    )


def _text(name: str):
    def make():
        import keras_hub

        return getattr(keras_hub.models, name)(
            vocabulary_size=50,
            num_layers=3,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=12,
        )

    return make


def _t5():
    import keras_hub

    return keras_hub.models.T5Backbone(
        vocabulary_size=50, num_layers=3, num_heads=2, hidden_dim=8, intermediate_dim=16
    )


def _whisper():
    import keras_hub

    return keras_hub.models.WhisperBackbone(
        vocabulary_size=50,
        num_layers=3,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        num_mels=8,
        max_encoder_sequence_length=16,
        max_decoder_sequence_length=12,
    )


KERAS_HUB: dict[str, Callable[[], keras.Model]] = {
    "ResNet": _resnet,
    "ResNet v2": lambda: _resnet(use_pre_activation=True),
    "ResNet-vd": lambda: _resnet(
        "bottleneck_block_vd", input_conv_filters=[64, 64, 64], input_conv_kernel_sizes=[3, 3, 3]
    ),
    "MobileNet": _mobilenet,
    "EfficientNet": _efficientnet,
    "DenseNet": _densenet,
    "ViT": _vit,
    "DINOv2": _dinov2,
    "Swin": _swin,
    "BERT": _text("BertBackbone"),
    "RoBERTa": _text("RobertaBackbone"),
    "T5": _t5,
    "Whisper": _whisper,
}
