"""Counts of what went through the pipeline."""

from dataclasses import dataclass

CUTS = ("exchanges_dropped", "prompts_cut", "replies_cut")
PER_SOURCE = ("documents", "characters", "tokens", "unknown", *CUTS)


@dataclass
class Counts:
    """What went through; sums, so that parts add up.

    Attributes:
        documents, characters: taken from the sources (cleaned text).
        tokens: token ids without bos and eos, per source.
        unknown: how many of them are the unk token, per source.
        exchanges_dropped, prompts_cut, replies_cut: per source, what did not fit into a row.
        tokenize_seconds: spent encoding.
    """

    documents: list[int]
    characters: list[int]
    tokens: list[int]
    unknown: list[int]
    exchanges_dropped: list[int]
    prompts_cut: list[int]
    replies_cut: list[int]
    tokenize_seconds: float = 0.0

    @classmethod
    def zero(cls, num_sources: int) -> "Counts":
        return cls(*([0] * num_sources for _ in PER_SOURCE))

    def add(self, other: "Counts") -> None:
        for name in PER_SOURCE:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, [a + b for a, b in zip(mine, theirs, strict=True)])
        self.tokenize_seconds += other.tokenize_seconds


@dataclass
class PipelineStats:
    """What this process's batches were made of, since the iterator was made or its state set.

    Attributes:
        sources: names, in the order of the lists.
        counts: documents, characters, tokens, unk tokens per source; seconds tokenising.
        targets: positions with a target.
        positions: all positions, padding included.
        epochs: how often the average source was read, over all processes.
    """

    sources: list[str]
    sizes: list[int | None]
    share: float
    counts: Counts
    targets: int = 0
    positions: int = 0

    @property
    def documents(self) -> int:
        return sum(self.counts.documents)

    @property
    def characters(self) -> int:
        return sum(self.counts.characters)

    @property
    def tokens(self) -> int:
        return sum(self.counts.tokens)

    @property
    def tokenize_seconds(self) -> float:
        return self.counts.tokenize_seconds

    @property
    def padding_share(self) -> float:
        """Positions without a target over all positions."""
        return 1 - self.targets / self.positions if self.positions else 0.0

    @property
    def unknown_share(self) -> float:
        """The unk token's share of the tokens."""
        return sum(self.counts.unknown) / max(1, self.tokens)

    @property
    def cuts(self) -> dict[str, int]:
        """What did not fit into rows, by kind, over all sources."""
        return {name: sum(getattr(self.counts, name)) for name in CUTS}

    @property
    def epochs(self) -> list[float | None]:
        """Per source: times it was read by all processes, as far as this one can tell.

        None for a stream, whose length is not known.
        """
        pairs = zip(self.counts.documents, self.sizes, strict=True)
        return [size and documents / self.share / size for documents, size in pairs]
