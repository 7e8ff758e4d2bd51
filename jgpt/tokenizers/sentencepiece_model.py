"""Reading and editing the pieces of a SentencePiece `.model` file.

The file is a protocol buffer, `ModelProto` of
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto.
"""

import dataclasses
import struct
from collections.abc import Collection, Iterable

from jgpt.tokenizers import wire

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`SentencePiece.Type`. Text produces normal, user-defined and byte pieces only."""
_PIECES = 1
_TEXT, _SCORE, _TYPE = 1, 2, 3
_ADD_DUMMY_PREFIX = (3, 3)
"""ModelProto.normalizer_spec.add_dummy_prefix: a space before every text."""
_KIND = (2, 3)
"""ModelProto.trainer_spec.model_type: 1 unigram, 2 BPE, 3 word, 4 character."""
UNIGRAM, BPE = 1, 2


@dataclasses.dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its position in the file."""

    text: str
    score: float
    type: int = NORMAL


def pieces(model: bytes) -> list[Piece]:
    """All pieces of a `.model` file's content, in the order of their ids."""
    return [_piece(value) for number, _, value in wire.fields(model) if number == _PIECES]


def kind(model: bytes) -> int:
    """UNIGRAM, BPE, or another `TrainerSpec.ModelType`."""
    for number, _, trainer in wire.fields(model):
        if number == _KIND[0]:
            return next((value for at, _, value in wire.fields(trainer) if at == _KIND[1]), UNIGRAM)
    return UNIGRAM


def with_pieces(model: bytes, added: Iterable[Piece]) -> bytes:
    """The model with more pieces, whose ids follow the present ones."""
    return model + b"".join(
        wire.field(_PIECES, wire.LENGTH_DELIMITED, _message(piece)) for piece in added
    )


def with_control(model: bytes, ids: Collection[int]) -> bytes:
    """The model whose pieces `ids` are control pieces: they keep their ids, out of text's reach."""
    if not ids:
        return model
    found = pieces(model)
    changed = [
        dataclasses.replace(piece, type=CONTROL) if i in ids and piece.type != UNKNOWN else piece
        for i, piece in enumerate(found)
    ]
    others = (
        wire.field(number, kind, value)
        for number, kind, value in wire.fields(model)
        if number != _PIECES
    )
    return with_pieces(b"".join(others), changed)


def extended(model: bytes, added: Iterable[tuple[int, str, bool]], size: int) -> bytes:
    """The model with entries up to id `size` - 1: what a folder adds (id, text, special) and, for
    ids that nothing has, unused pieces."""
    first = len(pieces(model))
    known = {token: (text, special) for token, text, special in added}
    filling = []
    for token in range(first, size):
        text, special = known.get(token, (f"<unused_{token}>", None))
        types = {True: CONTROL, False: USER_DEFINED, None: UNUSED}
        filling.append(Piece(text, 0.0, types[special]))
    return with_pieces(model, filling)


def without_dummy_prefix(model: bytes) -> bytes:
    """The model that puts no space before a text."""
    return wire.with_field(model, _ADD_DUMMY_PREFIX, 0)


def _piece(message: bytes) -> Piece:
    values = {number: value for number, _, value in wire.fields(message)}
    score = struct.unpack("<f", values[_SCORE])[0] if _SCORE in values else 0.0
    return Piece(values[_TEXT].decode(), score, values.get(_TYPE, NORMAL))


def _message(piece: Piece) -> bytes:
    return (
        wire.field(_TEXT, wire.LENGTH_DELIMITED, piece.text.encode())
        + wire.field(_SCORE, wire.FIXED32, struct.pack("<f", piece.score))
        + wire.field(_TYPE, wire.VARINT, piece.type)
    )
