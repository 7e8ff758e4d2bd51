"""The little of the protocol buffer wire format that editing a SentencePiece model needs.

https://protobuf.dev/programming-guides/encoding: a message is a run of fields, each a varint
`number << 3 | kind` and a value whose length the kind tells.
"""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


def fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """(number, kind, value) of every field; value is an int for VARINT, else bytes."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = _read_varint(message, position)
            yield number, kind, value
            continue
        if kind == LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
        else:
            length = _FIXED_BYTES[kind]
        yield number, kind, message[position : position + length]
        position += length


def field(number: int, kind: int, value: int | bytes) -> bytes:
    """One field, as `fields` reads it."""
    tag = _varint(number << 3 | kind)
    if kind == VARINT:
        return tag + _varint(value)
    if kind == LENGTH_DELIMITED:
        return tag + _varint(len(value)) + value
    return tag + value


def without_field(message: bytes, path: tuple[int, ...]) -> bytes:
    """`message` without the field that the numbers in `path` lead to, through nested messages."""
    result = bytearray()
    for number, kind, value in fields(message):
        if number != path[0]:
            result += field(number, kind, value)
        elif len(path) > 1:
            result += field(number, kind, without_field(value, path[1:]))
    return bytes(result)


def with_field(message: bytes, path: tuple[int, ...], number: int) -> bytes:
    """`message` with the varint field that `path` leads to set to `number`."""
    if len(path) == 1:
        return without_field(message, path) + field(path[0], VARINT, number)
    return b"".join(
        field(at, kind, with_field(value, path[1:], number) if at == path[0] else value)
        for at, kind, value in fields(message)
    )


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, seven bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        shift += 7
        position += 1
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
