"""A hash of 128 bits for each row of a batch: two numbers of 64 bits, computed apart, column by column.

The key's columns come first. What they alone give is the key's hash, one number more.

A row's hash depends on its own values alone, whatever batch it comes in. Values that differ in a single column never have the same
hash, up to the length from which texts are hashed by BLAKE2. The hash finds changes that happen by themselves. It is no protection
from somebody who makes rows with equal hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

SCHEME = 1
"""The number of this way to hash. It changes with every change of a hash; a test holds hashes of known rows."""
LONG = 512
"""From this many bytes on, a value is hashed by itself, and not together with the others."""

Words = npt.NDArray[np.uint64]
"""A number for each row, or for each value."""

_U = np.uint64
_ODD = (_U(0x9E3779B97F4A7C15), _U(0xC2B2AE3D27D4EB4F))
_SEEDS = (_U(0x243F6A8885A308D3), _U(0x13198A2E03707344))
_MIXERS = (_U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB))
_NULL = _U(0xA4093822299F31D0)
_WORD = 8


class RowHashes(NamedTuple):
    """The two numbers of each row, and the number of its key."""

    first: Words
    second: Words
    key: Words


def row_hashes(batch: pa.RecordBatch, key: Sequence[str], others: Sequence[str]) -> RowHashes:
    """The hashes of each row over the columns of its key and these other columns. The batch has the types of
    `arrow_types.wire_type`, and at least one row."""
    of_key = _folded(_begun(batch.num_rows), [batch.column(name) for name in key])
    first, second = _folded(of_key, [batch.column(name) for name in others])
    return RowHashes(_mixed(first), _mixed(second), _mixed(of_key[0]))


def _begun(rows: int) -> list[Words]:
    return [np.full(rows, seed, _U) for seed in _SEEDS]


def _folded(states: Sequence[Words], arrays: Sequence[pa.Array]) -> list[Words]:
    """The two states of each row after its values in these columns. The given states stay as they are."""
    hashes = list(states)
    for array in arrays:
        words = _words(array)
        nulls = np.flatnonzero(np.asarray(array.is_null())) if array.null_count else None
        for lane, (before, fold) in enumerate(zip(hashes, (_fold_first, _fold_second), strict=True)):
            after = before
            for word in words:
                after = fold(after, word)
            if nulls is not None:
                after[nulls] = fold(fold(before[nulls], _NULL), _NULL)
            hashes[lane] = after
    return hashes


def _fold_first(state: Words, word: Words | np.uint64) -> Words:
    """Takes a word into a state. Different words give different states."""
    state = (state ^ word) * _ODD[0]
    state ^= state >> _U(32)
    return state


def _fold_second(state: Words, word: Words | np.uint64) -> Words:
    """Like `_fold_first`, in another way: two states that agree in one of the ways do not agree in the other."""
    state = (state + word) * _ODD[1]
    state ^= state >> _U(29)
    return state


def _mixed(state: Words) -> Words:
    """The state with each of its bits spread over all bits: sums of such numbers keep what they know of their terms."""
    state = state ^ (state >> _U(30))
    state *= _MIXERS[0]
    state ^= state >> _U(27)
    state *= _MIXERS[1]
    state ^= state >> _U(31)
    return state


def _words(array: pa.Array) -> list[Words]:
    """Words that say each value exactly; a text is said by its two hashes. The words of nulls mean nothing."""
    kind = array.type
    if pa.types.is_list(kind):
        return _list_words(array)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _text_words(array)
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    values = np.frombuffer(array.buffers()[1], f"<u{min(array.type.byte_width, _WORD)}")
    width = max(1, array.type.byte_width // _WORD)
    values = values[width * array.offset : width * (array.offset + len(array))]
    return [values[place::width].astype(_U, copy=False) for place in range(width)]


def _text_words(array: pa.Array) -> list[Words]:
    """The hashes of texts or bytes. Each distinct value is hashed once."""
    coded = array.dictionary_encode()
    if not len(coded.dictionary):
        return [np.zeros(len(array), _U)]
    places = np.asarray(coded.indices.fill_null(0))
    return [hashes[places] for hashes in _value_hashes(coded.dictionary)]


def _value_hashes(values: pa.Array) -> tuple[Words, Words]:
    """The two hashes of each text or bytes; there is at least one, and no null."""
    _, offsets, data = values.buffers()
    ends = np.frombuffer(offsets, "<i4")[values.offset : values.offset + len(values) + 1].astype(np.int64)
    starts, lengths = ends[:-1] - ends[0], np.diff(ends)
    room = np.zeros(ends[-1] - ends[0] + _WORD, np.uint8)
    if data is not None:
        room[:-_WORD] = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    # The word that begins at each byte.
    words = np.ndarray((len(room) - _WORD + 1,), "<u8", room, strides=(1,))
    hashes = [_fold_first(np.full(len(values), seed, _U), lengths.astype(_U)) for seed in _SEEDS]
    short = np.flatnonzero(lengths < LONG)
    longest = int(lengths[short].max(initial=0))
    for begin in range(0, longest, _WORD):
        short = short[lengths[short] > begin]
        # A word that ends behind its text has bytes of the next text: these are shifted out.
        beyond = np.maximum(begin + _WORD - lengths[short], 0).astype(_U) * _U(8)
        word = (words[starts[short] + begin] << beyond) >> beyond
        for lane, fold in enumerate((_fold_first, _fold_second)):
            hashes[lane][short] = fold(hashes[lane][short], word)
    for place in np.flatnonzero(lengths >= LONG):
        told = hashlib.blake2b(room[starts[place] : starts[place] + lengths[place]].tobytes(), digest_size=2 * _WORD).digest()
        hashes[0][place], hashes[1][place] = np.frombuffer(told, "<u8")
    return _mixed(hashes[0]), _mixed(hashes[1])


def _list_words(array: pa.Array) -> list[Words]:
    """The hashes of the items of each list, by their places, and how many items it has."""
    items = array.flatten()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    places = pa.array(np.arange(len(items)) - np.repeat(ends[:-1], lengths))
    of_items = map(_mixed, _folded(_begun(len(items)), [items, places]))
    summed = [np.concatenate([[_U(0)], np.cumsum(hashes, dtype=_U)]) for hashes in of_items]
    return [total[ends[1:]] - total[ends[:-1]] for total in summed] + [lengths.astype(_U)]
