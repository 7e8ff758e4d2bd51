"""One tokenizer of every kind, trained once."""

import pytest
from tokenizer_corpus import CONFIGS, sentences

from jgpt import tokenizers


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    return sentences(400)


@pytest.fixture(scope="session")
def trained(corpus) -> dict[str, tokenizers.Tokenizer]:
    return {name: tokenizers.train(config, corpus, None) for name, config in CONFIGS.items()}
