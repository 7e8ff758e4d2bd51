"""Eight CPU devices and a compiler in a hurry for every test, set before JAX starts."""

import importlib.metadata
import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # programs are many and small: a third of the time less
]
OLDER_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
"""Half of the time less. Known to JAX 0.10 alone: whatever else reads it aborts."""


def add_flags(flags: list[str]) -> None:
    """Adds to XLA_FLAGS what they do not say yet."""
    for flag in flags:
        if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


add_flags(FLAGS)
if importlib.metadata.version("jax").startswith("0.10."):
    _without = os.environ["XLA_FLAGS"]
    add_flags([OLDER_FUSIONS])
    import jax

    jax.block_until_ready(jax.numpy.arange(2) + 1)  # reads the flags, once for all
    os.environ["XLA_FLAGS"] = _without  # the TPU's compiler and other processes do without

STATM = pathlib.Path("/proc/self/statm")
MANY_BYTES = 3e9


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped_where_they_fill_memory():
    """Every compiled program stays in memory; after some thousand of them that is gigabytes."""
    yield
    import jax

    if (
        STATM.exists()
        and int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > MANY_BYTES
    ):
        jax.clear_caches()
