"""Flax Linen modules that the models are made of, one file per part of a block."""
