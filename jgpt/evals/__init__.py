"""Evaluations. Each module's `make(config, predict, ...)` returns `run(state)`, which yields
(name, value) pairs; `predict` is how the model is asked, `state` the variables it is asked with.
"""
