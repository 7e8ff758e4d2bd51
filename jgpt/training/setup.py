"""What a run needs before its first step: tokenizer, corpus, mesh, model, step, checkpoints."""

import dataclasses
import importlib.metadata
import itertools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jgpt import cluster, models, peft, sharding
from jgpt.config import Config, ConfigError, TokenizerConfig, to_dict
from jgpt.data import pipeline
from jgpt.data.store import cache_folder
from jgpt.evals.writing import Writer
from jgpt.objectives import Apply, make_objective
from jgpt.tokenizers import Tokenizer, build, load
from jgpt.tokenizers.report import measure
from jgpt.training.assembly import Start, make_steps
from jgpt.training.checkpoints import Checkpoints
from jgpt.training.flops import flops_per_token
from jgpt.training.metrics import peak_flops
from jgpt.training.state import TrainState
from jgpt.training.trainable import make_trainable
from jgpt.training.workdir import Workdir, read_json, write_json
from jgpt.trees import count
from jgpt.typing import Batch

MASK_TOKENS = ("[MASK]", "<mask>")
"""Names of the mask token in the tokenizers of public models."""
VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
FERTILITY_TEXTS = 200
"""The first documents of the corpus, on which the tokenizer's fertility is measured."""
FERTILITY_FIGURES = ("tokens_per_character", "characters_per_token", "bytes_per_token", "unk_share")


@dataclass
class Run:
    """The parts of a run, made from its config."""

    config: Config
    """with what `decide` decides"""
    files: Workdir
    tokenizer: Tokenizer
    corpus: pipeline.Corpus
    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    apply: Apply
    """the model, with whatever is added to it"""
    writer: Writer
    init: Callable[[], TrainState]
    """a fresh state, born in place"""
    abstract: TrainState
    """shapes and shardings of a state"""
    prepare: Callable[[Any, Batch, jax.Array], list[Batch]]
    """the objective's: variables, batch and key to the batches of the next steps"""
    corrupt: Callable[[Batch, jax.Array], Batch] | None
    """the objective's, compiled: a batch of text and a key to what is learned from"""
    train_step: Any
    eval_step: Any
    facts: dict[str, Any]
    """figures that do not change: sizes, devices, versions, tokenizer, corpus"""

    @property
    def main_process(self) -> bool:
        return jax.process_index() == 0

    def kept(self, state: TrainState) -> TrainState:
        """What a checkpoint holds of `state`: adapters go without the model that they adapt, and
        nothing of what the run is held to."""
        state = dataclasses.replace(state, anchor={})
        return state if self.config.peft.method == "none" else dataclasses.replace(state, frozen={})

    def completed(self, state: TrainState) -> TrainState:
        """`state` of a checkpoint, with what `kept` left out of it."""
        adapted = self.config.peft.method != "none"
        if not (adapted or self.config.forgetting.ewc):
            return state
        begun = self.init()
        state = dataclasses.replace(state, anchor=begun.anchor)
        return dataclasses.replace(state, frozen=begun.frozen) if adapted else state

    @property
    def several(self) -> bool:
        """Whether processes give different rows of a batch."""
        return sharding.row_share(self.mesh)[1] > 1

    @property
    def peak_flops(self) -> float | None:
        """FLOP/s of all devices at their best; None where it is not known."""
        peak = self.facts["device"]["peak_flops"]
        return peak and peak * self.facts["device"]["count"]

    def training_batches(self) -> pipeline.BatchIterator:
        """This process's rows of the training batches, from the start."""
        return pipeline.training_batches(
            self.corpus,
            self.tokenizer,
            self.config.data,
            *sharding.row_share(self.mesh),
        )

    @cached_property
    def validation_batches(self) -> list[dict[str, np.ndarray]]:
        """This process's rows of the validation batches."""
        return self._validation(*sharding.row_share(self.mesh))

    def all_training_batches(self) -> pipeline.BatchIterator:
        """All rows of the training batches, from the start."""
        return pipeline.training_batches(self.corpus, self.tokenizer, self.config.data)

    def all_validation_batches(self) -> list[dict[str, np.ndarray]]:
        """All rows of the validation batches."""
        whole = sharding.row_share(self.mesh) == (0, 1)
        return self.validation_batches if whole else self._validation(0, 1)

    def _validation(self, index: int, count: int) -> list[dict[str, np.ndarray]]:
        data = self.config.data
        return pipeline.validation_batches(
            self.corpus, self.tokenizer, data, data.batch_size, index, count
        )


def set_up(config: Config, files: Workdir, start: Start | None = None) -> Run:
    """Makes the parts of a run; nothing is computed on the devices yet.

    Args:
        config: of the run.
        files: its workdir.
        start: where its first weights come from; None for random ones.

    Raises:
        ConfigError, DataError, CheckpointError: one line that says what to change.
    """
    mesh = sharding.make_mesh(config.mesh)
    _check_rows(config, mesh)
    corpus = pipeline.open_corpus(config.data)
    tokenizer = open_tokenizer(config, files, corpus)
    config = decide(config, tokenizer)
    checkpoints = Checkpoints(files.path, config.checkpoint, tokenizer.fingerprint)
    init, abstract, train_step, eval_step = make_steps(config, mesh, start)
    objective, apply = make_objective(config), make_trainable(config).apply()
    corrupt = objective.corrupt
    if corrupt is not None:
        corrupt = jax.jit(corrupt, out_shardings=sharding.batch_sharding(mesh))
    return Run(
        config=config,
        files=files,
        tokenizer=tokenizer,
        corpus=corpus,
        mesh=mesh,
        checkpoints=checkpoints,
        apply=apply,
        writer=Writer(config.model, config.sample, tokenizer, sharding.batch_parts(mesh), apply),
        init=init,
        abstract=abstract,
        prepare=partial(objective.prepare, apply),
        corrupt=corrupt,
        train_step=train_step,
        eval_step=eval_step,
        facts=facts(config, mesh, tokenizer, corpus),
    )


