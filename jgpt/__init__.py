"""jgpt: Japanese GPTs in JAX and Flax, from text to a trained, measured model."""

__version__ = "0.1.0"
