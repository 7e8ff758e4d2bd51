"""Which device a program is for: the kernels that can run follow from it.

A program may be compiled ahead of time for a device that is not here; the mesh that is set then
says so.
"""

import jax


def device_kind() -> str:
    """Of the devices of the mesh that is set, else of the default one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else jax.devices()[0].device_kind


def device_platform() -> str:
    """The same for the platform: cpu, gpu or tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
