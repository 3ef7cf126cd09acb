"""GoogLeNet's channels."""

import models
from tests.support.networks import shapes_of


def test_googlenet_rounds_its_channels():
    def widths(width):
        params = shapes_of(models.create("googlenet", width=width))["params"]
        block = params["stage3"]["block0"]  # 64, 96, 128, 16, 32, 32 in the paper
        names = ("conv1", "reduce3", "conv3", "reduce5", "conv5a", "pool")
        return [block[name]["conv"]["kernel"].shape[-1] for name in names]

    assert widths(64) == [64, 96, 128, 16, 32, 32]
    assert widths(10) == [10, 15, 20, 3, 5, 5]  # 16 * 10 / 64 = 2.5
    assert widths(1) == [1, 2, 2, 1, 1, 1]  # 1.5; 0.25 would be none
