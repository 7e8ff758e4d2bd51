"""Which settings may differ between a checkpoint and the run that resumes from it."""

import dataclasses
import re
from typing import Any

from jgpt.config import Config, to_dict
from jgpt.training.state_files import CheckpointError

FIXED, FREE = "fixed", "free"

RULES: list[tuple[str, str]] = [
    # How it is computed, not what.
    (r"^model\.(dtype|remat|scan_layers|max_length|\w+_backend|\w+_dropout)$", FREE),
    (r"^model\.(init_std|scale_residual_init)$", FREE),
    (r"^model\.moe\.(dispatch|fused|backend|capacity_factor|group_size|jitter)$", FREE),
    (r"^model\.moe\.(exchange|exchange_factor)$", FREE),
    (r"^model\.moe\.(bias_update_rate|balance_coefficient|z_coefficient)$", FREE),
    (r"^model\.", FIXED),
    # Weights that a run started from are in its checkpoints.
    (r"^init\.", FREE),
    (r"^peft\.(dropout|rate_ratio|adapters)$", FREE),
    (r"^peft\.", FIXED),
    # A tokenizer is judged by its fingerprint, not by how it came about.
    (r"^tokenizer\.", FREE),
    # The position in the data only means something for the same stream of batches.
    (r"^data\.(cache|workers|prefetch|max_bad_records|validation_documents)$", FREE),
    (r"^data\.", FIXED),
    (r"^optimizer\.name$", FIXED),
    (r"^optimizer\.", FREE),
    (r"^objective\.name$", FIXED),
    (r"^objective\.", FREE),
    (r"^train\.seed$", FIXED),
    (r"^(name$|train\.|checkpoint\.|sample\.|mesh\.|forgetting\.)", FREE),
]
"""(pattern, whether it may change); the first match of a setting's dotted name wins."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One setting that is not what it was."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} was {self.before!r} and is {self.now!r}"


def check(step: int, saved: dict[str, Any], config: Config, vocabulary: str) -> list[str]:
    """Lines about settings that changed and may, between a checkpoint and the run that resumes.

    Args:
        step: of the checkpoint.
        saved: its `config` and `vocabulary`.
        config: of this run.
        vocabulary: fingerprint of this run's tokenizer.

    Raises:
        CheckpointError: settings that may not.
    """
    stops, allowed = changes(saved["config"], config)
    if stops:
        raise CheckpointError(
            f"checkpoint {step} belongs to another run: {'; '.join(map(str, stops))}; use the "
            "values it was made with, or another --workdir"
        )
    check_vocabulary(step, saved["vocabulary"], vocabulary)
    return [f"continuing from step {step} with a change: {change}" for change in allowed]


def check_vocabulary(step: int, saved: str, vocabulary: str) -> None:
    """Refuses another tokenizer than the one of training; an empty fingerprint is not compared.

    Raises:
        CheckpointError: they differ.
    """
    if saved and vocabulary and saved != vocabulary:
        raise CheckpointError(
            f"checkpoint {step} was trained with another tokenizer (fingerprint {saved[:12]}, this "
            f"one is {vocabulary[:12]}); use the one in its workdir, or another --workdir"
        )


def changes(saved: dict, config: Config) -> tuple[list[Change], list[Change]]:
    """(changes that stop a resume, changes that do not) between a saved config and this one.

    A setting that the saved config does not know had today's default; one that only the saved
    config knows has no effect any more. Turning `optimizer.ema_decay` on or off stops a resume,
    since it adds or removes part of the state.
    """
    now = _flat(to_dict(config))
    before = {**_flat(to_dict(Config())), **_flat(saved)}
    differing = [
        Change(name, before[name], value) for name, value in now.items() if before[name] != value
    ]
    stops = [c for c in differing if rule(c.name) == FIXED or _changes_structure(c)]
    return stops, [c for c in differing if c not in stops]


def rule(name: str) -> str:
    """`fixed` or `free` of a setting's dotted name."""
    return next(value for pattern, value in RULES if re.search(pattern, name))


def _changes_structure(change: Change) -> bool:
    return change.name == "optimizer.ema_decay" and bool(change.before) != bool(change.now)


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Dotted names to values; lists become tuples, as JSON knows no tuples."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat
