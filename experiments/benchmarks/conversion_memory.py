"""Peak host memory of converting a model folder: from_hf, to_hf, to_hf in bfloat16.

    python experiments/benchmarks/conversion_memory.py [--gigabytes=2]

Writes a random Llama of that size in float32, then runs each conversion in a process of its own and
reads its peak resident memory, pages of mapped files included. The bound is 1.3 times the largest
tensor plus 500 MB; Python with JAX and Orbax imported is part of it.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "experiments" / "benchmarks")]

import harness
import numpy as np

from jgpt.config import ModelConfig

ALLOWANCE = 500e6
FACTOR = 1.3
IN_A_PROCESS = """
import pathlib, re, sys
from jgpt import convert
def peak():  # unlike ru_maxrss, without that of the process that started this one
    return re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
before = peak()
status = convert.main(sys.argv[1:])
print(before, peak())
sys.exit(status)
"""


def llama(gigabytes: float) -> ModelConfig:
    """Of Llama's proportions; a layer has 0.2 GB in float32, the embedding 0.26 GB."""
    layers = max(round((gigabytes - 0.52) / 0.2024), 1)
    return ModelConfig(
        vocab_size=32000,
        num_layers=layers,
        hidden_size=2048,
        num_heads=16,
        intermediate_size=5504,
    )


def write_folder(path: pathlib.Path, model: ModelConfig) -> int:
    """Random weights; the largest tensor's bytes."""
    from jgpt.interop.export import export
    from jgpt.interop.weights import unrolled_shapes

    shapes = unrolled_shapes(model)
    generator = np.random.default_rng(0)

    def parameter(name: str) -> np.ndarray:
        return generator.standard_normal(shapes[name], np.float32)

    export(path, model, parameter, dtype=np.dtype(np.float32), largest_shard=1_000_000_000)
    return max(4 * int(np.prod(shape)) for shape in shapes.values())


def measure(*arguments: str) -> tuple[float, float, float]:
    """(peak bytes, bytes before it began, seconds) of one command of `jgpt.convert`."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak = done.stdout.splitlines()[-1].split()
    return 1024.0 * int(peak), 1024.0 * int(before), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", default=None, help="for the files; a temporary one if unset")
    options = parser.parse_args()
    model = llama(options.gigabytes)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = pathlib.Path(name)
        largest = write_folder(folder / "model", model)
        bound = FACTOR * largest + ALLOWANCE
        size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
        print(
            f"{size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, bound "
            f"{bound / 1e6:.0f} MB"
        )
        rows = []
        for case, arguments in (
            ("from_hf", ("from_hf", "--folder={f}/model", "--workdir={f}/run")),
            ("to_hf", ("to_hf", "--workdir={f}/run", "--folder={f}/again")),
            (
                "to_hf, bfloat16",
                ("to_hf", "--workdir={f}/run", "--folder={f}/half", "--dtype=bfloat16"),
            ),
        ):
            peak, before, seconds = measure(*(a.format(f=folder) for a in arguments))
            print(
                f"{case}: peak {peak / 1e6:.0f} MB (before it began {before / 1e6:.0f} MB), "
                f"{seconds:.1f} s, {'within' if peak <= bound else 'ABOVE'} the bound"
            )
            rows.append(
                harness.row(case, "peak host memory", "MB", round(peak / 1e6, 1),
                            floor=round(bound / 1e6, 1), higher_is_better=False)
            )  # fmt: skip
        harness.emit("conversion_memory", rows, packages=("orbax-checkpoint", "tensorstore"))


if __name__ == "__main__":
    main()
