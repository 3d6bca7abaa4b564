"""An embedded English-Vietnamese phrasebook: a grammar and a lexicon that write sentence pairs."""

from normtrain.data.phrasebook.generate import PHRASEBOOK_VERSION, phrasebook_splits

__all__ = ["PHRASEBOOK_VERSION", "phrasebook_splits"]
