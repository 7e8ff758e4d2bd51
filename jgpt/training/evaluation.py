"""What a run measures of its model: validation loss now and then, everything else at its end."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jgpt import models, sharding
from jgpt.config import ModelConfig
from jgpt.data import pipeline
from jgpt.data.sources import parse_sources
from jgpt.evals import drift, labels, ngram, perplexity, replies, wellformed
from jgpt.evals.writing import Sample
from jgpt.objectives import Apply
from jgpt.peft.adalora import final_ranks
from jgpt.peft.starts import SPLITS
from jgpt.training import state as train_state
from jgpt.training.setup import Run
from jgpt.training.trainable import make_trainable, unrolled_paths
from jgpt.typing import Batch, PyTree

LABELLED = ("classification", "regression")
"""Objectives whose model gives labels, and no text."""
REPLAY_LIMIT = 100_000_000
"""Positions of training data up to which a finished run reads its batches again (see `replay`)."""


class Evaluator:
    """Evaluations of one run. Compiled parts and validation batches are kept between calls."""

    def __init__(self, run: Run):
        self._run = run
        self._microworld = {s.kind for s in parse_sources(run.config.data.sources)} == {
            "microworld"
        }

    def validate(self, variables: PyTree) -> dict[str, float]:
        """Figures on the validation side of the corpus; {} where it has none."""
        if not self._run.validation_batches:
            return {}
        if self._run.config.objective.name in LABELLED:
            return dict(self._labels(variables))
        batches = map(self._validation_batch, range(len(self._run.validation_batches)))
        evaluation = perplexity.make(
            self._run.eval_step, batches, emits_unk=self._run.tokenizer.emits_unk
        )
        return dict(evaluation(variables))

    @cached_property
    def _labels(self) -> Callable[[PyTree], Iterator[tuple[str, float]]]:
        """Figures of the labels of the validation side."""
        run = self._run

        @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
        def predict(variables: PyTree, batch: Batch) -> dict[str, jax.Array]:
            outputs, _ = run.apply(variables, batch, output="labels")
            return {"outputs": outputs, "labels": batch["labels"]}

        def batches() -> Iterator[Batch]:
            return map(self._validation_batch, range(len(run.validation_batches)))

        return labels.make(predict, batches, run.config.model.num_labels)

    @cached_property
    def _questions(self) -> list[replies.Question]:
        """Of the validation side's conversations; none where the run is no fine-tuning on some."""
        if self._run.config.objective.name != "sft":
            return []
        corpus = self._run.corpus
        held_out = (x for s, x in corpus.validation_items if corpus.sources[s].items == "chat")
        return replies.questions_of(held_out)

    @cached_property
    def _replier(self) -> replies.Replier:
        """Greedy: what is checked and shown is what the model thinks best."""
        config = self._run.config
        sample = dataclasses.replace(config.sample, temperature=0.0, repetition_penalty=1.0)
        parts = sharding.batch_parts(self._run.mesh)
        greedy = dataclasses.replace(config, sample=sample)
        return replies.Replier(greedy, self._run.tokenizer, parts, self._run.apply)

    def check(self, variables: PyTree) -> dict[str, float]:
        """How many held-out questions are answered rightly; {} where none can be checked."""
        asked = [q for q in self._questions if q.answer is not None]
        asked = asked[: self._run.config.data.chat.checked]
        return dict(replies.make(self._replier.write, asked)(variables)) if asked else {}

    def drift(self, variables: PyTree) -> dict[str, float]:
        """How far the model has moved from the one that the run began as, on held-out old text.

        Each process gives its own rows, as in validation.
        """
        run, settings = self._run, self._run.config.forgetting
        if not settings.drift_documents:
            return {}
        data = dataclasses.replace(
            run.config.data,
            sources=settings.drift_sources,
            validation_fraction=settings.drift_fraction,
            validation_documents=settings.drift_documents,
            packing="best_fit",
        )
        share = sharding.row_share(run.mesh)
        batches = pipeline.validation_batches(
            pipeline.open_corpus(data), run.tokenizer, data, data.batch_size, *share
        )
        before, first = self._origin(variables)
        sums = drift.make_sums(before, run.apply, run.config.model.final_softcap)
        compare = partial(jax.jit(sums, out_shardings=sharding.replicated(run.mesh)), first)
        placed = (sharding.device_batch(run.mesh, batch) for batch in batches)
        return dict(drift.make(compare, placed, emits_unk=run.tokenizer.emits_unk)(variables))

    def ranks(self, variables: PyTree) -> dict[str, Any]:
        """`ranks`: module -> rank that the method has left it, a list of them where it is a layer
        of experts; {} where ranks are what the config says."""
        run = self._run
        if run.config.peft.method != "adalora":
            return {}
        count = jax.jit(final_ranks, out_shardings=sharding.replicated(run.mesh))
        found = {}
        for path, ranks in jax.device_get(count(variables[train_state.ADAPTERS])).items():
            places = unrolled_paths(path, run.config.model)
            each = [ranks] if places == [path] else ranks
            found |= {place: rank.tolist() for place, rank in zip(places, each, strict=True)}
        return {"ranks": found}

    def _origin(self, variables: PyTree) -> tuple[Apply, PyTree]:
        """(apply, variables) of the model that the run began as.

        It is there already where adapters alone are trained; otherwise it is read again.
        """
        run = self._run
        fitted = make_trainable(run.config).peft  # its settings have the method's own defaults
        kept = fitted is not None and fitted.settings.init not in SPLITS
        settings = run.config.peft
        if kept and not (settings.train_also or settings.adapters or run.config.model.num_labels):
            rest = {k: v for k, v in variables.items() if k in ("params", "selection_bias")}
            plain = _unprompted if run.config.data.virtual_tokens else models.apply
            return partial(plain, run.config.model), rest
        return run.apply, train_state.variables(run.init())

    def _validation_batch(self, index: int) -> Batch:
        """On the devices; what the objective hides in it is the same at every validation."""
        run = self._run
        batch = sharding.device_batch(run.mesh, run.validation_batches[index])
        if run.corrupt is None:
            return batch
        return run.corrupt(batch, jax.random.fold_in(jax.random.key(0), index))

    def write(self, variables: PyTree, number: int) -> list[Sample]:
        """Texts by the model: continued prompts, or replies to questions after fine-tuning."""
        config = self._run.config
        if config.objective.name != "sft":
            return self._run.writer.write(variables, number)
        asked = self._questions
        if any(config.sample.prompts):
            prompts = itertools.islice(itertools.cycle(config.sample.prompts), number)
            asked = [replies.Question(({"role": "user", "content": p},)) for p in prompts]
        written = self._replier.write(variables, asked[:number])
        return [sample for sample in written if sample is not None]

    def judge(self, samples: list[Sample]) -> list[dict[str, Any]]:
        """The samples as records, each sentence with the recogniser's verdict where it applies."""
        records = [dataclasses.asdict(sample) for sample in samples]
        if self._microworld:
            for record, sample in zip(records, samples):
                record["sentences"] = wellformed.judged(sample)
        return records

    def finish(self, samples: list[Sample], steps: int) -> dict[str, Any]:
        """Figures of a finished run: of its samples, and of counting over the tokens it saw.

        Args:
            samples: written by the final model.
            steps: batches that training consumed.
        """
        figures: dict[str, Any] = {}
        if samples:
            figures["replacement_characters"] = sum(s.text.count("\ufffd") for s in samples)
        if self._microworld and samples:
            figures |= dict(wellformed.make(lambda _: samples)(None))
        if self._run.main_process:
            figures |= self._replay(samples, steps)
        return figures

    def _replay(self, samples: list[Sample], steps: int) -> dict[str, Any]:
        """Reads the batches of the run again, from the first to the last that training consumed.

        The pipeline is deterministic, so these are exactly the tokens seen, whatever was resumed
        or repeated; it costs the time that the pipeline needs for them and no memory.
        """
        run = self._run
        if steps * run.config.data.batch_size * run.config.data.sequence_length > REPLAY_LIMIT:
            return {"replayed": False}
        counter = ngram.NGramCounter(run.tokenizer.vocab_size, run.tokenizer.bos_id)
        sentences = [x for s in samples for x in wellformed.sentences_of(s)]
        search = wellformed.VerbatimSearch(sentences)
        batches = run.all_training_batches()
        for _ in range(steps):
            batch = next(batches)
            counter.add(batch)
            search.add(text_of(batch, run.tokenizer))
        batches.close()
        stats = batches.stats
        figures: dict[str, Any] = {
            "replayed": True,
            "tokens_seen": counter.num_tokens,
            "documents_seen": stats.documents,
            "characters_seen": stats.characters,
            "padding_share": stats.padding_share,
            "unknown_share": stats.unknown_share,
            "epochs": stats.epochs,
            "tokenize_seconds": stats.tokenize_seconds,
            **{name: count for name, count in stats.cuts.items() if count},
        }
        if samples:
            figures["verbatim_share"] = search.share
        # Counting predicts the next token, and compares with nothing else.
        if run.config.objective.name == "pretrain" and run.all_validation_batches():
            figures |= dict(ngram.make(run.all_validation_batches)(counter))
        return figures


def _unprompted(model: ModelConfig, variables: PyTree, batch: Batch, **settings: Any) -> Any:
    """`models.apply` on a batch that has virtual tokens of its adapters'."""
    return models.apply(model, variables, drift.without_virtual_tokens(batch), **settings)


def text_of(batch: dict[str, np.ndarray], tokenizer: Any) -> str:
    """The text of every segment of a batch, one per line; padding is left out."""
    ends = np.diff(batch["segment_ids"], axis=1, append=0) != 0
    lines = []
    for targets, segments, row_ends in zip(batch["targets"], batch["segment_ids"], ends):
        start = 0
        for end in np.flatnonzero(row_ends) + 1:
            if segments[end - 1]:
                lines.append(tokenizer.decode(targets[start:end].tolist()))
            start = end
    return "\n".join(lines)
