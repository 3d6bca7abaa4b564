"""Benchmarks that a user can run on his own machine."""
