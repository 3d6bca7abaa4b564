"""Ids of the special tokens that encoder-decoder models and their tokenizers agree on."""

PAD, BOS, EOS, UNK = 0, 1, 2, 3
