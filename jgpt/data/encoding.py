"""What a source's texts become: documents, conversations or labelled records as segments.

Every source hands out strings: the text of a document, or a record in the JSON form of
`conversations` or `labels`. Its kind says what is asked of such a string: what decides whether it
is kept for validation, what a tokenizer is trained on, and how it is encoded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from jgpt.config import DataConfig
from jgpt.data import conversations, labels
from jgpt.data.fitting import Cuts, fit
from jgpt.data.packing import Segment
from jgpt.data.records import DataError
from jgpt.data.transforms import document_segment
from jgpt.tokenizers.base import Tokenizer
from jgpt.tokenizers.chat import ChatError, EncodedChat
from jgpt.tokenizers.chat_formats import open_template


class Encoded(NamedTuple):
    """One text as it goes into rows.

    Attributes:
        segment: what is packed.
        characters: of the text, or of what is learned of it.
        tokens: ids without bos and eos.
        unknown: how many of them are unk.
        cuts: what did not fit into a row.
    """

    segment: Segment
    characters: int
    tokens: int
    unknown: int
    cuts: Cuts = Cuts()


class Encoder(Protocol):
    """Texts of one source to what goes into rows, in their order."""

    def __call__(self, texts: Sequence[str]) -> list[Encoded]: ...


class DocumentEncoder:
    """Documents, learned from first to last token."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        tokenizer = self._tokenizer
        found = []
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            segment = document_segment(ids, len(text), tokenizer.bos_id, tokenizer.eos_id)
            unknown = int(np.count_nonzero(segment.tokens[1:-1] == tokenizer.unk_id))
            found.append(Encoded(segment, len(text), len(ids), unknown))
        return found


class ClassTextEncoder(DocumentEncoder):
    """Documents that a model wrote before it was fine-tuned, to keep what it knew of their class.

    Prior preservation (Ruiz et al. 2023): their targets weigh lambda (`data.class_weight`) in the
    loss, those of the instances, all other sources, 1. The sums are exact: what is added up is
    I + lambda C, the sums over instances and class texts of a batch, its microbatches and devices.
    What is minimised is a mean, and lambda counts in its divisor too: (I + lambda C) /
    (n_I + lambda n_C), with n_I and n_C targets. Of a batch with as many of either that is
    (i + lambda c) / (1 + lambda), i and c being the two mean losses: the sum i + lambda c of that
    paper at another learning rate. How many targets there are of each is said by the weights in
    `data.sources`. In validation every target counts once.
    """

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        super().__init__(tokenizer, config)
        self._weight = config.class_weight

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        found = super().__call__(texts)
        return [x._replace(segment=x.segment._replace(weight=self._weight)) for x in found]


class ChatEncoder:
    """Conversations through `data.chat.template`, each whole in a row, replies learned from.

    The row holds the prompts too; `Segment.weights` says which targets count. One bos stands in
    front, whether the template writes it or not; a reply ends in the template's own token, or in
    eos where that has none.
    """

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self._tokenizer = tokenizer
        self._chat, self._length = config.chat, config.sequence_length
        self._template = open_template(config.chat.template, tokenizer)
        self._knows_context = ".context" in self._template.source
        self._special = set(tokenizer.special_tokens.values())
        self._documents = DocumentEncoder(tokenizer, config)

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._encode(json.loads(text)) for text in texts]

    def prompt(self, messages: Sequence[conversations.Message]) -> list[int]:
        """The ids after which a model writes the reply to these messages."""
        ids = self._template.encode(
            self._tokenizer, self._prepared(messages), add_generation_prompt=True
        )
        return self._with_bos(ids)

    def chat(self, messages: Sequence[conversations.Message]) -> EncodedChat:
        """All tokens of a conversation, and which of them are learned.

        Raises:
            ChatError: the template refuses it.
        """
        encoded = self._template.encode_for_training(self._tokenizer, self._prepared(messages))
        ids, mask = list(encoded.ids), list(encoded.assistant_mask)
        if mask[-1] and ids[-1] not in self._special:
            ids.append(self._tokenizer.eos_id)
            mask.append(True)
        added = len(self._with_bos(ids)) - len(ids)
        return EncodedChat(self._with_bos(ids), [False] * added + mask)

    def _encode(self, record: dict) -> Encoded:
        if "text" in record:
            return self._documents([record["text"]])[0]
        try:
            # A segment of n tokens has n - 1 targets.
            encoded, cuts = fit(record["messages"], self.chat, self._tokenizer, self._length + 1)
            if self._chat.overlong == "error" and any(cuts):
                raise ChatError(
                    f"is longer than data.sequence_length ({self._length}); raise it, or set "
                    "data.chat.overlong to 'cut'"
                )
        except ChatError as error:
            raise DataError(f"record {record['id']}: {error}") from error
        learned = learned_targets(encoded.assistant_mask, self._chat.learn)
        if not learned.any():
            raise DataError(f"record {record['id']}: no token of it is learned from")
        ids = np.asarray(encoded.ids, np.int32)
        characters = len(self._tokenizer.decode(ids[1:][learned]))
        unknown = int(np.count_nonzero(ids == self._tokenizer.unk_id))
        return Encoded(Segment(ids, characters, learned), characters, len(ids), unknown, cuts)

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self._tokenizer.bos_id
        if bos == self._tokenizer.eos_id or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def _prepared(self, messages: Sequence[conversations.Message]) -> list[dict[str, str]]:
        if self._knows_context:
            return list(messages)
        return [{"role": m["role"], "content": conversations.content_of(m)} for m in messages]


