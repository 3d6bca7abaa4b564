"""``normtrain swap-check``: try other norms in a model of the user's."""

from __future__ import annotations

import json

import click

from normtrain.cli.common import debug_option, norm_at_option
from normtrain.cli.user_code import find_factory, make_model, split_target, user_environment
from normtrain.errors import RunError


@click.command("swap-check", short_help="Try other norms in a model of your own.")
@click.argument("target", metavar="MODULE:FACTORY")
@click.option("--norm", metavar="SPEC", help="One norm for all, e.g. prmsnorm:p=0.125.")
@norm_at_option
@click.option(
    "--init",
    type=click.Choice(["keep", "fresh"]),
    default="keep",
    show_default=True,
    help="Whether to keep gain, bias and the like where they mean the same.",
)
@click.option(
    "--input",
    "inputs",
    metavar="[NAME=]SHAPE",
    multiple=True,
    help="2,16,64 for normal floats, int:2,16:1000 for integers below 1000; repeatable.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the model, of generated inputs and of dropout.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def swap_check(
    target: str,
    norm: str | None,
    norm_at: tuple[str, ...],
    init: str,
    inputs: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Swap the norms of a copy of your model and check that it still trains and evaluates.

    MODULE is a module name, found from this folder as for python -m, or a .py file; FACTORY is a
    model, or a function or class that is called without arguments. It returns a torch module
    (also of Lightning or Hugging Face), or a pair of one and its inputs. Without --input, the
    model is called with these inputs, its example_input_array or its dummy_inputs.

    \b
        normtrain swap-check mine:build_model --norm rmsnorm --input int:2,16:1000
        normtrain swap-check train.py:Net --norm rmsnorm --norm-at 'head.*=layernorm'

    Prints what would be replaced, then one line for each check: forward and backward in training
    and in eval, saving and loading. Changes nothing. Exit code 1: a check failed.
    """
    if norm is None and not norm_at:
        raise click.UsageError("give --norm SPEC, --norm-at PATTERN=SPEC or both")
    module, factory = split_target(target)
    import torch

    from normtrain.cli.input_specs import generate_inputs
    from normtrain.norms.rules import parse_rule
    from normtrain.swap.check import check_swap
    from normtrain.swap.check.run import seed_all

    rules = [] if norm is None else [("*", norm)]
    rules += map(parse_rule, norm_at)
    with torch.random.fork_rng(), user_environment(module):
        seed_all(seed)
        found = find_factory(module, factory)
        seed_all(seed)  # again: importing must not change the model
        model, given = make_model(found, target)
        chosen = generate_inputs(model, inputs, seed) if inputs else given
        result = check_swap(model, rules, chosen, init=init, seed=seed)
    if as_json:
        click.echo(json.dumps({"target": target, **result.plain()}, ensure_ascii=False))
    else:
        click.echo(str(result))
    if result.failed:
        raise RunError(f"{len(result.failed)} of the checks failed: {', '.join(result.failed)}")
