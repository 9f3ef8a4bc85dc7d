"""Evaluation protocols: one module a test, each a function from a model and data to a result."""