def _check_rows(config: Config, mesh: jax.sharding.Mesh) -> None:
    parts = sharding.batch_parts(mesh) * config.train.microbatches
    if config.data.batch_size % parts:
        raise ConfigError(
            f"data.batch_size ({config.data.batch_size}) cannot be cut into {parts} parts "
            "(mesh.data x mesh.fsdp x mesh.expert x train.microbatches); choose a multiple"
        )
    chunks = 2 * mesh.shape["context"]
    if chunks > 2 and config.data.sequence_length % chunks:
        raise ConfigError(
            f"data.sequence_length ({config.data.sequence_length}) cannot be cut into {chunks} "
            "chunks (2 x mesh.context); choose a multiple"
        )


def open_tokenizer(config: Config, files: Workdir, corpus: pipeline.Corpus) -> Tokenizer:
    """The workdir's tokenizer; in a new workdir a trained or loaded one, which is kept there.

    Raises:
        ConfigError: the workdir's tokenizer was made with other settings.
    """
    kept = cluster.first_says(files.tokenizer_settings.exists())
    tokenizer = None
    if not kept and jax.process_index() == 0:
        cache = cache_folder(config.data.cache)
        tokenizer = build(config.tokenizer, corpus.training_texts, str(cache))
        tokenizer.save(files.tokenizer)
        # Last: where these are, the tokenizer is complete.
        write_json(files.tokenizer_settings, dataclasses.asdict(config.tokenizer))
    cluster.barrier("tokenizer")
    if tokenizer is None:
        _check_tokenizer_settings(read_json(files.tokenizer_settings), config.tokenizer)
        tokenizer = load(files.tokenizer)
    return tokenizer


def _check_tokenizer_settings(saved: dict[str, Any], config: TokenizerConfig) -> None:
    for name, value in dataclasses.asdict(config).items():
        if name in saved and saved[name] != value:
            raise ConfigError(
                f"tokenizer.{name} is {value!r}, but the tokenizer in the workdir was made with "
                f"{saved[name]!r}; set it back or choose another --workdir"
            )


def decide(config: Config, tokenizer: Tokenizer) -> Config:
    """The config with what follows from the tokenizer filled in.

    That is the vocabulary size, the layer scan, the objective's ids and a method's virtual tokens.

    Raises:
        ConfigError: the model has fewer rows than the tokenizer has ids and the objective adds, or
            the method does not fit the objective.
    """
    objective = config.objective
    mask = [tokenizer.special_tokens[n] for n in MASK_TOKENS if n in tokenizer.special_tokens]
    if objective.name == "mlm" and objective.mask_id < 0 and mask:
        objective = dataclasses.replace(objective, mask_id=mask[0])
    if objective.end_id < 0:
        objective = dataclasses.replace(objective, end_id=tokenizer.eos_id)
    model = models.resolve_scan(config.model, jax.default_backend())
    rows = tokenizer.vocab_size + objective.added_ids
    if model.vocab_size == 0:
        model = dataclasses.replace(model, vocab_size=rows)
    if model.vocab_size < rows:
        added = f" and the objective adds {objective.added_ids}" if objective.added_ids else ""
        raise ConfigError(
            f"model.vocab_size is {model.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} ids{added}; set it to 0 or to at least {rows}"
        )
    config = dataclasses.replace(config, model=model, objective=objective)
    return peft.decide(config, tokenizer.encode)


def facts(
    config: Config, mesh: jax.sharding.Mesh, tokenizer: Tokenizer, corpus: pipeline.Corpus
) -> dict[str, Any]:
    """What a reader of the report wants to know of a run before any of its steps."""
    total, active = models.count_params(config.model)
    trainable = make_trainable(config)
    trained = total if trainable.everything else count(trainable.abstract.params)
    device = mesh.devices.flat[0]
    return {
        "config": to_dict(config),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONS_OF},
        },
        "device": {
            "kind": device.device_kind,
            "count": mesh.devices.size,
            "mesh": dict(mesh.shape),
            "processes": jax.process_count(),
            "peak_flops": peak_flops(device.device_kind),
        },
        "model": {
            "parameters": total,
            "active_parameters": active,
            "trained_parameters": trained,
            "flops_per_token": flops_per_token(config),
        },
        "tokenizer": {
            "kind": config.tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint,
            "emits_unk": tokenizer.emits_unk,
            **_fertility(tokenizer, corpus),
        },
        "corpus": dataclasses.asdict(corpus.report),
    }


def _fertility(tokenizer: Tokenizer, corpus: pipeline.Corpus) -> dict[str, Any]:
    found = dataclasses.asdict(
        measure("", tokenizer, list(itertools.islice(corpus.training_texts(), FERTILITY_TEXTS)))
    )
    return {name: found[name] for name in FERTILITY_FIGURES}
