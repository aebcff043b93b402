"""PyTorch networks whose modules are named as in torchvision or timm, written for the tests.

Each takes preprocessed images ``(batch, 3, height, width)`` and gives its features; a classifier
that the features do not use is there for its names.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

__all__ = ["NETWORKS", "ResNet20", "features", "randomised"]


def conv(inputs, outputs, size=3, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


class Residual(nn.Module):
    def __init__(self, inputs, width, stride, deep):
        super().__init__()
        outputs = 4 * width if deep else width
        if deep:  # torchvision has the stride in the 3 x 3 convolution
            self.conv1, self.conv2 = conv(inputs, width, 1), conv(width, width, 3, stride)
            self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.conv2 = conv(inputs, width, 3, stride), conv(width, width)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.deep, self.downsample = deep, None
        if stride > 1 or inputs != outputs:
            short = conv(inputs, outputs, 1, stride)
            self.downsample = nn.Sequential(short, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.deep:
            y = self.bn3(self.conv3(y.relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, blocks, deep):
        super().__init__()
        self.conv1, self.bn1, channels = conv(3, 64, 7, 2), nn.BatchNorm2d(64), 64
        for stage, count in enumerate(blocks):
            width, layers = 64 * 2**stage, []
            for i in range(count):
                layers.append(Residual(channels, width, 2 if stage and not i else 1, deep))
                channels = 4 * width if deep else width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Features(nn.Module):
    """A network whose features are one sequence, and a classifier."""

    def __init__(self, *features, channels=8):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(channels, 5))

    def forward(self, x):
        return self.features(x)


def vgg11():
    layers, before = [], 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        layers += [conv(before, width, bias=True), nn.ReLU()] if width else [nn.MaxPool2d(2)]
        before = width or before
    return Features(*layers)


def step(inputs, outputs, size=3, stride=1, groups=1, act=nn.ReLU6, eps=1e-5):
    norm = nn.BatchNorm2d(outputs, eps)
    return nn.Sequential(conv(inputs, outputs, size, stride, groups), norm, act())


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        wide, self.add = inputs * expansion, stride == 1 and inputs == outputs
        parts = [step(inputs, wide, 1)] if expansion > 1 else []
        parts += [step(wide, wide, 3, stride, wide), conv(wide, outputs, 1)]
        self.conv = nn.Sequential(*parts, nn.BatchNorm2d(outputs))

    def forward(self, x):
        return x + self.conv(x) if self.add else self.conv(x)


def mobilenet_v2():
    """With ``alpha=0.35``."""
    layers, before = [step(3, 16, 3, 2)], 16
    rows = [(1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 3, 2), (6, 24, 4, 2), (6, 32, 3, 1)]
    for expansion, width, count, stride in [*rows, (6, 56, 3, 2), (6, 112, 1, 1)]:
        for i in range(count):
            layers.append(Inverted(before, width, 1 if i else stride, expansion))
            before = width
    return Features(*layers, step(before, 1280, 1))


class DenseLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, 128, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), conv(128, 32)

    def forward(self, x):
        return torch.cat([x, self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())], 1)


def densenet121():
    net, n = Features(), 64
    parts = net.features
    parts.conv0, parts.norm0 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
    parts.relu0, parts.pool0 = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    for i, count in enumerate((6, 12, 24, 16), 1):
        block = nn.Sequential()
        for j in range(1, count + 1):
            block.add_module(f"denselayer{j}", DenseLayer(n))
            n += 32
        parts.add_module(f"denseblock{i}", block)
        if i < 4:
            between = nn.Sequential()
            between.norm, between.relu = nn.BatchNorm2d(n), nn.ReLU()
            n //= 2
            between.conv, between.pool = conv(2 * n, n, 1), nn.AvgPool2d(2)
            parts.add_module(f"transition{i}", between)
    parts.norm5, parts.relu5 = nn.BatchNorm2d(n), nn.ReLU()
    return net


class Squeeze(nn.Module):
    def __init__(self, channels, narrow):
        super().__init__()
        self.fc1 = conv(channels, narrow, 1, bias=True)
        self.fc2 = conv(narrow, channels, 1, bias=True)

    def forward(self, x):
        y = nn.functional.silu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * self.fc2(y).sigmoid()


class MBConv(nn.Module):
    def __init__(self, inputs, outputs, size, stride, expansion):
        super().__init__()
        wide, self.add = inputs * expansion, stride == 1 and inputs == outputs
        parts = [step(inputs, wide, 1, act=nn.SiLU)] if expansion > 1 else []
        parts += [step(wide, wide, size, stride, wide, nn.SiLU), Squeeze(wide, inputs // 4)]
        self.block = nn.Sequential(*parts, step(wide, outputs, 1, act=nn.Identity))

    def forward(self, x):
        return x + self.block(x) if self.add else self.block(x)


def efficientnet_b0():
    layers, before = [step(3, 32, 3, 2, act=nn.SiLU)], 32
    rows = [(1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2)]
    for expansion, width, count, size, stride in [
        *rows,
        *((6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1)),
    ]:
        stage = []
        for i in range(count):
            stage.append(MBConv(before, width, size, 1 if i else stride, expansion))
            before = width
        layers.append(nn.Sequential(*stage))
    return Features(*layers, step(before, 1280, 1, act=nn.SiLU))


class ChannelNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv_dw = conv(width, width, 7, groups=width, bias=True)
        self.norm, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.gamma * self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Tiny, named as in timm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 96, 4, 4), ChannelNorm(96, 1e-6))
        self.stages, before = nn.Sequential(), 96
        for i, (width, count) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
            stage = nn.Sequential()
            if i:
                down = nn.Conv2d(before, width, 2, 2)
                stage.downsample = nn.Sequential(ChannelNorm(before, 1e-6), down)
            stage.blocks = nn.Sequential(*(ConvNeXtBlock(width) for _ in range(count)))
            self.stages.append(stage)
            before = width
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(768), "fc": nn.Linear(768, 5)})

    def forward(self, x):
        return self.stages(self.stem(x))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
        )

    def forward(self, x):
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, 1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Tiny, for 64 x 64 pixels, named as in timm."""

    def __init__(self, width=192, heads=3):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 5)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))


