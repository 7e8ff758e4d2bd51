"""The little of the protocol buffer wire format that a SentencePiece model needs edited.

https://protobuf.dev/programming-guides/encoding: a message is a run of fields, each a varint
`number << 3 | kind` and a value whose length the kind tells.
"""

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


def without_field(message: bytes, path: tuple[int, ...]) -> bytes:
    """`message` without the field that the numbers in `path` lead to, through nested messages."""
    result = bytearray()
    position = 0
    while position < len(message):
        start = position
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, position = _read_varint(message, position)
        elif kind == _LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
            position += length
        else:
            position += _FIXED_BYTES[kind]
        if number != path[0]:
            result += message[start:position]
        elif len(path) > 1:
            nested = without_field(message[position - length : position], path[1:])
            result += _varint(tag) + _varint(len(nested)) + nested
    return bytes(result)


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
