"""Text written by a model, ready to be shown and judged."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jgpt.config import ModelConfig, SampleConfig
from jgpt.inference.generate import Generator, pad_prompts, until
from jgpt.models import apply, init_cache, restack
from jgpt.tokenizers import Tokenizer
from jgpt.typing import Array, PyTree


@dataclass(frozen=True)
class Sample:
    """One text: what was given, and what the model wrote after it."""

    prompt: str
    text: str
    finished: bool
    """False where the limit of tokens cut it off"""
    dropped_bytes: int
    """bytes the model wrote that form no character; they are not in `text`"""


def make_generator(
    model: ModelConfig,
    sample: SampleConfig,
    tokenizer: Tokenizer,
    chunk: int = 32,
    model_apply: Callable[..., Any] | None = None,
) -> Generator:
    """A `Generator` for this model and tokenizer. It never draws pad, unk or bos.

    Nor does it draw ids that the tokenizer does not have: public models pad their vocabulary.

    Args:
        model_apply: `models.apply` bound to the model's config, and to adapters where there are
            some; None for the model alone.
    """
    silent = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id} - {tokenizer.eos_id}
    silent |= set(range(tokenizer.vocab_size, model.vocab_size))
    return Generator(
        model_apply or partial(apply, model),
        partial(init_cache, model, cache=sample.cache),
        sample,
        vocab_size=model.vocab_size,
        max_length=model.max_length,
        eos_id=tokenizer.eos_id,
        forbidden=tuple(sorted(silent)),
        chunk=chunk,
    )


def stream_text(
    generator: Generator, tokenizer: Tokenizer, variables: PyTree, prompt: str, key: Array
) -> Iterator[str]:
    """Pieces of the text that follows `prompt` (starts a document where it is empty), as written.

    Args:
        generator: from `make_generator` with the same tokenizer.
        variables: of the model.
        key: random key of this text.

    Raises:
        ValueError: the prompt leaves no room for a token.
    """
    tokens, lengths = pad_prompts([[tokenizer.bos_id, *tokenizer.encode(prompt)]])
    text = tokenizer.streamer()
    for chunk in generator.stream(variables, tokens, lengths, key):
        yield "".join(map(text.push, until(chunk[0].tolist(), tokenizer.eos_id)))
    yield text.finish()


class Writer:
    """Writes samples; the same settings and weights give the same text."""

    def __init__(
        self,
        model: ModelConfig,
        sample: SampleConfig,
        tokenizer: Tokenizer,
        rows_multiple: int = 1,
        model_apply: Callable[..., Any] | None = None,
    ):
        """
        Args:
            model: the architecture.
            sample: prompts (taken in turn), length, and how tokens are drawn.
            tokenizer: of the model.
            rows_multiple: rows are made a multiple of this (the parts that a mesh cuts them into).
            model_apply: see `make_generator`.
        """
        self._model = model
        self._sample = sample
        self._tokenizer = tokenizer
        self._rows_multiple = rows_multiple
        self._generate = make_generator(
            model, sample, tokenizer, sample.max_new_tokens, model_apply
        )
        self._unroll = jax.jit(lambda params: restack(params, model, scan=False))

    def write(self, variables: PyTree, number: int) -> list[Sample]:
        """`number` texts, over the prompts in turn."""
        rows = -(-number // self._rows_multiple) * self._rows_multiple
        prompts = [self._sample.prompts[i % len(self._sample.prompts)] for i in range(rows)]
        bos = self._tokenizer.bos_id
        tokens, lengths = pad_prompts([[bos, *self._tokenizer.encode(p)] for p in prompts])
        variables = {**variables, "params": self._unroll(variables["params"])}
        key = jax.random.key(self._sample.seed)
        written = self._generate(variables, tokens, lengths, key)
        return [self._read(p, ids) for p, ids in zip(prompts[:number], written)]

    def _read(self, prompt: str, ids: list[int]) -> Sample:
        stream = self._tokenizer.streamer()
        text = "".join([*map(stream.push, ids), stream.finish()])
        return Sample(prompt, text, len(ids) < self._sample.max_new_tokens, stream.dropped_bytes)
