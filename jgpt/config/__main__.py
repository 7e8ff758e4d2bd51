"""Prints `configs/default.py`."""

from jgpt.config.default_page import default_config_source

print(default_config_source(), end="")
