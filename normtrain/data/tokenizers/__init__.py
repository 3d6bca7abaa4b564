"""Tokenizers of running text: byte-level BPE, words, bytes and characters."""
