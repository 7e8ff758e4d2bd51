"""What is minimised. One file per objective, one table; the training step serves all of them."""

from collections.abc import Callable

from jgpt.config import Config, ConfigError
from jgpt.objectives import labels, mlm, pretrain, sft, span_corruption
from jgpt.objectives.objective import Apply, Loss, Objective, Prepare, prepare_nothing, ratio

OBJECTIVES: dict[str, Callable[[Config], Objective]] = {
    "pretrain": pretrain.make,
    "sft": sft.make,
    "mlm": mlm.make,
    "span_corruption": span_corruption.make,
    "classification": labels.make_classification,
    "regression": labels.make_regression,
}
"""Name -> function of the run's config that makes the objective."""


def make_objective(config: Config) -> Objective:
    """The objective that `config.objective.name` names.

    Raises:
        ConfigError: there is none of that name.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ConfigError(f"objective.name is {name!r}; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](config)


__all__ = [
    "OBJECTIVES",
    "Apply",
    "Loss",
    "Objective",
    "Prepare",
    "make_objective",
    "prepare_nothing",
    "ratio",
]
