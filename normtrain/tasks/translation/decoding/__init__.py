"""Translate by beam search."""
