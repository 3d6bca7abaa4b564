"""A grammar and a lexicon that generate the English-Vietnamese sentence pairs of the phrasebook.

``python -m tools.phrasebook OUT`` writes the files that ``normtrain/data/phrasebook`` ships.
"""
