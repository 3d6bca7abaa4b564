"""Benchmarks of the norms on the computer they run on."""
