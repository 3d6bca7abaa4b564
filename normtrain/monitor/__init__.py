"""Measure what each norm of a model sees, and log it while a model trains."""
