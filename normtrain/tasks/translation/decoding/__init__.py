"""Translation by beam search."""
