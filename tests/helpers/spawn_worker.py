"""Run as a script: NormSwap where Lightning spawns processes. Prints a JSON object."""

import json
import logging
import re
import warnings
from typing import Any

import torch
from swapping import Task, fit, kinds

from normtrain import NormSwap, swap_norms

SPAWN = {"strategy": "ddp_spawn", "devices": 2}


def refusal(task: Any) -> str:
    try:
        fit(task, NormSwap("rmsnorm"), **SPAWN)
    except Exception as error:
        return re.sub(r"\s+", " ", str(error))
    return ""


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    found: dict[str, Any] = {}
    task = Task()
    found["refused"], found["left"] = refusal(task), kinds(task)
    swap_norms(task, "rmsnorm")
    fit(task, NormSwap("rmsnorm"), **SPAWN)
    found["trained"] = kinds(task)
    found["moved"] = not torch.equal(task.net[1].weight, torch.ones(8))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
