"""Pure numpy: token ids to a document's segment, and packed rows to the arrays of a batch."""

from collections.abc import Sequence

import numpy as np

from jgpt.data.packing import Row, Segment

Arrays = dict[str, np.ndarray]


def document_segment(ids: Sequence[int], characters: int, bos_id: int, eos_id: int) -> Segment:
    """`bos + ids + eos` as one segment, so that no target ever belongs to another document."""
    tokens = np.empty(len(ids) + 2, np.int32)
    tokens[0], tokens[-1] = bos_id, eos_id
    tokens[1:-1] = ids
    return Segment(tokens, characters)


def rows_to_arrays(
    rows: Sequence[Row], length: int, pad_id: int, label_dtype: type | None = None
) -> Arrays:
    """The batch of some packed rows; an empty row is all padding.

    Args:
        rows: at most `length` positions each. Ids below 0 are virtual tokens; as targets, which
            never count, they are `pad_id`.
        length: S.
        pad_id: fills up inputs and targets.
        label_dtype: np.int32 (classes) or np.float32 (numbers) where segments have labels, one a
            row; None where they have none.

    Returns:
        Arrays [len(rows), length]: `inputs`, `targets` (int32, `pad_id` in padding), `loss_weights`
        (float32, the segment's weight, mostly 1, on every target that counts, 0 in padding),
        `positions` (int32, from 0 in each segment), `segment_ids` (int32, 1, 2, ... in each row, 0
        in padding), `characters` (int32, code points of a segment at its last target that counts,
        0 elsewhere), and with
        `label_dtype` `labels` [len(rows)], which is -1 or NaN for an empty row.
    """
    shape = (len(rows), length)
    inputs = np.full(shape, pad_id, np.int32)
    targets = np.full(shape, pad_id, np.int32)
    positions = np.zeros(shape, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    characters = np.zeros(shape, np.int32)
    loss_weights = np.zeros(shape, np.float32)
    counting = np.arange(length, dtype=np.int32)
    for r, row in enumerate(rows):
        start = 0
        for number, segment in enumerate(row, 1):
            end = start + segment.size
            inputs[r, start:end] = segment.tokens[:-1]
            targets[r, start:end] = np.where(segment.tokens[1:] < 0, pad_id, segment.tokens[1:])
            positions[r, start:end] = counting[: segment.size]
            segment_ids[r, start:end] = number
            learned = 1 if segment.learned is None else segment.learned
            loss_weights[r, start:end] = learned * np.float32(segment.weight)
            counted = np.flatnonzero(loss_weights[r, start:end])
            if counted.size:
                characters[r, start + counted[-1]] = segment.characters
            start = end
    arrays = {
        "inputs": inputs,
        "targets": targets,
        "loss_weights": loss_weights,
        "positions": positions,
        "segment_ids": segment_ids,
        "characters": characters,
    }
    if label_dtype is not None:
        none = -1 if label_dtype is np.int32 else np.nan
        found = [row[0].label if row else none for row in rows]
        arrays["labels"] = np.asarray(found, label_dtype)
    return arrays


def concatenate(parts: Sequence[Arrays]) -> Arrays:
    """The rows of several batches, one below the other."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
