"""What a training step does for a method beside its loss and its optimizer, on whole trees.

Each is nothing (0.0, the same gradients, an empty state) for methods that do not ask for it. In the
order of a step: `regulariser` inside of the loss; `gradient` after clipping; the optimizer's
update, with rates by `peft.method.rates`; `after_update`.
"""

from jgpt.peft.adapters import Adapters, Peft, by_site, flat, nested
from jgpt.peft.method import AfterUpdate
from jgpt.typing import Array, PyTree


def regulariser(peft: Peft, adapters: Adapters) -> Array | float:
    """What is added to the mean loss; differentiable in `adapters.trained`."""
    if peft.method.regulariser is None:
        return 0.0
    return peft.method.regulariser(by_site(*adapters), peft.settings)


def gradient(peft: Peft, gradients: PyTree, adapters: Adapters) -> PyTree:
    """The gradients of `adapters.trained` that the optimizer is to have."""
    if peft.method.gradient is None:
        return gradients
    leaves = by_site(*adapters)
    changed = {
        f"{site}/{name}": leaf
        for site, own in by_site(gradients).items()
        for name, leaf in peft.method.gradient(own, leaves[site], peft.settings).items()
    }
    return nested({path: changed[path] for path, _ in flat(gradients)})


def init_state(peft: Peft, trained: PyTree, num_steps: int) -> PyTree:
    """What `after_update` remembers, before the first update; a tree of arrays, to be saved.

    Raises:
        ConfigError: a run of `num_steps` updates that is too short for the method.
    """
    if peft.method.state is None:
        return {}
    return peft.method.state(peft.targets, trained, num_steps)


def after_update(
    peft: Peft, adapters: Adapters, gradients: PyTree, state: PyTree, step: Array, num_steps: int
) -> tuple[PyTree, PyTree]:
    """(trained leaves, state) after an update of the optimizer; pure, for use inside of a jit.

    Args:
        adapters: as the update left them.
        gradients: as the optimizer was given them.
        step: [] int32, updates so far with this one: the first is 1.
        num_steps: in the whole run.
    """
    if peft.method.after_update is None:
        return adapters.trained, state
    return peft.method.after_update(
        AfterUpdate(
            adapters.trained, adapters.constants, gradients, state, step, num_steps, peft.targets
        )
    )
