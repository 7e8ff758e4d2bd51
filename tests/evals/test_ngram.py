"""Kneser-Ney against a slow direct form of the paper's equations, and by hand."""

import collections
import math

import numpy as np
import pytest

from jgpt.evals import ngram

BOS, EOS = 2, 3


def batch_of(documents: list[list[int]], length: int) -> dict[str, np.ndarray]:
    """Documents packed first-fit into rows, as the pipeline lays them out."""
    rows: list[list[list[int]]] = []
    for document in documents:
        place = next((r for r in rows if sum(map(len, r)) + len(document) - 1 <= length), None)
        if place is None:
            rows.append(place := [])
        place.append(document)
    batch = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("inputs", "targets", "segment_ids", "characters")
    }
    batch["loss_weights"] = np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        at = 0
        for j, document in enumerate(row):
            span = slice(at, at + len(document) - 1)
            batch["inputs"][i, span] = document[:-1]
            batch["targets"][i, span] = document[1:]
            batch["segment_ids"][i, span] = j + 1
            batch["loss_weights"][i, span] = 1
            batch["characters"][i, span] = 1
            at += len(document) - 1
    return batch


def random_documents(rng: np.random.Generator, vocab_size: int, number: int) -> list[list[int]]:
    """Documents with Zipf-like tokens, so that every count of counts occurs."""
    weights = 1 / np.arange(1, vocab_size - 3)
    weights /= weights.sum()
    return [
        [
            BOS,
            *(4 + rng.choice(vocab_size - 4, rng.integers(0, 12), p=weights)),
            EOS,
        ]
        for _ in range(number)
    ]


