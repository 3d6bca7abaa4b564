"""Modules as people write them, well and badly, for ``normtrain swap-check`` to import."""

MINE = """
import argparse
import functools
import sys

import torch
from torch import nn

import helper

print("a message of theirs")
arguments = argparse.ArgumentParser().parse_args()  # as scripts do, at the top


class Net(nn.Module):
    def __init__(self, size=helper.SIZE):
        super().__init__()
        self.first, self.norm = nn.Linear(6, size), nn.LayerNorm(size)
        self.last = nn.Linear(size, 3)

    def forward(self, x, scale=1.0):
        print("a message of theirs")
        return {"logits": self.last(self.norm(self.first(x))) * scale}


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)

    def forward(self, ids, shift):
        return self.norm(self.table(ids)) + shift


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


def norm_fails():
    from normtrain import build_norm

    return build_norm("rmsnrm", 3)


def quits():
    sys.exit("usage: mine.py FILE")


def plain():
    return nn.Linear(6, 6), torch.randn(2, 6)


def nothing():
    pass


def triple():
    return Net(), torch.randn(4, 6), 3


def done():
    from normtrain import swap_norms

    model = Net()
    swap_norms(model, "rmsnorm")
    return model, torch.randn(4, 6)


class Makers:
    text = Text

    @staticmethod
    def pair():
        return pair()


model = Net()
partial = functools.partial(Net, size=12)
number = 3
"""

LIT = """
import torch
from {flavour} import LightningModule
from torch import nn


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 6)

    def configure_model(self):
        self.net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))

    def forward(self, x):
        return self.net(x)
"""

HF = """
from transformers import GPT2Config, GPT2LMHeadModel


def tiny():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 29, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
"""

THEIRS = """
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
    "theirs.py": THEIRS,
    "package/__init__.py": "",
    "package/inner/__init__.py": "",
    "package/inner/nets.py": "from ..inner.more import Net\n",
    "package/inner/more.py": "from helper import SIZE\nfrom mine import Net\n",
    "missing.py": "import math\n\nimport no_such_thing\n",
    "wrong.py": "x = (\n",
    "raises.py": "import helper\n\n\ndef size():\n    return helper.SIZES\n\n\nsize()\n",
    "lazy.py": "def __getattr__(name):\n    raise ImportError('no ' + name)\n",
    "quits.py": "import sys\nsys.exit(3)\n",
}
