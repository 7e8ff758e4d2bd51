"""Eight CPU devices and a compiler in a hurry for every test, set before JAX starts."""

import importlib.metadata
import os
import pathlib

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",  # programs are many and small: a third of the time less
]
if importlib.metadata.version("jax").startswith("0.10."):  # later ones do not know it, and abort
    _flags.append("--xla_cpu_use_fusion_emitters=false")  # half of the time less
for _flag in _flags:
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

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