def learned_targets(assistant_mask: Sequence[bool], learn: str) -> np.ndarray:
    """[tokens - 1] bool: the targets that count.

    Args:
        assistant_mask: of all tokens, what the assistant wrote.
        learn: `replies`; `last`, only the last of them; `all`, every token.
    """
    mask = np.asarray(assistant_mask, bool)[1:]
    if learn == "all":
        return np.ones_like(mask)
    if learn == "last" and mask.any():
        end = np.flatnonzero(mask)[-1] + 1
        before = np.flatnonzero(~mask[:end])
        start = before[-1] + 1 if before.size else 0
        only = np.zeros_like(mask)
        only[start:end] = True
        return only
    return mask


class LabelEncoder:
    """Texts or pairs of texts with a label, one a row: `bos text eos`, `bos text eos pair eos`.

    The label is read at the last of these; its target counts there and is padding, which no
    objective of labels looks at. What is too long loses tokens at the end of its longer text.
    """

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self._tokenizer, self._length = tokenizer, config.sequence_length

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        return [self._encode(json.loads(text)) for text in texts]

    def _encode(self, record: dict) -> Encoded:
        tokenizer = self._tokenizer
        parts = [tokenizer.encode(record[f]) for f in ("text", "pair") if f in record]
        room = self._length - 1 - len(parts)
        over = max(0, sum(map(len, parts)) - room)
        if room < 1:
            raise DataError(f"data.sequence_length ({self._length}) has no room for a text")
        for _ in range(over):
            max(parts, key=len).pop()
        ids = [tokenizer.bos_id, *(i for part in parts for i in [*part, tokenizer.eos_id])]
        learned = np.zeros(len(ids), bool)
        learned[-1] = True
        tokens = np.asarray([*ids, tokenizer.pad_id], np.int32)
        unknown = sum(part.count(tokenizer.unk_id) for part in parts)
        segment = Segment(tokens, 0, learned, record["label"])
        return Encoded(segment, 0, len(ids), unknown, Cuts(prompts=int(over > 0)))


@dataclass(frozen=True)
class AfterVirtualTokens:
    """What another encoder gives, with the ids -count, ..., -1 in front of every document.

    They stand for learned embeddings (prompt tuning). None of them is predicted, nor predicts:
    their targets do not count. A document longer than a row has them in its first row.
    """

    encoder: Encoder
    count: int

    def __call__(self, texts: Sequence[str]) -> list[Encoded]:
        return [x._replace(segment=self._extended(x.segment)) for x in self.encoder(texts)]

    def _extended(self, segment: Segment) -> Segment:
        before = np.arange(-self.count, 0, dtype=np.int32)
        learned = np.ones(segment.size, bool) if segment.learned is None else segment.learned
        return segment._replace(
            tokens=np.concatenate([before, segment.tokens]),
            learned=np.concatenate([np.zeros(self.count, bool), learned]),
        )


@dataclass(frozen=True)
class Items:
    """What is asked of the strings of a source.

    Attributes:
        asked: what decides the side (training or validation).
        readable: plain text.
        encoder: (tokenizer, config) -> `Encoder`.
    """

    asked: Callable[[str], str]
    readable: Callable[[str], str]
    encoder: Callable[[Tokenizer, DataConfig], Encoder]


def _same(text: str) -> str:
    return text


ITEMS: dict[str, Items] = {
    "text": Items(_same, _same, DocumentEncoder),
    "class_texts": Items(_same, _same, ClassTextEncoder),
    "chat": Items(conversations.asked, conversations.readable, ChatEncoder),
    "labels": Items(labels.asked, labels.asked, LabelEncoder),
}
"""By kind of a source's items."""
