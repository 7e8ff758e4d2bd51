import os
import pathlib
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh


@pytest.fixture
def x64():
    """float64 arrays, so that two correct implementations agree to rounding."""
    with jax.enable_x64(True):
        yield


def _accepted(options):
    try:
        jax.jit(lambda: 0.0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit` with a compiler that spends a sixth of the time, for many small programs."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    options = {name: value for name, value in options.items() if _accepted({name: value})}
    return lambda function: jax.jit(function, compiler_options=options)


@pytest.fixture
def for_an_h100():
    """Inside, programs are lowered for that GPU, whether or not there is one."""
    device = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    mesh = AbstractMesh((1,), ("one",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.fixture(scope="session")
def compile_for_tpu():
    """Runs a program that compiles for the TPU topology in its first argument, and gives what it
    prints; in a process of its own, since the compiler takes its settings from the environment."""
    pytest.importorskip("libtpu", reason="the TPU compiler: pip install libtpu")

    def run(program, topology):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        }
        command = [sys.executable, "-c", program, topology]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return done.stdout

    return run
