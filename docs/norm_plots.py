"""Draw the plots of docs/norms.md from the norms themselves.

    python docs/norm_plots.py                # writes docs/images/norm-*.svg
    python docs/norm_plots.py FOLDER

Needs matplotlib (``pip install -c constraints.txt -e '.[plots]'``). Random numbers are seeded and
results rounded, so the same versions write identical files. Text and lines have medium brightness
on a transparent background, readable on white and on black.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from normtrain.norms import build_norm

GREY = "#808790"
COLOURS = ["#3b82f6", "#e8710a", "#2e9e5b", "#d6409f", "#8b5cf6"]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "normtrain",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": GREY,
    "lines.linewidth": 1.5,
    "savefig.transparent": True,
} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
)


def apply(spec: str, x: Tensor) -> Tensor:
    """Apply a newly built norm to vectors ``(..., d)`` in float64."""
    with torch.no_grad():
        return build_norm(spec, x.shape[-1], dtype=torch.float64)(x)


def draw(*shape: int, seed: int) -> Tensor:
    """Draw normal numbers in float64 from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def grey_lines(axes: Axes) -> None:
    """Draw thin lines through zero."""
    for line in (axes.axhline, axes.axvline):
        line(0, color=GREY, linewidth=0.5)


PANELS: dict[str, dict[str, str]] = {
    "centring": {
        "layernorm": "layernorm, -simple, detachnorm",
        "adanorm": "adanorm",
        "l1norm": "l1norm",
        "linfnorm": "linfnorm",
        "topknorm:k=4": "topknorm, k=4",
    },
    "dividing only": {
        "rmsnorm": "rmsnorm, scalenorm",
        "prmsnorm:p=0.25": "prmsnorm, p=0.25",
        "crmsnorm": "crmsnorm",
        "fixnorm": "fixnorm",
    },
    "feature by feature": {"dyt": "dyt", "derf": "derf", "none": "none"},
}


def transfer() -> Figure:
    """Plot the output for one of 16 features swept; the others are normal quantiles of mean 0.5."""
    d, swept = 16, torch.linspace(-8, 8, 65, dtype=torch.float64)
    share = torch.arange(1, d, dtype=torch.float64) / d
    fixed = torch.distributions.Normal(0.5, 1.0).icdf(share.float()).double()
    x = torch.cat((swept[:, None], fixed.expand(len(swept), -1)), dim=1)
    for one, other in (
        ("layernorm", "layernorm-simple"),
        ("layernorm", "detachnorm"),
        ("rmsnorm", "scalenorm"),
    ):
        assert torch.allclose(apply(one, x), apply(other, x), atol=1e-4), (one, other)
    figure, panels = pyplot.subplots(1, 3, figsize=(9, 4), sharey=True, layout="constrained")
    for axes, (title, specs) in zip(panels, PANELS.items(), strict=True):
        grey_lines(axes)
        for spec, label in specs.items():
            axes.plot(swept, apply(spec, x)[:, 0].numpy().round(3), label=label)
        axes.set(title=title, xlabel="feature in", ylim=(-4.2, 4.2), xticks=range(-8, 9, 4))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17))
    panels[0].set_ylabel("feature out")
    return figure


UPSTREAM = "upstream ÷ σ"
MODES = {
    "layernorm-simple": "layernorm-simple",
    "adanorm": "adanorm",
    "detachnorm:detach=mean": "detachnorm, mean",
    "detachnorm:detach=std": "detachnorm, std",
    "detachnorm:detach=both": "detachnorm, both",
}


def gradients_of_rows() -> dict[str, tuple[float, float]]:
    """Return mean and deviation of dL/dx · σ within a vector, averaged over 2,000 of 64 features.

    Upstream gradients are 0.5 + 0.8 y + 0.6 · noise: they have a mean and a component along the
    output y, the two parts that the backward pass of LayerNorm removes.
    """
    x, noise = draw(2000, 64, seed=1), draw(2000, 64, seed=2)
    upstream = 0.5 + 0.8 * apply("layernorm-simple:eps=1e-12", x) + 0.6 * noise
    sigma = x.std(-1, correction=0, keepdim=True)
    gradients = {UPSTREAM: upstream}
    for spec, label in MODES.items():
        rows = x.clone().requires_grad_()
        build_norm(spec, 64, eps=1e-12)(rows).backward(upstream)
        assert rows.grad is not None
        gradients[label] = rows.grad * sigma
    return {
        label: (float(g.mean(-1).mean()), float(g.std(-1, correction=0).mean()))
        for label, g in gradients.items()
    }


