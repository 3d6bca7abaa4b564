"""Measure the inputs, outputs and gradients of each norm while a model trains."""
