"""Check whether a model can be written in a Hugging Face format."""

from __future__ import annotations

from typing import Any

from normtrain.errors import UserError
from normtrain.models.config import CausalLMConfig
from normtrain.norms import NormRules, NormSpec
from normtrain.norms.registry import lookup
from normtrain.norms.spec import spec_text


def refusal(form: str, key: str, value: Any, wanted: str) -> UserError:
    """Return the error for a model that a format does not have.

    Args:
        form: name of the format, such as ``"Llama"``.
        key: of the recipe's model section.
        value: of the key.
        wanted: what the format has instead.
    """
    shown = "null" if value is None else str(value).lower() if type(value) is bool else value
    return UserError(
        f"model.{key} is {shown}, but {form}'s format has {wanted}; train such a model, or use "
        "'normtrain export' without --format, which takes any model"
    )


def require(form: str, section: CausalLMConfig, **wanted: Any) -> None:
    """Check that keys of a model have values that a format has.

    Args:
        form: name of the format.
        section: config of the model.
        wanted: by key, the only value, or a tuple of values.

    Raises:
        UserError: a key has another value.
    """
    for key, value in wanted.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if (found := getattr(section, key)) not in allowed:
            shown = " or ".join("null" if each is None else str(each).lower() for each in allowed)
            raise refusal(form, key, found, f"only {shown}")


def require_plain(form: str, section: CausalLMConfig) -> None:
    """Check the keys of `normtrain.hf.model_config.PLAIN`; as `require`."""
    require(form, section, placement="pre", embedding_norm="none", zero_mean="none")
    require(form, section, head_bias=False, d_stream=(None, section.d_model))


def common_eps(form: str, section: CausalLMConfig, norm: str, **options: Any) -> float:
    """Return the eps that all norms of a pre-norm decoder share.

    Args:
        form: name of the format.
        section: config of the model.
        norm: name of the format's norm.
        options: values of that norm's options in the format.

    Raises:
        UserError: a norm is another one, an option has another value, or there are two eps.
    """
    rules = NormRules.of(section.norm, section.norm_rules)
    return shared_eps(form, {site: rules.spec_for(site) for site in _sites(section)}, norm, options)


def shared_eps(form: str, specs: dict[str, NormSpec], norm: str, options: dict[str, Any]) -> float:
    """Return the eps that norms share, given by module name; as `common_eps`."""
    defaults = lookup(norm).info.options
    found: dict[float, str] = {}
    for site, spec in specs.items():
        values = {**defaults, **spec.options}
        off = [key for key, value in options.items() if values.get(key) != value]
        if spec.name != norm or off:
            raise refusal(form, "norm", f"{spec} (at {site})", f"only {spec_text(norm, options)}")
        found.setdefault(float(str(values["eps"])), site)
    if len(found) > 1:
        (one, here), (other, there) = list(found.items())[:2]
        raise refusal(form, "norm", f"{norm} of eps {one:g} at {here}", f"one eps, not {other:g} "
                      f"at {there}")  # fmt: skip
    return next(iter(found))


def _sites(section: CausalLMConfig) -> list[str]:
    """List the module names of the norms of a pre-norm decoder."""
    layers = [
        f"decoder.layers.{i}.{sublayer}_residual.norm"
        for i in range(section.layers)
        for sublayer in ("attention", "feed_forward")
    ]
    return [*layers, "decoder.norm"]
