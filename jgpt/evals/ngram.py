"""What a table of counts can do: unigram and interpolated modified Kneser-Ney trigram models.

Fitted on the token ids a model was trained on and scored on the targets it is validated on, they
say how much of the model's loss is more than counting. A context never crosses a segment; the
first target of a segment sees one token only.

Kneser-Ney: Chen and Goodman 1999 ("An empirical study of smoothing techniques for language
modeling"), section 3 and equation 25, with the counts of n-grams that begin a document left as they
are, as in KenLM (Heafield et al. 2013, section 3.1). An n-gram is packed into one int64, so that
counting is sorting.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FALLBACK_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])
"""Of counts 0, 1, 2, 3 and more, where the counts of counts do not give them (KenLM's)."""


class CountTable:
    """How often each int64 key was seen; new keys wait in a buffer until they are worth a merge."""

    def __init__(self, merge_at: int = 1 << 22):
        self._merge_at = merge_at
        self._keys = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def add(self, keys: np.ndarray) -> None:
        """Counts every element of `keys` [N] int64 once."""
        self._waiting.append(keys)
        self._num_waiting += keys.size
        if self._num_waiting >= self._merge_at:
            self._merge()

    def _merge(self) -> None:
        keys, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
        self._waiting, self._num_waiting = [], 0
        self._keys, self._counts = _sum_by_key(
            np.concatenate([self._keys, keys]), np.concatenate([self._counts, counts])
        )

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """(distinct keys in ascending order, how often each was seen)."""
        if self._waiting:
            self._merge()
        return self._keys, self._counts


def _sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct keys ascending, sum of each one's values)."""
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], np.add.reduceat(values, starts) if keys.size else values


def _look_up(
    keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float
) -> np.ndarray:
    """`values` at the positions of `wanted` in the ascending `keys`, or `missing`."""
    if not keys.size:
        return np.full(wanted.shape, missing)
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[place] == wanted, values[place], missing)


@dataclass(frozen=True)
class NGrams:
    """The targets of a batch with what stands before them; all [N] int64.

    `second` is the token two before the target, -1 where the segment begins one before it.
    """

    second: np.ndarray
    first: np.ndarray
    target: np.ndarray
    characters: int
    """raw text code points that the targets stand for"""


def ngrams_of(batch: Mapping[str, np.ndarray]) -> NGrams:
    """Every weighted target of a batch ([B, S] arrays as the pipeline makes them)."""
    inputs, segments = (np.asarray(batch[k]) for k in ("inputs", "segment_ids"))
    same = np.zeros(segments.shape, bool)
    same[:, 1:] = segments[:, 1:] == segments[:, :-1]
    before = np.full(inputs.shape, -1, np.int64)
    before[:, 1:] = inputs[:, :-1]
    second = np.where(same, before, -1)
    scored = np.asarray(batch["loss_weights"]) > 0
    return NGrams(
        second[scored],
        inputs[scored].astype(np.int64),
        np.asarray(batch["targets"])[scored].astype(np.int64),
        int(np.asarray(batch["characters"])[scored].sum()) if "characters" in batch else 0,
    )


class NGramCounter:
    """Accumulates the counts of training batches. Memory grows with distinct trigrams only."""

    def __init__(self, vocab_size: int, bos_id: int):
        """
        Raises:
            ValueError: three ids of this vocabulary do not fit into an int64.
        """
        if (vocab_size + 1) ** 3 >= 2**63:
            raise ValueError(f"trigrams over {vocab_size} tokens do not fit into 64 bits")
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.num_tokens = 0
        self._trigrams = CountTable()

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts every weighted target of the batch."""
        grams = ngrams_of(batch)
        self.num_tokens += grams.target.size
        self._trigrams.add(pack(self.vocab_size, grams.second, grams.first, grams.target))

    def fit(self) -> "NGramModel":
        """The models of everything added so far."""
        return fit(self.vocab_size, self.bos_id, *self._trigrams.sorted())


def pack(vocab_size: int, second: np.ndarray, first: np.ndarray, target: np.ndarray) -> np.ndarray:
    """One int64 per trigram; ascending keys are ascending (second, first, target)."""
    base = vocab_size + 1
    return ((second + 1) * base + first) * base + target


def discounts(counts: np.ndarray) -> np.ndarray:
    """[4] float64: what is taken from counts of 0, 1, 2, and 3 or more (eq. 26 of the paper)."""
    n = np.bincount(counts[counts <= 4], minlength=5).astype(np.float64)
    if (n[1:] == 0).any():
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    found = np.array([0.0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))])
    allowed = (found >= 0) & (found <= np.arange(4))
    return found if allowed.all() else FALLBACK_DISCOUNTS


@dataclass(frozen=True)
class Level:
    """One order of an interpolated model: discounted counts, and the mass left per context.

    `p(w | h) = kept[h, w] + left[h] * p_lower(w | h')`; a context never seen has `left` 1.
    """

    keys: np.ndarray
    kept: np.ndarray
    contexts: np.ndarray
    left: np.ndarray

    def interpolate(self, keys: np.ndarray, contexts: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities [N] of the packed n-grams, given those of the lower order."""
        left = _look_up(self.contexts, self.left, contexts, missing=1.0)
        return _look_up(self.keys, self.kept, keys, missing=0.0) + left * lower


