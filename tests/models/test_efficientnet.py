"""EfficientNet: channels, stochastic depth, layers."""

import flax.linen as nn

import models
from tests.support.networks import layer_names, shapes_of


def test_efficientnet_rounds_its_channels():
    def widths(width):
        params = shapes_of(models.create("efficientnet-b0", width=width))["params"]
        convs = [params["stem"]]
        convs += [params[f"stage{i}"]["block0"]["project"] for i in range(1, 8)]
        convs += [params["last"], params["stage6"]["block0"]["expand"]]
        return [conv["conv"]["kernel"].shape[-1] for conv in convs]

    assert widths(64) == [32, 16, 24, 40, 80, 112, 192, 320, 1280, 6 * 112]
    # A quarter is 8, 4, 6, 10, 20, 28, 48, 80: 10 becomes 16, since 8 is below 9.
    assert widths(16) == [8, 8, 8, 16, 24, 32, 48, 80, 320, 6 * 32]
    squeeze = shapes_of(models.create("efficientnet-b0"))["params"]["stage3"]["block0"]
    assert squeeze["squeeze"]["reduce"]["kernel"].shape == (1, 1, 6 * 24, 24 // 4)


def test_stochastic_depth_rises_linearly():
    """16 blocks; the rates of those without a shortcut have no meaning."""
    network = models.create("efficientnet-b0", width=4)
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and "stage" in context.module.path[0]:
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of(network, (1, 8, 8, 1))
    shortcuts = [2, 4, 6, 7, 9, 10, 12, 13, 14]
    # At this width neighbouring stages have the same channels, and stage 1 and 5 too.
    expected = {0.2 * i / 16 for i in shortcuts}
    assert expected <= set(rates)
    assert rates == sorted(rates)


def test_both_convolutions_of_squeeze_and_excitation_are_layers():
    names = layer_names("efficientnet-b0", "kernels")
    # The first of the 16 blocks does not expand.
    convolutions = {"expand/conv": 15, "depthwise/conv": 16, "project/conv": 16}
    convolutions |= {"squeeze/reduce": 16, "squeeze/expand": 16}
    for part, count in convolutions.items():
        assert sum(name.endswith(f"/{part}") for name in names) == count
    assert len(names) == sum(convolutions.values()) + 3  # stem, last, head
    norms = {n.replace("conv", "norm") for n in names if n.endswith("conv")}
    assert set(layer_names("efficientnet-b0", "modules")) == {*names} | norms
