"""Attention, forward and backward, on CPU: blockwise against materialised forms and torch.

    python experiments/benchmarks/attention.py [--seconds 5] [--peers]

Median CPU-milliseconds per call and temporary memory; `--peers` adds torch's
`scaled_dot_product_attention` on one thread. `floor` is the time of the products alone at the
speed of a large one (seven of S x S x d per query head, half of them under a causal mask).
Prints a table, and one JSON line last.
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import harness, turns
from jgpt.kernels.attention import BACKENDS
from jgpt.typing import Mask

CASES = {
    "shape S": (8, 256, 4, 2, 64),
    "shape M": (4, 512, 8, 4, 64),
    "S 1024": (1, 1024, 8, 4, 64),
    "S 4096": (1, 4096, 4, 2, 64),
}
"""Batch, length, query heads, key/value heads, width of a head."""
WINDOW = 256


def arrays(batch, length, heads, kv_heads, width, dtype):
    """q, k, v and a cotangent of the result."""
    keys = jax.random.split(jax.random.key(0), 4)
    counts = (heads, kv_heads, kv_heads, heads)
    return [
        jax.random.normal(key, (batch, length, count, width)).astype(dtype)
        for key, count in zip(keys, counts)
    ]


def forward_backward(backend: str, mask: Mask, q, k, v, dout):
    attend = functools.partial(BACKENDS[backend].attention, mask=mask, scale=q.shape[-1] ** -0.5)
    out, pull = jax.vjp(attend, q, k, v)
    return out, pull(dout)


def torch_contender(q, k, v, dout):
    """torch's fused attention on the same arrays, laid out as torch wants them."""
    import torch

    torch.set_num_threads(1)
    kind = torch.bfloat16 if q.dtype == jnp.bfloat16 else torch.float32
    q, k, v, dout = (
        torch.from_numpy(np.array(x.astype(jnp.float32))).to(kind).transpose(1, 2).contiguous()
        for x in (q, k, v, dout)
    )

    def run():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = torch.nn.functional.scaled_dot_product_attention(
            *leaves, is_causal=True, enable_gqa=True
        )
        out.backward(dout)

    return run


def product_floor(batch, length, heads, kv_heads, width, dtype) -> float:
    """CPU-milliseconds of the products at the speed of a 1024 x 1024 x 1024 one."""
    x = jnp.ones((1024, 1024), dtype)
    run, _ = turns.compiled(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32), x, x)
    one = turns.milliseconds({"product": run}, 0.5)["product"]
    return one * 7 * batch * heads * length * length * width / 2 / 1024**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="per case")
    parser.add_argument("--peers", action="store_true", help="torch too (pip install torch)")
    options = parser.parse_args()
    turns.prepare()
    lines, rows = [], []
    for dtype in ("float32", "bfloat16"):
        for name, shape in CASES.items():
            inputs = arrays(*shape, dtype)
            contenders, memory = {}, {}
            wanted = {
                "blockwise": ("blockwise", Mask()),
                "window": ("blockwise", Mask(window=WINDOW)),
            }
            wanted |= {other: (other, Mask()) for other in ("xla", "reference")}
            for label, (backend, mask) in wanted.items():
                step = functools.partial(forward_backward, backend, mask)
                contenders[label], memory[label] = turns.compiled(step, *inputs)
            if options.peers:
                contenders["torch"] = torch_contender(*inputs)
            spent = turns.milliseconds(contenders, options.seconds)
            peers = {n: spent[n] for n in spent if n not in ("blockwise", "window")}
            floor = product_floor(*shape, dtype)
            case = f"{name} {dtype}"
            kept = {n: memory[n] for n in ("xla", "reference")}
            timed = functools.partial(harness.row, higher_is_better=False)
            rows += [
                timed(case, "forward and backward", "CPU ms", spent["blockwise"], peers, floor),
                timed(case, "temporary memory", "MiB", memory["blockwise"], kept),
                timed(f"{case}, window", "forward and backward", "CPU ms", spent["window"]),
            ]
            figures = (spent.get(n, "-") for n in (*wanted, "torch"))
            lines.append([case, *figures, floor, memory["blockwise"]])
    columns = ["case", "blockwise", f"window {WINDOW}", "xla", "reference", "torch", "floor", "MiB"]
    harness.show("attention, CPU ms forward and backward", columns, lines)
    harness.emit("attention", rows, ("torch",))


if __name__ == "__main__":
    main()
