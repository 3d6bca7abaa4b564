"""``normtrain swap-check``: what other norms would do to somebody's own model."""

from __future__ import annotations

import json

import click

from normtrain.cli.common import debug_option
from normtrain.cli.user_code import at_home, find_factory, make_model, split_target
from normtrain.errors import RunError


@click.command("swap-check", short_help="Try other norms in a model of your own.")
@click.argument("target", metavar="MODULE:FACTORY")
@click.option("--norm", metavar="SPEC", help="One norm for every place, e.g. prmsnorm:p=0.125.")
@click.option(
    "--norm-at",
    metavar="PATTERN=SPEC",
    multiple=True,
    help="Another norm where the module name matches; repeatable, the last match wins.",
)
@click.option(
    "--init",
    type=click.Choice(["keep", "fresh"]),
    default="keep",
    show_default=True,
    help="Whether gain, bias and the like are kept where they mean the same.",
)
@click.option(
    "--input",
    "inputs",
    metavar="[NAME=]SHAPE",
    multiple=True,
    help="2,16,64 for normal floats, int:2,16:1000 for whole numbers below 1000; repeatable.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the model, of inputs that are made up, and of dropout.",
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

    MODULE is a module's name, from this folder as for python -m, or a .py file; FACTORY is a
    function or class in it that is called without arguments, or a model. It gives a torch module
    (Lightning's and Hugging Face's too), or a pair of one and its inputs. Without --input, the
    model is called with these inputs, its example_input_array or its dummy_inputs.

    \b
        normtrain swap-check mine:build_model --norm rmsnorm --input int:2,16:1000
        normtrain swap-check train.py:Net --norm rmsnorm --norm-at 'head.*=layernorm'

    Prints what would be replaced, then a line a check, and changes nothing. Exit code 1: a check
    failed.
    """
    if norm is None and not norm_at:
        raise click.UsageError("give --norm SPEC, --norm-at PATTERN=SPEC or both")
    module, factory = split_target(target)
    from normtrain.norms.rules import parse_rule
    from normtrain.swap.check.probe import generators_kept, seed_all
    from normtrain.swap.check.run import check_swap

    rules = [] if norm is None else [("*", norm)]
    rules += [(pattern, spec) for pattern, spec in map(parse_rule, norm_at)]
    with generators_kept(), at_home(module):
        seed_all(seed)
        found = find_factory(module, factory)
        seed_all(seed)  # again: the model shall not depend on what importing drew
        model, given = make_model(found, target)
        result = check_swap(model, rules, given, specs=inputs, init=init, seed=seed)
    if as_json:
        click.echo(json.dumps({"target": target, **result.plain()}, ensure_ascii=False))
    else:
        click.echo(str(result))
    if result.failed:
        raise RunError(f"{len(result.failed)} of the checks failed: {', '.join(result.failed)}")