class Direct:
    """Interpolated modified Kneser-Ney with dictionaries, one probability at a time."""

    def __init__(self, documents: list[list[int]], vocab_size: int):
        self.vocab_size = vocab_size
        trigrams = collections.Counter()
        starts = collections.Counter()
        for document in documents:
            starts[tuple(document[:2])] += 1
            trigrams.update(zip(document, document[1:], document[2:]))
        before_pair = collections.defaultdict(set)
        for a, b, c in trigrams:
            before_pair[b, c].add(a)
        pairs = {pair: len(tokens) for pair, tokens in before_pair.items()} | dict(starts)
        before_token = collections.defaultdict(set)
        for b, c in pairs:
            before_token[c].add(b)
        singles = {(c,): len(tokens) for c, tokens in before_token.items()}
        self.counts = [singles, pairs, dict(trigrams)]
        self.discounts = [self.discount(counts) for counts in self.counts]

    def discount(self, counts: dict) -> list[float]:
        n = [sum(1 for c in counts.values() if c == k) for k in range(5)]
        if 0 in n[1:]:
            return [0.0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        if any(d < 0 or d > k for k, d in enumerate(found, 1)):
            return [0.0, 0.5, 1.0, 1.5]
        return [0.0, *found]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        order = len(context)
        counts, discount = self.counts[order], self.discounts[order]
        lower = self.probability(context[1:], token) if order else 1 / self.vocab_size
        follow = {gram: c for gram, c in counts.items() if gram[:-1] == context}
        total = sum(follow.values())
        if not total:
            return lower
        own = follow.get((*context, token), 0)
        left = sum(discount[min(c, 3)] for c in follow.values())
        return (max(own - discount[min(own, 3)], 0) + left * lower) / total


def fitted(documents: list[list[int]], vocab_size: int, length: int = 32) -> ngram.NGramModel:
    counter = ngram.NGramCounter(vocab_size, BOS)
    for i in range(0, len(documents), 7):
        counter.add(batch_of(documents[i : i + 7], length))
    return counter.fit()


@pytest.mark.parametrize("vocab_size,number", [(12, 400), (40, 60), (9, 5)])
def test_equals_the_direct_form(vocab_size, number):
    rng = np.random.default_rng(number)
    documents = random_documents(rng, vocab_size, number)
    model, direct = fitted(documents, vocab_size), Direct(documents, vocab_size)
    contexts = [(a, b) for a in (BOS, 4, 5, 8) for b in (4, 5, 6, 8)]
    for second, first in [(-1, BOS), *contexts]:
        tokens = np.arange(vocab_size)
        found = model.trigram_probabilities(
            np.full(vocab_size, second), np.full(vocab_size, first), tokens
        )
        context = (first,) if second < 0 else (second, first)
        expected = [direct.probability(context, int(t)) for t in tokens]
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_every_context_sums_to_one():
    rng = np.random.default_rng(1)
    vocab_size = 30
    model = fitted(random_documents(rng, vocab_size, 200), vocab_size)
    tokens = np.arange(vocab_size)
    for second in (-1, BOS, 4, 9, 29):
        for first in (BOS, 4, 17, 29):
            total = model.trigram_probabilities(
                np.full(vocab_size, second), np.full(vocab_size, first), tokens
            ).sum()
            assert total == pytest.approx(1, abs=1e-12)
    assert model.unigram.sum() == pytest.approx(1, abs=1e-12)
    assert model.continuation.sum() == pytest.approx(1, abs=1e-12)


def test_by_hand():
    """Two documents, a b and a c: too few counts of counts, so discounts are 1/2, 1 and 3/2."""
    a, b, c, vocab_size = 4, 5, 6, 7
    model = fitted([[BOS, a, b, EOS], [BOS, a, c, EOS]], vocab_size)
    # Kinds of tokens before a token: a 1 (BOS), b 1, c 1, EOS 2 (b, c); 5 in all.
    lowest = {a: (1 - 0.5) / 5, b: (1 - 0.5) / 5, c: (1 - 0.5) / 5, EOS: (2 - 1) / 5}
    left = (0.5 + 0.5 + 0.5 + 1) / 5 / vocab_size
    assert model.continuation[b] == pytest.approx(lowest[b] + left)
    assert model.continuation[0] == pytest.approx(left)
    # After BOS: a, twice and no other token; the pair keeps its count of 2, discounted by 1.
    p_first = (2 - 1) / 2 + 1 / 2 * (lowest[a] + left)
    found = model.trigram_probabilities(np.array([-1]), np.array([BOS]), np.array([a]))
    assert found[0] == pytest.approx(p_first)
    # After BOS a: b once and c once; the pair a b was seen after one kind of token, BOS.
    p_pair = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * (lowest[b] + left)
    p_trigram = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * p_pair
    found = model.trigram_probabilities(np.array([BOS]), np.array([a]), np.array([b]))
    assert found[0] == pytest.approx(p_trigram)


def test_contexts_do_not_cross_segments():
    """Packed side by side or each alone in a row, documents give the same counts."""
    documents = random_documents(np.random.default_rng(2), 15, 50)
    packed, alone = fitted(documents, 15, length=64), ngram.NGramCounter(15, BOS)
    for document in documents:
        alone.add(batch_of([document], 64))
    np.testing.assert_array_equal(packed.trigrams.keys, alone.fit().trigrams.keys)
    np.testing.assert_allclose(packed.trigrams.kept, alone.fit().trigrams.kept)


def test_only_weighted_targets_count():
    documents = random_documents(np.random.default_rng(3), 15, 20)
    batch = batch_of(documents, 64)
    counter = ngram.NGramCounter(15, BOS)
    counter.add(batch | {"loss_weights": np.zeros_like(batch["loss_weights"])})
    assert counter.num_tokens == 0
    counter.add(batch)
    assert counter.num_tokens == sum(len(d) - 1 for d in documents)


def test_merging_in_parts_changes_nothing():
    rng = np.random.default_rng(4)
    whole, parts = ngram.CountTable(), ngram.CountTable(merge_at=100)
    for _ in range(20):
        keys = rng.integers(0, 500, 90)
        whole.add(keys)
        parts.add(keys)
    for one, other in zip(whole.sorted(), parts.sorted()):
        np.testing.assert_array_equal(one, other)


def test_evaluation_reports_loss_and_bits_per_character():
    documents = random_documents(np.random.default_rng(5), 15, 100)
    batch = batch_of(documents[80:], 64)
    counter = ngram.NGramCounter(15, BOS)
    counter.add(batch_of(documents[:80], 64))
    found = dict(ngram.make(lambda: [batch])(counter))
    direct = Direct(documents[:80], 15)
    nll = [
        -math.log(direct.probability(tuple(d[max(i - 2, 0) : i]), d[i]))
        for d in documents[80:]
        for i in range(1, len(d))
    ]
    assert found["trigram_loss"] == pytest.approx(sum(nll) / len(nll))
    # One code point per target in these batches.
    assert found["trigram_bits_per_character"] == pytest.approx(found["trigram_loss"] / math.log(2))
    assert found["unigram_loss"] < math.log(15)


def test_a_vocabulary_too_large_for_the_keys_is_refused():
    with pytest.raises(ValueError, match="64 bits"):
        ngram.NGramCounter(2**21, BOS)
