"""Optimizer state in the host's memory, where it costs a device none.

Moments lie in pinned host memory between updates and travel to the device for each (Ren et al.
2021, "ZeRO-Offload", moves the update too; here it stays where the gradients are). Memory is saved
while activations live; every update pays for moving the moments in and out.
"""

from typing import Any

import jax
import optax

from jgpt.config import ConfigError
from jgpt.typing import PyTree

HOST = "pinned_host"


def on_host(mesh: jax.sharding.Mesh, places: PyTree) -> PyTree:
    """`places` of an optimizer's state, with whatever mirrors a parameter moved to the host.

    What does not (counts, factored moments) is small, and stays.

    Raises:
        ConfigError: the mesh's devices have no such memory.
    """
    device = mesh.local_devices[0] if mesh.local_devices else mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ConfigError(
            f"optimizer.offload: {device.device_kind} has no {HOST} memory (it has "
            f"{', '.join(kinds)}); set it to False"
        )
    return jax.tree.map(lambda place: place.with_memory_kind(HOST) if place.spec else place, places)


def offloaded(
    optimizer: optax.GradientTransformation, places: PyTree
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` with a state that lies at `places` (`on_host`) before and after an update."""

    optimizer = optax.with_extra_args_support(optimizer)

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        state = jax.tree.map(
            lambda x, place: jax.device_put(x, place.with_memory_kind("device")), state, places
        )
        updates, state = optimizer.update(gradients, state, params, **extra)
        return updates, jax.tree.map(jax.device_put, state, places)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
