"""Replies of a model to questions, through its chat template: written, and checked where they can
be.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from jgpt.config import Config
from jgpt.data.conversations import Message, content_of
from jgpt.data.document import Document
from jgpt.data.encoding import ChatEncoder
from jgpt.data.microworld import check_answer
from jgpt.evals.writing import Sample
from jgpt.inference.generate import Generator, pad_prompts, until
from jgpt.models import apply, init_cache, restack
from jgpt.tokenizers import Tokenizer
from jgpt.tokenizers.chat_formats import open_template, stop_id
from jgpt.typing import PyTree

ROWS = 32
"""Questions that are answered side by side."""


@dataclass(frozen=True)
class Question:
    """
    Attributes:
        messages: up to the one that is to be replied to.
        answer: what a reply must come to; None where nothing says.
        kind: of the question; '' where it is of none.
    """

    messages: tuple[Message, ...]
    answer: str | None = None
    kind: str = ""

    def is_right(self, reply: str) -> bool:
        """Whether the reply comes to `answer`, by the rules of `microworld.check_answer`."""
        asked = content_of(self.messages[-1])
        return check_answer(Document("", kind=self.kind, answer=self.answer, prompt=asked), reply)


def questions_of(items: Iterable[str]) -> list[Question]:
    """The last exchange of every conversation among these records, without its reply."""
    found = []
    for item in items:
        record = json.loads(item)
        if "messages" not in record:
            continue
        messages = record["messages"]
        end = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        question = Question(tuple(messages[:end]), record.get("answer"), record.get("kind", ""))
        found.append(question)
    return found


class Replier:
    """Writes replies; the same settings and weights give the same ones.

    A reply ends with the template's end of turn. Questions that leave no room for
    `sample.max_new_tokens` in `data.sequence_length` are answered in what room there is, and passed
    over where there is none.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        rows_multiple: int = 1,
        model_apply: Callable[..., Any] | None = None,
    ):
        """
        Args:
            config: of the run; `model`, `sample`, `data` are read.
            tokenizer: of the model.
            rows_multiple: rows are made a multiple of this (the parts that a mesh cuts them into).
            model_apply: `models.apply` bound to the model's config, and to adapters where there are
                some; None for the model alone.
        """
        self._tokenizer, self._sample = tokenizer, config.sample
        self._encoder = ChatEncoder(tokenizer, config.data)
        self._stop = stop_id(open_template(config.data.chat.template, tokenizer), tokenizer)
        self._rows = -(-ROWS // rows_multiple) * rows_multiple
        self._longest = config.data.sequence_length - 1
        model = config.model
        silent = {tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id} - {self._stop}
        silent |= set(range(tokenizer.vocab_size, model.vocab_size))
        self._generate = Generator(
            model_apply or partial(apply, model),
            partial(init_cache, model, cache=config.sample.cache),
            config.sample,
            vocab_size=model.vocab_size,
            max_length=model.max_length,
            eos_id=self._stop,
            forbidden=tuple(sorted(silent)),
        )
        self._unroll = jax.jit(lambda params: restack(params, model, scan=False))

    def write(self, variables: PyTree, questions: Sequence[Question]) -> list[Sample | None]:
        """A reply to each; None where the question is too long."""
        variables = {**variables, "params": self._unroll(variables["params"])}
        prompts = [self._encoder.prompt(question.messages) for question in questions]
        fitting = [i for i, ids in enumerate(prompts) if len(ids) <= self._longest]
        samples: list[Sample | None] = [None] * len(questions)
        for start in range(0, len(fitting), self._rows):
            chosen = fitting[start : start + self._rows]
            rows = [prompts[i] for i in chosen]
            rows += rows[:1] * (self._rows - len(rows))
            key = jax.random.fold_in(jax.random.key(self._sample.seed), start)
            written = self._generate(variables, *pad_prompts(rows), key)
            for i, ids in zip(chosen, written[: len(chosen)], strict=True):
                samples[i] = self._read(questions[i], ids)
        return samples

    def _read(self, question: Question, ids: list[int]) -> Sample:
        stream = self._tokenizer.streamer()
        kept = until(ids, self._tokenizer.eos_id)
        text = "".join([*map(stream.push, kept), stream.finish()])
        shown = "\n".join(f"{m['role']}: {content_of(m)}" for m in question.messages)
        finished = len(ids) < self._sample.max_new_tokens
        return Sample(f"{shown}\nassistant: ", text, finished, stream.dropped_bytes)


def make(
    predict: Callable[[PyTree, Sequence[Question]], list[Sample | None]],
    questions: Sequence[Question],
) -> Callable[[PyTree], Iterator[tuple[str, float]]]:
    """The share of questions that are answered rightly, in all and by kind.

    Args:
        predict: `Replier.write`, greedy for figures that mean something.
        questions: those without an answer are left out.
    """
    checkable = [question for question in questions if question.answer is not None]

    def run(state: PyTree) -> Iterator[tuple[str, float]]:
        right = defaultdict(list)
        finished = []
        for question, sample in zip(checkable, predict(state, checkable), strict=True):
            if sample is not None:
                right[question.kind].append(question.is_right(sample.text))
                finished.append(sample.finished)
        if not finished:
            return
        yield "checked_questions", len(finished)
        yield "checked_accuracy", sum(map(sum, right.values())) / len(finished)
        yield "checked_finished", sum(finished) / len(finished)
        for kind, verdicts in sorted(right.items()):
            if kind:
                yield f"checked_accuracy/{kind}", sum(verdicts) / len(verdicts)

    return run
