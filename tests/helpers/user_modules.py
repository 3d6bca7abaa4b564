"""Modules for ``normtrain swap-check`` to import, some of them with mistakes."""

MINE = """
import argparse
import functools
import sys

import torch
from torch import nn

import helper

print("a message of user code")
arguments = argparse.ArgumentParser().parse_args()  # as scripts do, at the top


class Net(nn.Module):
    def __init__(self, size=helper.SIZE):
        super().__init__()
        self.first, self.norm = nn.Linear(6, size), nn.LayerNorm(size)
        self.last = nn.Linear(size, 3)

    def forward(self, x, scale=1.0):
        print("a message of user code")
        return {"logits": self.last(self.norm(self.first(x))) * scale}


class Rearmed(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        for layer in self.encoder.layers:
            layer.activation_relu_or_gelu = 1
        return self.encoder(x)


def net():
    return Net()


def pair():
    return Net(), torch.randn(4, 6)


def named():
    return [Net(), {"x": torch.randn(4, 6), "scale": 2.0}]


def rearmed():
    return Rearmed(), torch.randn(2, 5, 8) + 1


def needs(size, *rest, depth=1):
    return Net()


def fails():
    raise ValueError("no such size")


def quits():
    sys.exit("usage: mine.py FILE")


def nothing():
    pass


class Makers:
    @staticmethod
    def pair():
        return pair()


model = Net()
partial = functools.partial(Net, size=12)
number = 3
"""

CUSTOM = """
import torch
from torch import nn

from normtrain import register_norm


class Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * float("nan")


@register_norm("bad-backward")
class BadBackward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return Root.apply(x * self.weight)


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.randn(2, 6)
"""

FILES = {
    "mine.py": MINE,
    "helper.py": "SIZE = 8\n",
    "custom.py": CUSTOM,
    "package/__init__.py": "",
    "package/inner/__init__.py": "",
    "package/inner/nets.py": "from ..inner.more import Net\n",
    "package/inner/more.py": "from helper import SIZE\nfrom mine import Net\n",
    "missing.py": "import math\n\nimport no_such_thing\n",
    "wrong.py": "x = (\n",
    "raises.py": "import helper\n\n\ndef size():\n    return helper.SIZES\n\n\nsize()\n",
    "lazy.py": "def __getattr__(name):\n    raise ImportError('no ' + name)\n",
}
