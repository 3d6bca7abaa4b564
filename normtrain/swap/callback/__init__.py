"""Swap norms inside a Lightning project, and keep its checkpoints honest about them."""
