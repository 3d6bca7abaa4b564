"""The command line. ``normtrain --help`` imports nothing heavy; commands import what they need."""

from normtrain.cli.app import cli, main

__all__ = ["cli", "main"]