def gradients() -> Figure:
    """Plot what of an upstream gradient reaches x: its mean, and its deviation as a bar."""
    figure, axes = pyplot.subplots(figsize=(6, 2.4), layout="constrained")
    axes.axvline(0, color=GREY, linewidth=0.5)
    for y, (label, (mean, spread)) in enumerate(gradients_of_rows().items()):
        mean, spread = round(mean, 3), round(spread, 3)
        colour = GREY if label == UPSTREAM else COLOURS[0 if "detach" not in label else 1]
        axes.plot([mean - spread, mean + spread], [y, y], color=colour, linewidth=5, alpha=0.5)
        axes.plot([mean], [y], "o", color=colour)
        axes.text(1.75, y, f"{mean + 0.0:.2f} ± {spread:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(MODES) + 1), [UPSTREAM, *MODES.values()])
    axes.set(xlabel="gradient of a row × σ: mean ± one deviation", xlim=(-1, 2.3))
    axes.invert_yaxis()
    return figure


SIZES = [2**power for power in range(4, 15)]


def estimates(spec: str) -> list[tuple[float, float, float]]:
    """Return 0.1 quantile, mean and 0.9 quantile of constant · statistic, per vector size."""
    found = []
    for n in SIZES:
        x = draw(1000, n, seed=n)
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.abs().sum(-1) / apply(f"{spec},eps=1e-30", x).abs().sum(-1)).float()
        low, high = scale.quantile(torch.tensor([0.1, 0.9])).tolist()
        found.append((round(low, 3), round(float(scale.mean()), 3), round(high, 3)))
    return found


def deviations() -> Figure:
    """Plot how l1norm, topknorm and linfnorm estimate a deviation of 1 on normal vectors."""
    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    axes.axhline(1, color=GREY, linewidth=0.5)
    labels = {"l1norm:bias=false": "l1norm", "topknorm:k=10": "topknorm, k=10"}
    for spec, label in (labels | {"linfnorm:bias=false": "linfnorm"}).items():
        low, mean, high = zip(*estimates(spec), strict=True)
        [line] = axes.plot(SIZES, mean, "o-", label=label, markersize=3)
        axes.fill_between(SIZES, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES[::2], [f"{n:,}" for n in SIZES[::2]])
    axes.set(xlabel="n, features of a row", ylabel="estimate of σ = 1", ylim=(0.4, 2))
    axes.legend(loc="lower right")
    return figure


EPS = "1e-5"


def output_sizes(spec: str, sizes: Tensor) -> Tensor:
    """Return the output RMS ``(n,)`` for 256 features of alternating sign with these RMS."""
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(128)
    return apply(spec, sizes[:, None] * signs).square().mean(-1).sqrt()


def eps_placement() -> Figure:
    """Plot the output RMS against the input RMS, for three ways to use eps."""
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    sizes = torch.logspace(-8, 0, 65, dtype=torch.float64)
    curves = {
        f"rmsnorm:eps={EPS}": "inside the root: x / √(RMS² + ε)",
        f"rmsnorm:eps={EPS},eps_mode=outside": "outside: x / (RMS + ε)",
        f"scalenorm:eps={EPS}": "scalenorm, d=256: x · √d / max(|x|, ε)",
    }
    for spec, label in curves.items():
        axes.plot(sizes, output_sizes(spec, sizes).numpy().round(5), label=label)
    at = torch.tensor([1e-4], dtype=torch.float64)
    for spec in list(curves)[:2]:
        size = output_sizes(spec, at).item()
        axes.plot(at, [round(size, 5)], "o", color=GREY, markersize=4)
        axes.annotate(f"{size:.2g}", (1e-4, size), (8, -4), textcoords="offset points")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set(xlabel="RMS of the row (ε = 1e-5)", ylabel="RMS of the output")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "transfer": transfer,
    "gradients": gradients,
    "deviations": deviations,
    "eps": eps_placement,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, make in FIGURES.items():
            path = folder / f"norm-{name}.svg"
            nothing = {"Date": None, "Creator": None}
            make().savefig(path, format="svg", metadata=nothing)
            path.write_text(_compact(path.read_text(encoding="utf-8")), encoding="utf-8")
            print(path, path.stat().st_size)


def _compact(svg: str) -> str:
    """Round coordinates to a hundredth of a point and strip the ends of lines."""
    svg = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    main()
