"""Records of conversations: every format that is read, checked, and brought into one form.

| format | fields |
| --- | --- |
| messages | `messages`: [{`role`, `content`}, ...] |
| ShareGPT | `conversations`: [{`from`, `value`}, ...] |
| instruction | `instruction`, `output` (or `response`), optional `input` (or `context`) |
| input | `input`, `output` |
| prompt | `prompt`, `completion`: strings, or both lists of messages |
| text | `text`: a document, learned from as in pretraining |

A `system` string may stand beside strings. An `answer` says what the last reply must come to, and
`kind` what sort of question it is (see `evals.replies`). Other fields are ignored.

The one form is a JSON text, so that stores, shuffling and bookmarks handle conversations as they
handle documents. It is {"messages": [{"role", "content", "context"?}], "answer"?, "kind"?, "id"},
or {"text", "id"}. `context` is the material that an instruction is about (the field `input`); a
message may bring its own.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jgpt.data.document import Document
from jgpt.data.records import BadRecords, DataError, json_lines

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
}
"""Names of roles as they are met, and as they are written here."""

Message = dict[str, str]
Record = Mapping[str, Any]


class RecordError(DataError):
    """A record that is of no known format; the message names file, record and field."""


def messages_of(record: Record, where: str) -> list[Message]:
    """The messages of a record of any format but `text`.

    Args:
        record: a parsed JSON object.
        where: file and record number, for the message.

    Raises:
        RecordError: a field is missing, of the wrong type or empty, or nobody answers.
    """
    read = _reader(record, where)
    messages = read(record, where)
    _check_turns(messages, where)
    return messages


def canonical(record: Any, where: str, identity: str) -> str:
    """The record as the JSON text that the pipeline handles.

    Raises:
        RecordError: as `messages_of`.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"{where}: a JSON {type(record).__name__}, not an object")
    values: dict[str, Any]
    if "text" in record and not _FORMATS.keys() & record.keys():
        values = {"text": _text(record, "text", where)}
    else:
        values = {"messages": messages_of(record, where)}
    for field in ("answer", "kind"):
        if record.get(field) is not None:
            values[field] = _text(record, field, where)
    return json.dumps(values | {"id": identity}, ensure_ascii=False)


def read_conversations(
    path: Path, bad: BadRecords, clean: Callable[[str], str]
) -> Iterator[Document]:
    """One document per line of JSON, its text in the one form; blank lines are skipped.

    Args:
        path: a JSONL file; may end in .gz or .zst.
        bad: counts lines that are no UTF-8 or no JSON.
        clean: rewrites the texts.

    Raises:
        RecordError: a record that cannot be used.
        DataError: the file is damaged.
    """
    for number, record in json_lines(path, bad):
        text = canonical(cleaned(record, clean), f"{path}:{number}", f"{path.name}:{number}")
        yield Document(text)


def cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    """A JSON value with every string in it rewritten."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {name: cleaned(item, clean) for name, item in value.items()}
    if isinstance(value, list):
        return [cleaned(item, clean) for item in value]
    return value


def asked(text: str) -> str:
    """What decides whether a conversation is kept for validation: all but the replies.

    The same question is thus never on both sides, however it is answered.
    """
    record = json.loads(text)
    if "text" in record:
        return record["text"]
    return "\n".join(content_of(m) for m in record["messages"] if m["role"] != "assistant")


def readable(text: str) -> str:
    """All of a conversation as plain text: what a tokenizer is trained on."""
    record = json.loads(text)
    return record["text"] if "text" in record else "\n".join(map(content_of, record["messages"]))


def content_of(message: Message) -> str:
    """What a message says, its context after a blank line."""
    context = message.get("context")
    return f"{message['content']}\n\n{context}" if context else message["content"]


def _reader(record: Record, where: str) -> Callable[[Record, str], list[Message]]:
    for field, reader in _FORMATS.items():
        if field in record:
            return reader
    found = ", ".join(map(str, record)) or "none"
    raise RecordError(
        f"{where} has none of the fields {', '.join(_FORMATS)}, text; it has: {found}"
    )


def _text(record: Record, field: str, where: str, *, empty: bool = False) -> str:
    """A field that holds text; '' where it may be empty and is missing or null."""
    value = record.get(field)
    if empty and value is None:
        return ""
    if field not in record:
        raise RecordError(f"{where} has no field {field!r}; it has: {', '.join(map(str, record))}")
    if not isinstance(value, str):
        raise RecordError(
            f"{where}: field {field!r} holds a JSON {type(value).__name__}; write a string"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RecordError(f"{where}: field {field!r} holds half a character of UTF-16") from None
    if not (empty or value.strip()):
        raise RecordError(f"{where}: field {field!r} is empty; leave the record out or fill it in")
    return value


def _first_of(record: Record, *fields: str) -> str:
    """The first of these fields that the record has; the first of all where it has none."""
    return next((field for field in fields if field in record), fields[0])


def _list(record: Record, field: str, role: str, content: str, where: str) -> list[Message]:
    value = record.get(field)
    if not isinstance(value, list) or not value:
        raise RecordError(f"{where}: field {field!r} must be a list of messages, and not empty")
    messages = []
    for i, item in enumerate(value):
        here = f"{where}: {field}[{i}]"
        if not isinstance(item, Mapping):
            raise RecordError(f"{here} is a JSON {type(item).__name__}, not an object")
        name = _text(item, role, here)
        if name not in ROLES:
            raise RecordError(f"{here}: field {role!r} is {name!r}; known: {', '.join(ROLES)}")
        message = {"role": ROLES[name], "content": _text(item, content, here)}
        if context := _text(item, "context", here, empty=True).strip():
            message["context"] = context
        messages.append(message)
    return messages


def _from_messages(record: Record, where: str) -> list[Message]:
    return _with_system(record, _list(record, "messages", "role", "content", where), where)


def _from_sharegpt(record: Record, where: str) -> list[Message]:
    found = _list(record, "conversations", "from", "value", where)
    return _with_system(record, found, where)


def _from_instruction(record: Record, where: str) -> list[Message]:
    user = {"role": "user", "content": _text(record, "instruction", where)}
    context = _text(record, _first_of(record, "input", "context"), where, empty=True)
    if context.strip():
        user["context"] = context
    reply = _text(record, _first_of(record, "output", "response"), where)
    return _with_system(record, [user, {"role": "assistant", "content": reply}], where)


def _from_prompt(record: Record, where: str) -> list[Message]:
    if isinstance(record["prompt"], list):
        return [
            *_list(record, "prompt", "role", "content", where),
            *_list(record, "completion", "role", "content", where),
        ]
    return _pair(record, "prompt", "completion", where)


def _from_input(record: Record, where: str) -> list[Message]:
    return _pair(record, "input", "output", where)


def _pair(record: Record, question: str, reply: str, where: str) -> list[Message]:
    messages = [
        {"role": "user", "content": _text(record, question, where)},
        {"role": "assistant", "content": _text(record, reply, where)},
    ]
    return _with_system(record, messages, where)


def _with_system(record: Record, messages: list[Message], where: str) -> list[Message]:
    system = _text(record, "system", where, empty=True)
    return [{"role": "system", "content": system}, *messages] if system.strip() else messages


_FORMATS: dict[str, Callable[[Record, str], list[Message]]] = {
    "messages": _from_messages,
    "conversations": _from_sharegpt,
    "instruction": _from_instruction,
    "prompt": _from_prompt,
    "input": _from_input,
}
"""The field that tells a format, in the order in which they are looked for, and how it is read."""


def _check_turns(messages: list[Message], where: str) -> None:
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise RecordError(f"{where}: message {roles.index('system', 1)} is a second or late system")
    if "assistant" not in roles:
        raise RecordError(
            f"{where}: no message of the assistant's, so nothing to train on; leave the record out"
        )
    if roles[0] == "assistant":
        raise RecordError(f"{where}: the assistant speaks first, with nothing to answer")
