"""Every config file: short, valid, and with its golden parameter table."""

import importlib
import pathlib

import jax
import pytest

from configs import default
from jgpt import models, trees
from jgpt.config import from_config_dict

CONFIGS = pathlib.Path(default.__file__).parent
GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"
NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")


def load(name):
    return from_config_dict(importlib.import_module(f"configs.{name}").get_config())


def parameter_table(name):
    """Parameters of a config, with the tokenizer's vocabulary where it leaves that open."""
    config = load(name)
    rows = config.tokenizer.vocab_size + config.objective.added_ids
    values = {"vocab_size": config.model.vocab_size or rows}
    model = config.model.__class__(**{**config.model.__dict__, **values})
    return trees.table(models.abstract_params(model))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_equal_the_golden_table(name):
    """To write the tables anew: python -m tests.test_configs"""
    assert parameter_table(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "default"])
def test_a_config_is_a_short_page(name):
    text = (CONFIGS / f"{name}.py").read_text(encoding="utf-8")
    body = text[text.index("def get_config") :]
    assert len(body.splitlines()) <= 22, "a config is a diff of at most 20 lines"
    assert f"--config=configs/{name}.py" in text, "the docstring names the command"


def test_published_sizes():
    sizes = {"mixtral_8x7b": 46_702_792_704, "gpt2_small": 124_439_808 - (50257 - 32000) * 768}
    for name, size in sizes.items():
        assert parameter_table(name).splitlines()[-1] == f"total  {size:,}"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for each in NAMES:
        (GOLDEN / f"{each}.txt").write_text(parameter_table(each))