def make_level(keys: np.ndarray, counts: np.ndarray, base: int) -> Level:
    """A `Level` of n-grams packed so that `keys // base` is their context."""
    discount = discounts(counts)[np.minimum(counts, 3)]
    contexts, context_of = np.unique(keys // base, return_inverse=True)
    totals = np.bincount(context_of, weights=counts)
    left = np.bincount(context_of, weights=discount) / totals
    return Level(keys, (counts - discount) / totals[context_of], contexts, left)


@dataclass(frozen=True)
class NGramModel:
    """Unigram and trigram probabilities of the same training tokens."""

    vocab_size: int
    unigram: np.ndarray
    """[V] float64: (count + 1) / (tokens + V)"""
    continuation: np.ndarray
    """[V] float64: the lowest order of the trigram model"""
    bigrams: Level
    trigrams: Level

    def trigram_probabilities(
        self, second: np.ndarray, first: np.ndarray, target: np.ndarray
    ) -> np.ndarray:
        """p(target | second, first) [N] float64; `second` -1 asks for p(target | first)."""
        base = self.vocab_size + 1
        pair = first * base + target
        bigram = self.bigrams.interpolate(pair, first, self.continuation[target])
        packed = pack(self.vocab_size, second, first, target)
        trigram = self.trigrams.interpolate(packed, packed // base, bigram)
        return np.where(second < 0, bigram, trigram)


def fit(vocab_size: int, bos_id: int, keys: np.ndarray, counts: np.ndarray) -> NGramModel:
    """Both models from the distinct packed trigrams, ascending, and their counts."""
    base = vocab_size + 1
    starts = keys < base * base
    pairs = keys % (base * base)
    unigram_counts = np.bincount(keys % base, weights=counts, minlength=vocab_size)[:vocab_size]

    # How many different tokens stand before a pair; a document's start has nothing before it, so
    # its pairs keep their counts.
    follows_start = pairs // base == bos_id
    pair_keys, pair_counts = _sum_by_key(pairs, np.where(follows_start, counts, 1))
    bigrams = make_level(pair_keys, pair_counts, base)

    kinds_before = np.bincount(pair_keys % base, minlength=vocab_size)[:vocab_size]
    lowest = make_level(np.flatnonzero(kinds_before), kinds_before[kinds_before > 0], base)
    tokens = np.arange(vocab_size)
    continuation = lowest.interpolate(
        tokens, np.zeros_like(tokens), np.full(vocab_size, 1 / vocab_size)
    )
    return NGramModel(
        vocab_size=vocab_size,
        unigram=(unigram_counts + 1) / (counts.sum() + vocab_size),
        continuation=continuation,
        bigrams=bigrams,
        trigrams=make_level(keys[~starts], counts[~starts], base),
    )


@dataclass
class Score:
    """Sums of negative log-likelihood in nats over the same targets."""

    unigram: float = 0.0
    trigram: float = 0.0
    tokens: int = 0
    characters: int = 0


def score(model: NGramModel, batches: Iterable[Mapping[str, np.ndarray]]) -> Score:
    """What the models give the weighted targets of `batches`."""
    total = Score()
    for batch in batches:
        grams = ngrams_of(batch)
        trigram = model.trigram_probabilities(grams.second, grams.first, grams.target)
        total.unigram -= float(np.log(model.unigram[grams.target]).sum())
        total.trigram -= float(np.log(trigram).sum())
        total.tokens += grams.target.size
        total.characters += grams.characters
    return total


def make(
    validation: Callable[[], Iterable[Mapping[str, np.ndarray]]],
) -> Callable[[NGramCounter], Iterator[tuple[str, float]]]:
    """An evaluation whose state is the counter of the training batches.

    Args:
        validation: gives the batches that the model's validation loss is taken over.
    """

    def run(counter: NGramCounter) -> Iterator[tuple[str, float]]:
        found = score(counter.fit(), validation())
        yield "unigram_loss", found.unigram / found.tokens
        yield "trigram_loss", found.trigram / found.tokens
        if found.characters:
            yield "unigram_bits_per_character", found.unigram / np.log(2) / found.characters
            yield "trigram_bits_per_character", found.trigram / np.log(2) / found.characters

    return run
