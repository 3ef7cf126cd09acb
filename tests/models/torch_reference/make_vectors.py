"""Writes what PyTorch computes for networks like ours, to vectors.npz beside this file.

    pip install numpy torch --index-url https://download.pytorch.org/whl/cpu
    python tests/models/torch_reference/make_vectors.py

It takes a few seconds. The networks are defined here once more, from the papers and in
PyTorch's own layers, and share no code with `models`. Everything is in float64.

Weights are not stored: `draw` makes each array from its name. A stored network has

    <network>/names          all names of its state: of ResNet, ViT and EfficientNet
                             those of torchvision
    <network>/shapes         their shapes, such as 8,3,3,3
    <network>/eval_logits    logits with the running statistics
    <network>/train_logits   logits with the statistics of the batch, without dropout
    <network>/grad/<name>    in training, of the mean cross-entropy: of some parameters
    <network>/stats/<name>   the last batch normalisation's statistics after that step
    <network>/count          the values that its statistics were taken over

for the `images` (batch, channels, height, width) and `labels` that are stored too.
Shallow networks have one block of each kind, and compile in a fraction.
"""

import pathlib
import zlib
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10
PATH = pathlib.Path(__file__).with_name("vectors.npz")


def draw(name, shape):
    """Draws an array from its name; RandomState's stream never changes."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if len(shape) > 1:
        return noise * np.sqrt(3 / np.prod(shape[1:]))  # variance 1 / fan_in
    if name.endswith(("weight", "running_var")):
        return 1 + noise / 2
    return noise / 2


class BasicBlock(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = downsample(inputs, features, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * features)
        self.downsample = downsample(inputs, 4 * features, stride)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def downsample(inputs, outputs, stride):
    if inputs == outputs and stride == 1:
        return nn.Identity()
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(self, block, depths, width, imagenet):
        super().__init__()
        size, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(3, width, size, stride, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        inputs = width
        for stage, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(block(inputs, width * 2**stage, stride))
                inputs = width * 2**stage * (4 if block is Bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class VGG(nn.Module):
    """Names as in the authors' Caffe release: conv1_1 to conv5_3, fc6, fc7, fc8."""

    def __init__(self, depths, width):
        super().__init__()
        self.depths = depths
        inputs = 3
        for stage, depth in enumerate(depths, 1):
            outputs = width * (1, 2, 4, 8, 8)[stage - 1]
            for i in range(1, depth + 1):
                conv = nn.Conv2d(inputs, outputs, 3, padding=1)
                self.add_module(f"conv{stage}_{i}", conv)
                self.add_module(f"bn{stage}_{i}", nn.BatchNorm2d(outputs))
                inputs = outputs
        self.fc6 = nn.Linear(inputs, 64 * width)
        self.fc7 = nn.Linear(64 * width, 64 * width)
        self.fc8 = nn.Linear(64 * width, CLASSES)

    def forward(self, x):
        for stage, depth in enumerate(self.depths, 1):
            for i in range(1, depth + 1):
                conv, bn = (getattr(self, f"{kind}{stage}_{i}") for kind in KINDS)
                x = F.relu(bn(conv(x)))
            x = F.max_pool2d(x, 2)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.fc8(F.relu(self.fc7(F.relu(self.fc6(x)))))


KINDS = ("conv", "bn")


class Unit(nn.Module):
    def __init__(self, inputs, outputs, size):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    def __init__(self, inputs, b1, b3_reduce, b3, b5_reduce, b5, proj):
        super().__init__()
        self.b1 = Unit(inputs, b1, 1)
        self.b3 = nn.Sequential(Unit(inputs, b3_reduce, 1), Unit(b3_reduce, b3, 3))
        self.b5 = nn.Sequential(
            Unit(inputs, b5_reduce, 1), Unit(b5_reduce, b5, 3), Unit(b5, b5, 3)
        )
        self.proj = Unit(inputs, proj, 1)

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([self.b1(x), self.b3(x), self.b5(x), self.proj(pooled)], 1)


class GoogLeNet(nn.Module):
    TABLE = {
        "3a": (64, 96, 128, 16, 32, 32),
        "3b": (128, 128, 192, 32, 96, 64),
        "4a": (192, 96, 208, 16, 48, 64),
        "4b": (160, 112, 224, 24, 64, 64),
        "4c": (128, 128, 256, 24, 64, 64),
        "4d": (112, 144, 288, 32, 64, 64),
        "4e": (256, 160, 320, 32, 128, 128),
        "5a": (256, 160, 320, 32, 128, 128),
        "5b": (384, 192, 384, 48, 128, 128),
    }

    def __init__(self, divisor):
        super().__init__()
        a, b = 64 // divisor, 192 // divisor
        self.stem = nn.Sequential(Unit(3, a, 3), Unit(a, a, 3), Unit(a, b, 3))
        inputs = b
        for name, row in self.TABLE.items():
            row = [n // divisor for n in row]
            self.add_module(f"inception{name}", Inception(inputs, *row))
            inputs = row[0] + row[2] + row[4] + row[5]
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for name in self.TABLE:
            if name in ("3a", "4a", "5a"):
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            x = getattr(self, f"inception{name}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class EncoderLayer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Identity(),  # the place of dropout
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, width, heads, depth, tokens):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.zeros(1, tokens, width))
        self.layers = nn.Sequential(
            OrderedDict(
                (f"encoder_layer_{i}", EncoderLayer(width, heads)) for i in range(depth)
            )
        )
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    def __init__(self, width, heads, depth, tokens=65):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, width, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder(width, heads, depth, tokens)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(width, CLASSES)))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])