class Shortcut(nn.Module):
    def forward(self, x):
        more = x.shape[1] // 2
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))


class Shifted(Residual):
    """With the shortcut of the CIFAR experiments, which has no weights."""

    def __init__(self, inputs, width, stride):
        super().__init__(inputs, width, stride, deep=False)
        if self.downsample is not None:
            self.downsample = Shortcut()


class ResNet20(nn.Module):
    """For CIFAR-10, named as in akamaster/pytorch_resnet_cifar10."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, before = conv(3, 16), nn.BatchNorm2d(16), 16
        for stage, width in enumerate((16, 32, 64), 1):
            strides = (2 if stage > 1 else 1, 1, 1)
            blocks = [Shifted(before if not i else width, width, s) for i, s in enumerate(strides)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(x.mean((2, 3)))


NETWORKS = {
    "resnet18": lambda: ResNet((2, 2, 2, 2), deep=False),
    "resnet34": lambda: ResNet((3, 4, 6, 3), deep=False),
    "resnet50": lambda: ResNet((3, 4, 6, 3), deep=True),
    "vgg11": vgg11,
    "mobilenet_v2": mobilenet_v2,
    "densenet121": densenet121,
    "efficientnet_b0": efficientnet_b0,
    "convnext_tiny": ConvNeXt,
    "vit_tiny_patch16": ViT,
}


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Nothing is left at the value that it starts with in both libraries."""
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1:
            around = 1.0 if name.endswith("weight") else 0.0
            nn.init.normal_(parameter, around, 0.2)
        elif name in ("cls_token", "pos_embed"):
            nn.init.normal_(parameter, 0.0, 0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def features(net: nn.Module, pixels: np.ndarray, mean, deviation) -> np.ndarray:
    """Of raw RGB pixels ``(batch, height, width, 3)``, maps with the channels last."""
    x = (pixels / 255 - np.array(mean)) / np.array(deviation)
    with torch.no_grad():
        y = net(torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y
