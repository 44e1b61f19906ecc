"""The convolutional nets of the benchmark in PyTorch, with the numbers of jbp's parameters.

Channels first, as PyTorch has them; the parameters come as the list of jbp's leaves' dicts, in the order of the layers,
as NumPy arrays. What is flattened comes in another order here, so the dense layer after it has its rows permuted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from torch import nn  # type: ignore[import-not-found]


def lenet() -> Any:
    """LeNet-5 with relu and max pool."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def private() -> Any:
    """The net of the DP-SGD tutorials."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


class Block(nn.Module):
    """A residual block, beside the identity or a strided 1 × 1 convolution."""

    def __init__(self, i: int, o: int, stride: int, norm: str):
        super().__init__()
        first, second = conv(i, o, 3, stride, norm), conv(o, o, 3, 1, norm)
        self.inner = nn.Sequential(*first, nn.ReLU(), *second)
        self.short = nn.Sequential(*conv(i, o, 1, stride, norm)) if stride > 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        return nn.functional.relu(self.inner(x) + self.short(x))


class Mean(nn.Module):
    """Over space."""

    def forward(self, x: Any) -> Any:
        return x.mean((2, 3))


def conv(i: int, o: int, size: int, stride: int, norm: str) -> list[Any]:
    """A convolution and its normalisation."""
    made = nn.Conv2d(i, o, size, stride, size // 2, bias=norm == "none")
    norms = {"none": list, "group": lambda: [nn.GroupNorm(o // 8, o)], "batch": lambda: [nn.BatchNorm2d(o)]}
    return [made, *norms[norm]()]


def resnet20(norm: str = "group", widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3) -> Any:
    """ResNet-20."""
    layers: list[Any] = [*conv(3, widths[0], 3, 1, norm), nn.ReLU()]
    before = widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks):
            layers.append(Block(before, width, 2 if i and not j else 1, norm))
            before = width
    return nn.Sequential(*layers, Mean(), nn.Linear(before, 10))


NETS = {
    "LeNet-5": lenet,
    "DP-CNN": private,
    "ResNet-20": resnet20,
    "ResNet-20, batch norm": lambda: resnet20("batch"),
}


def filled(model: Any, params: list[dict[str, np.ndarray]]) -> Any:
    """The model with these numbers."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.BatchNorm2d))]
    spatial = 0  # channels of the last convolution, until a dense layer has read what was flattened
    with torch.no_grad():
        for layer, p in zip(layers, params, strict=True):
            if isinstance(layer, nn.Conv2d):
                weight, spatial = p["weight"].transpose(3, 2, 0, 1), layer.out_channels
            elif isinstance(layer, nn.Linear):
                weight = p["weight"]
                side = round((len(weight) / spatial) ** 0.5) if spatial else 0
                if side > 1:
                    weight = weight.reshape(side, side, spatial, -1).transpose(2, 0, 1, 3).reshape(len(weight), -1)
                weight, spatial = weight.T, 0
            else:
                weight = p["scale"]
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(np.array(p["bias"])))
    return model


def images(x: Any) -> Any:
    """Channels first."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())