def unit(inputs, outputs, size, stride=1, groups=1, activation=nn.SiLU):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class SqueezeExcitation(nn.Module):
    def __init__(self, inner, squeezed):
        super().__init__()
        self.fc1 = nn.Conv2d(inner, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, inner, 1)

    def forward(self, x):
        return x * self.fc2(F.silu(self.fc1(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class MBConv(nn.Module):
    def __init__(self, inputs, expansion, outputs, size, stride):
        super().__init__()
        inner = expansion * inputs
        self.block = nn.Sequential(
            *([unit(inputs, inner, 1)] if expansion > 1 else []),
            unit(inner, inner, size, stride, groups=inner),
            SqueezeExcitation(inner, inputs // 4),
            unit(inner, outputs, 1, activation=nn.Identity),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class EfficientNet(nn.Module):
    TABLE = (  # expansion, channels, blocks, kernel, stride
        (1, 16, 1, 3, 1),
        (6, 24, 2, 3, 2),
        (6, 40, 2, 5, 2),
        (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1),
        (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )

    def __init__(self):
        super().__init__()
        inputs = 32
        stages = [unit(3, inputs, 3)]
        for expansion, outputs, depth, size, stride in self.TABLE:
            blocks = []
            for i in range(depth):
                step = stride if i == 0 else 1
                blocks.append(MBConv(inputs, expansion, outputs, size, step))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*stages)
        self.features.add_module("8", unit(inputs, 4 * inputs, 1))
        self.classifier = nn.Sequential(
            nn.Identity(),
            nn.Linear(4 * inputs, CLASSES),  # the place of dropout
        )

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


NETWORKS = {  # the network, some parameters, its last batch normalisation
    "resnet18": (
        ResNet(BasicBlock, (2, 2, 2, 2), width=8, imagenet=False),
        ("conv1.weight", "fc.weight"),
        "layer4.1.bn2",
    ),
    "resnet50": (
        ResNet(Bottleneck, (3, 4, 6, 3), width=4, imagenet=True),
        ("conv1.weight", "fc.weight"),
        "layer4.2.bn3",
    ),
    "vgg16": (
        VGG((2, 2, 3, 3, 3), width=8),
        ("conv1_1.weight", "fc8.weight"),
        "bn5_3",
    ),
    "googlenet": (
        GoogLeNet(divisor=4),
        ("stem.0.conv.weight", "fc.weight"),
        "inception5b.proj.bn",
    ),
    "resnet18-shallow": (
        ResNet(BasicBlock, (2, 1, 1, 1), width=4, imagenet=False),
        ("conv1.weight", "fc.weight"),
        "layer4.0.bn2",
    ),
    "vgg16-shallow": (
        VGG((1, 1, 2, 1, 1), width=4),
        ("conv1_1.weight", "fc8.weight"),
        "bn5_1",
    ),
    "vit-tiny": (
        VisionTransformer(width=24, heads=3, depth=12),
        (
            *("conv_proj.weight", "encoder.pos_embedding", "heads.head.weight"),
            "encoder.layers.encoder_layer_0.self_attention.in_proj_weight",
        ),
        None,
    ),
    "efficientnet-b0": (
        EfficientNet(),
        (
            *("features.0.0.weight", "classifier.1.weight"),
            "features.7.0.block.1.0.weight",
        ),
        "features.8.1",
    ),
}


def vectors(network, images, labels, parameters, norm):
    """Yields a network's stored entries."""
    network.double()
    state = {
        name: torch.from_numpy(draw(name, tuple(value.shape)))
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    network.load_state_dict(state, strict=False)
    yield "names", np.array(list(state))
    shapes = (",".join(map(str, value.shape)) for value in state.values())
    yield "shapes", np.array(list(shapes))

    with torch.no_grad():
        yield "eval_logits", network.eval()(images).numpy()

    counts = []
    if norm:
        network.get_submodule(norm).register_forward_hook(
            lambda _, inputs, __: counts.append(inputs[0].numel() // inputs[0].shape[1])
        )
    logits = network.train()(images)
    F.cross_entropy(logits, labels).backward()
    yield "train_logits", logits.detach().numpy()
    for name in parameters:
        yield f"grad/{name}", network.get_parameter(name).grad.numpy()
    if norm:
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            yield f"stats/{name}", network.get_buffer(name).numpy()
        yield "count", np.array(counts[0])


def main():
    """Computes the vectors and writes them."""
    images = draw("images", (8, 3, 32, 32)) * np.sqrt(3 * 32 * 32)  # variance 1
    labels = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    entries = {"images": images, "labels": labels}
    for key, (network, *names) in NETWORKS.items():
        for entry, value in vectors(
            network, torch.from_numpy(images), torch.from_numpy(labels), *names
        ):
            entries[f"{key}/{entry}"] = value
    np.savez_compressed(PATH, **entries)
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
