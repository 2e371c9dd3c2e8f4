"""Handwritten digits, three kinds of damage to them, and the small convolutional network that several papers share.

The data are scikit-learn's 1,797 images of 8x8 pixels. Pixels lie in [0, 1], shape (n, 1, 8, 8); damage is done to
them, before the network's own normalisation.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional

Corruption = Literal["noise", "blur", "contrast"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
TRAIN, CLASSES = 1297, 10
MEAN, SPREAD = 0.305, 0.376
NOISE, BLUR, BLUR_RADIUS, CONTRAST = 0.4, 1.2, 3, 0.15
BATCH, MOMENTUM, WEIGHT_DECAY, DROPS = 64, 0.9, 5e-4, (0.4, 0.8)


class Digits(NamedTuple):
    """Images, float32 of shape (n, 1, 8, 8) in [0, 1], and labels, int64 of shape (n,)."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor

    def only(self, labels: range) -> Digits:
        """The images of some labels; the labels stay what they are."""
        chosen = torch.tensor(labels)
        train, test = torch.isin(self.train_y, chosen), torch.isin(self.test_y, chosen)
        return Digits(self.train_x[train], self.train_y[train], self.test_x[test], self.test_y[test])


@functools.cache
def load() -> Digits:
    """1,297 images to train on and 500 to test with; the division is always the same."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[order]
    y = torch.tensor(labels)[order]
    return Digits(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def corrupt(x: torch.Tensor, kind: Corruption, seed: int) -> torch.Tensor:
    """Damaged copies of images; `seed` draws the noise."""
    match kind:
        case "noise":
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
            return (x + NOISE * noise).clamp(0, 1)
        case "blur":
            steps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
            line = torch.exp(-steps.square() / (2 * BLUR**2))
            kernel = torch.outer(line, line) / line.sum() ** 2
            return functional.conv2d(functional.pad(x, [BLUR_RADIUS] * 4, mode="replicate"), kernel[None, None])
        case "contrast":
            mean = x.mean(dim=(2, 3), keepdim=True)
            return mean + CONTRAST * (x - mean)


class Normalise(nn.Module):
    """The network's first layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels with mean 0 and spread 1."""
        return (x - MEAN) / SPREAD


class Net(nn.Sequential):
    """Six 3x3 convolutions (16, 16, pool, 32, 32, pool, 32, 32), global average, one linear layer; no batch norm."""

    def __init__(self, seed: int = 0, classes: int = CLASSES) -> None:
        layers: list[nn.Module] = [Normalise()]
        inputs = 1
        with torch.random.fork_rng():
            for width in (16, 16, 0, 32, 32, 0, 32, 32):
                if width == 0:
                    layers.append(nn.MaxPool2d(2))
                    continue
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        super().__init__(*layers)
        generator = torch.Generator().manual_seed(seed)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01, generator=generator)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


def train(
    net: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    epochs: int = 12,
    lr: float = 0.03,
    seed: int = 0,
    corruption: Corruption | None = None,
    drops: tuple[float, ...] = DROPS,
) -> nn.Module:
    """Train `net` where it stands with SGD and return it.

    Every epoch damages the images anew: noise that is fixed per image could be learnt by heart.

    Args:
        net: the network.
        x: images, undamaged.
        y: their labels.
        epochs: passes over the images.
        lr: learning rate, divided by ten at each of `drops`.
        seed: of the order of images and of the noise.
        corruption: damage done to every image.
        drops: where the learning rate falls, as shares of all epochs.
    """
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(epochs * drop) for drop in drops], 0.1)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        draw = int(torch.randint(2**31, (1,), generator=generator))
        images = x if corruption is None else corrupt(x, corruption, draw)
        for batch in torch.randperm(len(y), generator=generator).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def pretrained(seed: int, digits: Digits | None = None, epochs: int = 12) -> nn.Module:
    """The start of all fine-tunes: twelve epochs on clean digits at a constant learning rate of 0.05."""
    data = digits or load()
    return train(Net(seed), data.train_x, data.train_y, epochs=epochs, lr=0.05, seed=seed, drops=())


def right(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """How many images are told right."""
    with torch.inference_mode():
        return int((net(x).argmax(dim=1) == y).sum())


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of images told right, in [0, 1]."""
    return right(net, x, y) / len(y)
