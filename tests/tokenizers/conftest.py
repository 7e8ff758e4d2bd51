"""One tokenizer of every kind, trained once."""

import pytest

from jgpt import tokenizers
from tests.tokenizers.tokenizer_corpus import CONFIGS, sentences


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return sentences(400)


@pytest.fixture(scope="session")
def trained(corpus) -> dict[str, tokenizers.Tokenizer]:
    return {name: tokenizers.train(config, corpus, None) for name, config in CONFIGS.items()}
