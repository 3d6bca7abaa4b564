"""Models whose every number matters: random weights, gains far from 1, biases far from 0."""

import torch
from torch import Tensor, nn


def scramble(model: nn.Module, seed: int = 3) -> nn.Module:
    """Random values of a trained model's size everywhere; eval mode.

    Matrices keep their scale and get a mean; gains lie around 1.3 and biases around 0.4.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(parameter: Tensor) -> Tensor:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(1.2).add_(0.05 + 0.02 * draw(parameter).to(parameter.dtype))
            elif name.endswith("weight"):
                parameter.copy_(1.3 + 0.5 * draw(parameter))
            else:
                parameter.copy_(0.4 + 0.5 * draw(parameter))
    return model.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    difference = (actual.double() - expected.double()).abs().amax()
    return float(difference / expected.double().abs().amax())
