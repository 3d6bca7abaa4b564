"""Read and write the tokenizer of a model folder, as Hugging Face's ``AutoTokenizer`` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from normtrain.data.tokenizers.bpe import bpe_from_folder
from normtrain.data.tokenizers.build import tokenizer_from_json
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import RunError, UserError

TOKENIZER = "tokenizer.json"
OWN = "normtrain_tokenizer.json"
"""The file of a tokenizer that the `tokenizers` library does not have."""


def tokenizer_texts(tokenizer: TextTokenizer, longest: int) -> tuple[dict[str, str], str | None]:
    """Return the files of a tokenizer by name.

    Args:
        tokenizer: of running text.
        longest: longest sequence of the model, in tokens.

    Returns:
        The files, and a message if Hugging Face cannot read them.
    """
    text = tokenizer.to_json()
    plain = json.loads(text)
    if plain.get("kind") not in (None, "bpe"):
        note = (
            f"the {tokenizer.kind} tokenizer is in {OWN}, which normtrain reads and transformers "
            "does not"
        )
        return {OWN: text}, note
    rules = plain.get("rules", plain)
    end = _token_of(rules, tokenizer.eos)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
    }
    return {
        TOKENIZER: json.dumps(rules, indent=2, ensure_ascii=False) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }, None


def _token_of(rules: dict[str, Any], wanted: int) -> str:
    """Return the text of a token id."""
    for token in rules.get("added_tokens", ()):
        if token["id"] == wanted:
            return token["content"]
    return next(word for word, number in rules["model"]["vocab"].items() if number == wanted)


def read_tokenizer(folder: Path) -> TextTokenizer:
    """Read the tokenizer of a model folder, of this package or of the `tokenizers` library.

    Raises:
        UserError: there is none, or it is unsupported.
        RunError: a file cannot be read.
    """
    own = folder / OWN
    if own.is_file():
        return _own(own, _text(own))
    file = folder / TOKENIZER
    if file.is_file():
        try:
            plain = json.loads(_text(file))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is not JSON; save the tokenizer again") from error
        if isinstance(plain, dict) and "kind" in plain:  # an export in the native format
            return _own(file, _text(file))
    return bpe_from_folder(folder)


def _own(file: Path, text: str) -> TextTokenizer:
    try:
        return tokenizer_from_json(text)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8; save the tokenizer again") from error
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}") from error
