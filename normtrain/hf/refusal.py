"""Whether a model of ours can be written in another format; one sentence where it can't."""

from __future__ import annotations

from typing import Any

from normtrain.errors import UserError
from normtrain.models.config import CausalLMConfig
from normtrain.norms import NormRules, NormSpec
from normtrain.norms.registry import lookup


def refusal(form: str, key: str, value: Any, wanted: str) -> UserError:
    """The refusal to write a model in a format.

    Args:
        form: whose format, as in ``"Llama"``.
        key: of the recipe's model section.
        value: what it is.
        wanted: what the format has there instead.
    """
    shown = "null" if value is None else str(value).lower() if type(value) is bool else value
    return UserError(
        f"model.{key} is {shown}, but {form}'s format has {wanted}; train such a model, or use "
        "'normtrain export' without --format, which writes any"
    )


def require(form: str, section: CausalLMConfig, **wanted: Any) -> None:
    """See that keys of a model have the only values that a format has.

    Raises:
        UserError: the first that has another.
    """
    for key, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if (found := getattr(section, key)) not in allowed:
            shown = " or ".join("null" if each is None else str(each).lower() for each in allowed)
            raise refusal(form, key, found, f"only {shown}")


def common_eps(form: str, section: CausalLMConfig, norm: str, **options: Any) -> float:
    """The eps of a pre-norm decoder's norms, which must all be the same one.

    Args:
        form: whose format.
        section: the model.
        norm: the name of the norm that the format has.
        options: the values of that norm's options that the format has.

    Raises:
        UserError: another norm, an option with another value, or two values of eps.
    """
    rules = NormRules.of(section.norm, section.norm_rules)
    return shared_eps(form, {site: rules.spec_for(site) for site in _sites(section)}, norm, options)


def shared_eps(form: str, specs: dict[str, NormSpec], norm: str, options: dict[str, Any]) -> float:
    """The eps of norms by their place; see `common_eps`."""
    defaults = lookup(norm).info.options
    found: dict[float, str] = {}
    for site, spec in specs.items():
        values = {**defaults, **spec.options}
        off = [key for key, value in options.items() if values.get(key) != value]
        if spec.name != norm or off:
            wanted = ",".join(f"{key}={str(value).lower()}" for key, value in options.items())
            raise refusal(form, "norm", f"{spec} (at {site})", f"only {norm} with {wanted}")
        found.setdefault(float(str(values["eps"])), site)
    if len(found) > 1:
        (one, here), (other, there) = list(found.items())[:2]
        raise refusal(form, "norm", f"{norm} of eps {one:g} at {here}", f"one eps, not {other:g} "
                      f"at {there}")  # fmt: skip
    return next(iter(found))


def _sites(section: CausalLMConfig) -> list[str]:
    """Full names of a pre-norm decoder's norms."""
    layers = [
        f"decoder.layers.{i}.{sublayer}_residual.norm"
        for i in range(section.layers)
        for sublayer in ("attention", "feed_forward")
    ]
    return [*layers, "decoder.norm"]
