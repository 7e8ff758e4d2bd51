"""Peak host memory of a base that is quantised as it is read, beside one that is read whole first.

    python -m experiments.quantization.streaming [--layers=9] [--quantize=nf4]

Writes a random Llama folder in float32 (0.5 GB) and loads it in processes of their own.
"""

import argparse
import dataclasses
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from jgpt import models
from jgpt.config import ModelConfig, PeftConfig
from jgpt.interop.export import export
from jgpt.interop.folder import open_folder
from jgpt.interop.weights import load, unrolled_shapes
from jgpt.peft.quantization import converter, quantized
from jgpt.trees import size_in_bytes

MODEL = ModelConfig(
    vocab_size=8000, hidden_size=1024, num_heads=16, intermediate_size=2752, scan_layers="off"
)


def peak() -> float:
    """Resident bytes of this process at most so far, pages of mapped files included."""
    return 1024.0 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(folder: Path, kind: str, streamed: bool) -> None:
    model = dataclasses.replace(open_folder(folder).model, scan_layers="off")
    settings = PeftConfig(method="lora", quantize=kind)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: here, models.abstract_params(model))
    convert = converter(settings, model)
    before = peak()
    if streamed:
        params = load(open_folder(folder), model, places, here, convert)["params"]
    else:
        whole = load(open_folder(folder), model, places, here)["params"]
        change = jax.jit(lambda p: quantized(settings, model, p), donate_argnums=0)
        params = change(whole)
    jax.block_until_ready(params)
    print(before, peak(), size_in_bytes(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--quantize", default="nf4")
    parser.add_argument("--folder", type=Path, help="measure this one, in this process")
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    if options.folder:
        measure(options.folder, options.quantize, not options.whole)
        return
    model = dataclasses.replace(MODEL, num_layers=options.layers)
    shapes, generator = unrolled_shapes(model), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        draw = lambda path: generator.standard_normal(shapes[path], np.float32)  # noqa: E731
        export(folder, model, draw, dtype=np.dtype(np.float32), largest_shard=200_000_000)
        size = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
        print(f"{size / 1e6:.0f} MB in float32")
        for what, more in (("packed as it is read", []), ("read whole, then packed", ["--whole"])):
            command = [sys.executable, "-m", "experiments.quantization.streaming"]
            command += [f"--folder={folder}", f"--quantize={options.quantize}", *more]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            before, most, left = map(float, done.stdout.splitlines()[-1].split())
            print(
                f"{what}: {(most - before) / 1e6:.0f} MB on top of the {before / 1e6:.0f} MB of "
                f"Python and JAX; {left / 1e6:.0f} MB stay"
            )


if __name__ == "__main__":
    main()
