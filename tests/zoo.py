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


def _deit():
    import keras_hub

    return keras_hub.models.DeiTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )


def _dinov3():
    import keras_hub

    return keras_hub.models.DINOV3Backbone(
        patch_size=8,
        num_layers=3,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_register_tokens=2,
        use_mask_token=False,
        image_shape=(32, 32, 3),
    )


def _mit():
    import keras_hub

    return keras_hub.models.MiTBackbone(
        layerwise_depths=[2, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.0,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=(32, 32, 3),
        hidden_dims=[8, 16],
    )


def _cspnet():
    import keras_hub

    return keras_hub.models.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=2,
        stackwise_depth=[1, 2],
        stackwise_strides=[1, 2],
        stackwise_num_filters=[16, 32],
        block_type="dark_block",
        stage_type="dark",
        image_shape=(32, 32, 3),
    )


def _hgnetv2():
    import keras_hub

    return keras_hub.models.HGNetV2Backbone(
        depths=[1, 2],
        embedding_size=8,
        hidden_sizes=[16, 32],
        stem_channels=[3, 8, 8],
        hidden_act="relu",
        use_learnable_affine_block=False,
        stackwise_stage_filters=[(8, 8, 16, 1, 1, 3), (16, 8, 32, 2, 1, 3)],
        apply_downsample=[False, True],
        use_lightweight_conv_block=[False, False],
        image_shape=(32, 32, 3),
    )


def _vgg():
    import keras_hub

    return keras_hub.models.VGGBackbone(
        stackwise_num_repeats=[1, 2], stackwise_num_filters=[8, 16], image_shape=(32, 32, 3)
    )


def _xception():
    import keras_hub

    return keras_hub.models.XceptionBackbone(
        stackwise_conv_filters=[[8, 8], [16, 16], [24, 24]],
        stackwise_pooling=[True, True, False],
        image_shape=(64, 64, 3),
    )


def _text(name: str, **more):
    def make():
        import keras_hub

        arguments = {
            "vocabulary_size": 50,
            "num_layers": 3,
            "num_heads": 2,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "max_sequence_length": 12,
            **more,
        }
        arguments = {k: v for k, v in arguments.items() if v is not None}
        return getattr(keras_hub.models, name)(**arguments)

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
    "DeiT": _deit,
    "DINOv3": _dinov3,
    "MiT": _mit,
    "CSPNet": _cspnet,
    "HGNetV2": _hgnetv2,
    "VGG": _vgg,
    "Xception": _xception,
    "BERT": _text("BertBackbone"),
    "RoBERTa": _text("RobertaBackbone"),
    "XLM-R": _text("XLMRobertaBackbone"),
    "DistilBERT": _text("DistilBertBackbone"),
    "ALBERT": _text("AlbertBackbone", embedding_dim=4),
    "ELECTRA": _text("ElectraBackbone", vocabulary_size=None, vocab_size=50, embedding_dim=8),
    "DeBERTa v3": _text("DebertaV3Backbone", bucket_size=6),
    "GPT-2": _text("GPT2Backbone"),
    "T5": _t5,
    "Whisper": _whisper,
}
