"""The networks of ``models`` (CIFAR stem) and the training step, in PyTorch.

PyTorch is optional: only ``benchmarks.throughput`` and ``benchmarks.time_share`` import
this module, and only where PyTorch is installed.
"""
# mypy: disable-error-code="import-not-found"

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from training import data
from training.settings import config as config_lib
from training.settings.config import Config

_INCEPTIONS = {  # table 1 of the GoogLeNet paper
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


class TorchTraining:
    """Trains a network on a data set that is on the device.

    A step gathers and normalises a batch, takes the gradient of the mean
    cross-entropy and updates with SGD. Everything is channels-last; bfloat16 is
    autocast, and the update the fused one.

    Attributes:
      batch_size: Images in a step.
      network: The network.
      optimizer: Its optimizer.
      parameters: How many parameters the network has.
    """

    def __init__(
        self, config: Config, dataset: data.Dataset, *, device: str, compiled: bool
    ) -> None:
        torch.manual_seed(0)
        network: Any = create(config.model, config.width, dataset.num_classes)
        network = network.to(device, memory_format=torch.channels_last)
        self.network = network
        self.parameters = sum(p.numel() for p in network.parameters())
        self._device, self.batch_size = device, config.batch_size
        self._images, self._labels, mean, std = (
            torch.from_numpy(x).to(device)
            for x in (*dataset.train, dataset.mean, dataset.std)
        )
        self._labels = self._labels.long()
        rates: Any = {
            "lr": config.learning_rate,
            "momentum": config_lib.fields(config)["momentum"],
            "weight_decay": config.weight_decay,
        }
        self.optimizer = torch.optim.SGD(network.parameters(), fused=True, **rates)

        def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            pixels = (images.float() / 255 - mean) / std
            half = config.precision == "bfloat16"
            with torch.autocast(device, torch.bfloat16, enabled=half):
                # A view: its memory is channels-last.
                logits = network(pixels.permute(0, 3, 1, 2))
            return F.cross_entropy(logits.float(), labels)

        if compiled:
            torch.compiler.reset()  # else earlier networks count as recompilations
        self._loss: Callable[..., Any] = torch.compile(loss) if compiled else loss

    def run(self) -> None:
        """Trains an epoch, and waits for it."""
        count = len(self._labels) // self.batch_size * self.batch_size
        order = torch.randperm(len(self._labels), device=self._device)[:count]
        for indices in order.split(self.batch_size):
            loss = self._loss(self._images[indices], self._labels[indices])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        if self._device == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> float:
        """Runs once, which compiles, and returns the seconds."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


def make_parts(training: TorchTraining) -> list[Callable[[], None]]:
    """Functions that do parts of the step alone, on a CPU, with random activations.

    All convolutions forward, their gradients by the input and by the filter, all
    normalisations both ways, and the update, which needs gradients from a step before.
    """
    calls: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda module, x, y: calls.append((module, *x, y)))
        for module in training.network.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        images = torch.randn(training.batch_size, 32, 32, 3)
        training.network(images.permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    convolutions = [call for call in calls if isinstance(call[0], nn.Conv2d)]
    norms = [call for call in calls if isinstance(call[0], nn.BatchNorm2d)]

    def forward() -> None:
        with torch.no_grad():
            for conv, x, _ in convolutions:
                conv(x)

    def gradients(calls: list[Any], mask: list[bool]) -> None:
        for conv, x, y in calls:
            where = conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups
            torch.ops.aten.convolution_backward(y, x, conv.weight, None, *where, mask)

    def normalise() -> None:
        for norm, x, y in norms:
            norm(x.requires_grad_()).backward(y)

    return [
        forward,
        # The images need no gradient.
        functools.partial(gradients, convolutions[1:], [True, False, False]),
        functools.partial(gradients, convolutions, [False, True, False]),
        normalise,
        training.optimizer.step,
    ]


def set_up(threads: int) -> dict[str, Any]:
    """Sets what PyTorch's documentation recommends for speed; returns the settings."""
    torch.set_num_threads(threads)
    # As JAX does by default on a GPU.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "tf32": True,
        "cudnn_benchmark": True,
    }


def make_product(precision: str, device: str, side: int) -> Callable[[], None]:
    """A product of two matrices of this side, as ``throughput.make_product``."""
    matrix = torch.ones((side, side), dtype=getattr(torch, precision), device=device)

    def product() -> None:
        torch.mm(matrix, matrix)
        if device != "cpu":
            torch.cuda.synchronize()

    return product


def create(name: str, width: int, classes: int) -> nn.Module:
    """Returns ``resnet18``, ``vgg16`` or ``googlenet``."""
    return _NETWORKS[name](width, classes)


class _Unit(nn.Module):
    """A convolution and its normalisation, and by default a relu."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        bias: bool = False,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        return F.relu(x) if self.relu else x


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.unit1 = _Unit(inputs, outputs, 3, stride)
        self.unit2 = _Unit(outputs, outputs, 3, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _Unit(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.unit2(self.unit1(x)) + self.shortcut(x))


class _Inception(nn.Module):
    def __init__(self, inputs: int, channels: list[int]) -> None:
        super().__init__()
        b1, r3, b3, r5, b5, pool = channels
        self.one = _Unit(inputs, b1, 1)
        self.three = nn.Sequential(_Unit(inputs, r3, 1), _Unit(r3, b3, 3))
        self.five = nn.Sequential(
            _Unit(inputs, r5, 1), _Unit(r5, b5, 3), _Unit(b5, b5, 3)
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), _Unit(inputs, pool, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def _resnet18(width: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [_Unit(3, width, 3)]
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        layers.append(_Block(inputs, outputs, 2 if stage else 1))
        layers.append(_Block(outputs, outputs, 1))
        inputs = outputs
    return nn.Sequential(*layers, *_mean(), nn.Linear(inputs, classes))


def _vgg16(width: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    inputs, hidden = 3, 64 * width
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for _ in range(depth):
            outputs = width * min(2**stage, 8)
            layers.append(_Unit(inputs, outputs, 3, bias=True))
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    for _ in range(2):
        dense = nn.Linear(inputs, hidden)
        head = [dense, nn.ReLU(), nn.Dropout(0.5)]
        layers.extend(head if inputs == hidden else [*_mean(), *head])
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


def _googlenet(width: int, classes: int) -> nn.Module:
    def scale(channels: int) -> int:
        return max(1, (channels * width + 32) // 64)

    a, b = scale(64), scale(192)
    layers: list[nn.Module] = [_Unit(3, a, 3), _Unit(a, a, 3), _Unit(a, b, 3)]
    inputs = b
    for name, row in _INCEPTIONS.items():
        if name.endswith("a"):
            layers.append(nn.MaxPool2d(3, 2, 1))
        channels = [scale(n) for n in row]
        layers.append(_Inception(inputs, channels))
        inputs = channels[0] + channels[2] + channels[4] + channels[5]
    return nn.Sequential(*layers, *_mean(), nn.Dropout(0.4), nn.Linear(inputs, classes))


def _mean() -> tuple[nn.Module, nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()


_NETWORKS = {"resnet18": _resnet18, "vgg16": _vgg16, "googlenet": _googlenet}
