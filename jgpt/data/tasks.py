"""Tasks made of the microworld: questions as conversations, and texts with labels.

Their documents come from another seed than the pretraining corpus, so that no question stands in
what a model was pretrained on.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jgpt.config import LabelsConfig
from jgpt.data import conversations, labels, microworld
from jgpt.data.document import Document
from jgpt.data.records import DataError

SEED = 1
"""Of the microworld's documents; the pretraining corpus has 0."""
SENTENCES = 4
"""Of each text of a pair."""
_TURN = re.compile(r"【(問い|答え)】")
_MARK = re.compile(r"【[^】]*】")


class MicroworldConversations(Sequence[Document | None]):
    """Questions, problems and instructions of the microworld; None for documents that ask nothing.

    A passage with several questions is a conversation of several turns. `answer` is what the last
    reply must come to, where the document has one.
    """

    def __init__(self, size: int, kinds: str = "", seed: int = SEED):
        """
        Args:
            size: documents that are looked at.
            kinds: `qa`, `arithmetic`, `instruction`, several with + between; '' for all.
            seed: of the documents.

        Raises:
            DataError: another kind.
        """
        self._size, self._seed = size, seed
        self._kinds = kinds.split("+") if kinds else list(_READERS)
        if unknown := set(self._kinds) - _READERS.keys():
            raise DataError(
                f"microworld_chat has no kind {unknown.pop()!r}; choose from {', '.join(_READERS)}"
            )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Document | None:
        if not 0 <= index < self._size:
            raise IndexError(f"document {index} of {self._size}")
        if microworld.kind_of(int(index), self._seed) not in self._kinds:
            return None
        document = microworld.document(int(index), self._seed)
        messages = _READERS[document.kind](document.text)
        record: dict[str, Any] = {"messages": messages, "kind": document.kind}
        if document.answer is not None:
            record["answer"] = document.answer
        return Document(conversations.canonical(record, document.id, document.id))


class MicroworldLabels(Sequence[Document | None]):
    """Labelled records of one of `TASKS`; None for documents that the task has no use for."""

    def __init__(self, task: str, size: int, settings: LabelsConfig, seed: int = SEED):
        if task not in TASKS:
            raise DataError(
                f"microworld_labels has no task {task!r}; choose one of {', '.join(TASKS)}"
            )
        self._task, self._size, self._settings, self._seed = task, size, settings, seed

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Document | None:
        if not 0 <= index < self._size:
            raise IndexError(f"document {index} of {self._size}")
        record = TASKS[self._task](int(index), self._seed)
        if record is None:
            return None
        name = f"microworld_labels:{self._task}/{self._seed}/{index}"
        return Document(labels.canonical(record, self._settings, name, name))


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}


def _from_qa(text: str) -> list[dict[str, str]]:
    passage, *rest = _TURN.split(text.removeprefix("【文章】"))
    roles = {"問い": "user", "答え": "assistant"}
    messages = [_turn(roles[mark], said) for mark, said in zip(rest[::2], rest[1::2], strict=True)]
    messages[0] = {**messages[0], "context": passage.strip()}
    return messages


def _from_arithmetic(text: str) -> list[dict[str, str]]:
    question, _, reply = text.removeprefix("【問題】").partition("【考え方】")
    return [_turn("user", question), _turn("assistant", reply)]


def _from_instruction(text: str) -> list[dict[str, str]]:
    question, _, reply = text.removeprefix("【指示】").partition("【応答】")
    return [_turn("user", question), _turn("assistant", reply)]


_READERS: dict[str, Callable[[str], list[dict[str, str]]]] = {
    "qa": _from_qa,
    "arithmetic": _from_arithmetic,
    "instruction": _from_instruction,
}


def kind_of_text(index: int, seed: int) -> dict[str, str]:
    """Two sentences of a document, without its headings, and its kind: six classes."""
    document = microworld.document(index, seed)
    return {"text": "".join(_sentences(document.text)[:2]), "label": document.kind}


def similarity(index: int, seed: int) -> dict[str, str | float] | None:
    """Two texts of four sentences, and five times the share of them that both have.

    The second is the first with some sentences replaced by another story's.
    """
    if {microworld.kind_of(i, seed) for i in (index, index + 1)} - {"story", "encyclopedia"}:
        return None
    one, two = (_sentences(microworld.document(i, seed).text) for i in (index, index + 1))
    if min(len(one), len(two)) < SENTENCES:
        return None
    shared = index % (SENTENCES + 1)
    pair = [a if i < shared else b for i, (a, b) in enumerate(zip(one, two))][:SENTENCES]
    start = index // (SENTENCES + 1) % SENTENCES
    return {
        "text": "".join(one[:SENTENCES]),
        "pair": "".join(pair[start:] + pair[:start]),
        "label": 5.0 * shared / SENTENCES,
    }


def _sentences(text: str) -> list[str]:
    return re.findall(r"[^。]+。?", _MARK.sub("", text).replace("\n", ""))


TASKS: dict[str, Callable[[int, int], dict | None]] = {
    "kind": kind_of_text,
    "similarity": similarity,
}
