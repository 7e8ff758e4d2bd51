"""Labelled records: a text or a pair of texts, and a class or a number.

Like conversations they travel as JSON texts: {"text", "pair"?, "label", "id"}, `label` being the
number of its class or a number to predict.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jgpt.config import LabelsConfig
from jgpt.data.conversations import RecordError, cleaned
from jgpt.data.document import Document
from jgpt.data.records import BadRecords, json_lines


def canonical(record: Any, settings: LabelsConfig, where: str, identity: str) -> str:
    """The record as the JSON text that the pipeline handles.

    Raises:
        RecordError: a field is missing or of the wrong type, or the label is no known class.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where}: a JSON {type(record).__name__}, not an object")
    values: dict[str, Any] = {"text": _text(record, settings.text, "text", where)}
    if settings.pair:
        values["pair"] = _text(record, settings.pair, "pair", where)
    values["label"] = _label(record, settings, where)
    return json.dumps(values | {"id": identity}, ensure_ascii=False)


def read_labelled(
    path: Path, bad: BadRecords, clean: Callable[[str], str], settings: LabelsConfig
) -> Iterator[Document]:
    """One document per line of JSON, its text in the form above; blank lines are skipped.

    Raises:
        RecordError: a record that cannot be used.
        DataError: the file is damaged.
    """
    for number, record in json_lines(path, bad):
        where, identity = f"{path}:{number}", f"{path.name}:{number}"
        yield Document(canonical(cleaned(record, clean), settings, where, identity))


def asked(text: str) -> str:
    """The texts of a record without its label."""
    record = json.loads(text)
    return "\n".join(record[field] for field in ("text", "pair") if field in record)


def _text(record: dict, field: str, setting: str, where: str) -> str:
    value = _value(record, field, setting, where)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{where}: field {field!r} holds no text")
    return value


def _value(record: dict, field: str, setting: str, where: str) -> Any:
    if field not in record:
        found = ", ".join(map(str, record)) or "none"
        raise RecordError(
            f"{where} has no field {field!r}; set data.labels.{setting} to one of: {found}"
        )
    return record[field]


def _label(record: dict, settings: LabelsConfig, where: str) -> int | float:
    value = _value(record, settings.label, "label", where)
    if settings.classes:
        if str(value) not in settings.classes:
            raise RecordError(
                f"{where}: field {settings.label!r} is {value!r}, which is none of "
                f"data.labels.classes ({', '.join(settings.classes)})"
            )
        return settings.classes.index(str(value))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise RecordError(
            f"{where}: field {settings.label!r} is {value!r}, no number; set data.labels.classes "
            "to the names of the classes"
        )
    return float(value)
