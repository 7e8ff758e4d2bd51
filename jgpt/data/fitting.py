"""Conversations that are longer than a row: what is cut, and in which order.

1. what follows the last reply goes, then the oldest exchanges, whole, while more than one is left
   (a system message stays);
2. the context of the last question is cut at its end;
3. that question is cut in its middle;
4. the reply is cut at its end, and then has no token that ends the turn.

The prompt keeps a quarter of the row: a longer one is cut no further for the sake of the reply. The
reply is never left out.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jgpt.data.conversations import Message
from jgpt.tokenizers.base import Tokenizer, safe_truncate
from jgpt.tokenizers.chat import ChatError, EncodedChat

Encode = Callable[[Sequence[Message]], EncodedChat]


class Cuts(NamedTuple):
    """What did not fit: exchanges dropped, prompts cut, replies cut."""

    exchanges: int = 0
    prompts: int = 0
    replies: int = 0


def fit(
    messages: Sequence[Message], encode: Encode, tokenizer: Tokenizer, length: int
) -> tuple[EncodedChat, Cuts]:
    """The conversation in at most `length` tokens.

    Raises:
        ChatError: the template alone leaves no room for a reply.
    """
    encoded = encode(messages)
    if len(encoded.ids) <= length:
        return encoded, Cuts()
    suffixes = without_oldest(messages)
    exchanges = bisect.bisect_left(
        suffixes, True, key=lambda shorter: len(encode(shorter).ids) <= length
    )
    exchanges = min(exchanges, len(suffixes) - 1)
    messages = suffixes[exchanges]
    encoded = encode(messages)
    if len(encoded.ids) <= length:
        return encoded, Cuts(exchanges)
    prompt = encoded.assistant_mask.index(True)
    room = max(length - (len(encoded.ids) - prompt), length // 4)
    prompt_cut = False
    while (over := encoded.assistant_mask.index(True) - room) > 0:
        shorter = with_shorter_question(messages, tokenizer, over)
        if shorter is None:
            break
        messages, prompt_cut = shorter, True
        encoded = encode(messages)
    reply_cut = len(encoded.ids) > length
    if reply_cut:
        ids = safe_truncate(encoded.ids[:length], tokenizer)
        encoded = EncodedChat(ids, encoded.assistant_mask[: len(ids)])
        if not any(encoded.assistant_mask):
            raise ChatError(
                "its template and system message alone fill a row; raise data.sequence_length "
                f"({length})"
            )
    return encoded, Cuts(exchanges, int(prompt_cut), int(reply_cut))


def without_oldest(messages: Sequence[Message]) -> list[list[Message]]:
    """The conversation to its last reply, and that without its first, first two, ... exchanges.

    An exchange is a question and what follows it up to the next; the last that has a reply stays.
    """
    roles = [message["role"] for message in messages]
    end = len(roles) - roles[::-1].index("assistant")
    starts = [i for i, role in enumerate(roles[:end]) if role == "user"]
    if not starts:
        return [list(messages[:end])]
    return [[*messages[: starts[0]], *messages[start:end]] for start in starts]


def with_shorter_question(
    messages: Sequence[Message], tokenizer: Tokenizer, tokens: int
) -> list[Message] | None:
    """About `tokens` fewer in the last question: of its context, else of its middle.

    None where there is nothing left to take.
    """
    at = max(i for i, message in enumerate(messages) if message["role"] != "assistant")
    message = dict(messages[at])
    if message.get("context"):
        ids = tokenizer.encode(message["context"])
        message["context"] = tokenizer.decode(ids[: max(0, len(ids) - tokens)])
    elif ids := tokenizer.encode(message["content"]):
        kept = max(0, len(ids) - tokens)
        head = kept - kept // 2
        message["content"] = tokenizer.decode(ids[:head]) + tokenizer.decode(
            ids[head + len(ids) - kept :]
        )
    else:
        return None
    return [*messages[:at], message, *messages[at + 1 :]]
