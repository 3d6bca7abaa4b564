"""Run as a script: LayerNorm of timm's models replaced by this package's. Prints a JSON object.

torchvision, which timm imports for its data transforms, has no build for every torch; where it is
missing, empty classes stand in for it here. No model uses them.
"""

import copy
import importlib.util
import json
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import nn


class _Named(type):
    """A class whose attributes are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Missing(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _Finder:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.split(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Missing(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing."""


MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "swin_tiny_patch4_window7_224": {
        **{"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)},
        **{"embed_dim": 24, "num_heads": (1, 2, 3, 4)},
    },
    "convnext_atto": {},  # LayerNorm2d
}


def _trained(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The losses of twenty steps, and the output in eval afterwards."""
    torch.manual_seed(1)
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.01), []
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return [*losses, model.eval()(x)]


def main() -> None:
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.insert(0, _Finder())
    import timm

    from normtrain import swap_norms

    found: dict[str, Any] = {}
    for name, options in MODELS.items():
        torch.manual_seed(0)
        old = timm.create_model(name, num_classes=7, **options)
        with torch.no_grad():
            for parameter in old.parameters():
                if parameter.ndim < 2:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        new = copy.deepcopy(old)
        report = swap_norms(new, "layernorm")
        size = options.get("img_size", 64)
        x = torch.randn(2, 3, size, size)
        pairs = zip(_trained(old, x), _trained(new, x), strict=True)
        found[name] = {
            "replaced": sorted({one.old for one in report.replaced}),
            "skipped": len(report.skipped),
            "left": sum(isinstance(module, nn.LayerNorm) for module in new.modules()),
            "equal": all(torch.equal(before, after) for before, after in pairs),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
