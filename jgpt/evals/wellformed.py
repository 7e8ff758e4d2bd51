"""Are a model's sentences sentences of the microworld, and are they its own?"""

from collections.abc import Callable, Iterable, Iterator

from jgpt.data.microworld import recogniser
from jgpt.evals.writing import Sample
from jgpt.typing import PyTree


def sentences_of(sample: Sample) -> list[str]:
    """Whole sentences of a sample; the last is left out where the limit of tokens cut it off."""
    found = recogniser.sentences(sample.prompt + sample.text)
    if not sample.finished and found and not found[-1].endswith(("。", "！", "？", "」")):
        found.pop()
    return found


def judged(sample: Sample) -> list[tuple[str, bool]]:
    """Every whole sentence, and whether it is well formed."""
    return [(sentence, recogniser.accepts(sentence)) for sentence in sentences_of(sample)]


class VerbatimSearch:
    """Which sentences occur, letter by letter, in a text that passes by in parts."""

    def __init__(self, sentences: Iterable[str]):
        self._wanted = list(sentences)
        self._missing = set(self._wanted)

    def add(self, text: str) -> None:
        """Looks for the sentences not found so far. A sentence must lie within one part."""
        self._missing = {sentence for sentence in self._missing if sentence not in text}

    @property
    def share(self) -> float:
        """Of all sentences (repeated ones count each time), those found; 0 where there are none."""
        found = sum(sentence not in self._missing for sentence in self._wanted)
        return found / len(self._wanted) if self._wanted else 0.0


def make(
    predict: Callable[[PyTree], list[Sample]],
) -> Callable[[PyTree], Iterator[tuple[str, float]]]:
    """An evaluation of texts.

    Args:
        predict: variables of a model -> texts that it wrote.
    """

    def run(state: PyTree) -> Iterator[tuple[str, float]]:
        samples = predict(state)
        verdicts = [good for sample in samples for _, good in judged(sample)]
        yield "sentences", len(verdicts)
        yield "wellformed_share", sum(verdicts) / len(verdicts) if verdicts else 0.0
        yield "replacement_characters", sum(s.text.count("\ufffd") for s in samples)
        yield "dropped_bytes", sum(s.dropped_bytes for s in samples)

    return run
