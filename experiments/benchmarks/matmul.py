"""Matrix products of a training step on CPU, in the forms XLA can be given them.

    python experiments/benchmarks/matmul.py [--seconds 1] [--peers]

GFLOP per CPU-second of the product and its two gradients at the sizes of shapes S and M; ours are
the forms in `jgpt/kernels/matmul.py`. `--peers` adds torch on one thread. `floor` is a large square
product's rate. Prints a table, and one JSON line last.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks import harness, turns
from jgpt.kernels.matmul import input_gradient, product, weight_gradient

SIZES = {
    "S attention": (2048, 256, 256),
    "S gate": (2048, 256, 688),
    "S down": (2048, 688, 256),
    "S head": (512, 256, 8192),
    "M gate": (2048, 512, 1376),
    "M head": (512, 512, 16384),
}
"""Tokens, D, F."""


def rounded(form):
    """The form with its float32 result rounded to the operands' dtype, as a model does."""
    return lambda a, b: form(a, b).astype(a.dtype)


def plain_weight_gradient(x, dy):
    return lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


FORMS = {
    "product": {"ours": rounded(product), "x @ w": lambda x, w: x @ w},
    "input gradient": {"ours": rounded(input_gradient), "dy @ w.T": lambda dy, w: dy @ w.T},
    "weight gradient": {
        "ours": weight_gradient,
        "x.T @ dy": lambda x, dy: x.T @ dy,
        "dot_general": plain_weight_gradient,
    },
}


def torch_forms(x, w, dy):
    import torch

    torch.set_num_threads(1)
    kind = torch.bfloat16 if x.dtype == jnp.bfloat16 else torch.float32
    x, w, dy = (torch.from_numpy(np.array(a.astype(jnp.float32))).to(kind) for a in (x, w, dy))
    stored = w.t().contiguous()  # torch's layers keep [F, D]
    return {
        "product": lambda: torch.nn.functional.linear(x, stored),
        "input gradient": lambda: dy @ stored,
        "weight gradient": lambda: dy.t() @ x,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="per product")
    parser.add_argument("--peers", action="store_true", help="torch too (pip install torch)")
    options = parser.parse_args()
    turns.prepare()
    lines, rows = [], []
    for dtype in ("float32", "bfloat16"):
        square = jnp.ones((2048, 2048), dtype)
        large, _ = turns.compiled(product, square, square)
        floor = 2 * 2.048**3 / turns.milliseconds({"large": large}, options.seconds)["large"] * 1e3
        for name, (tokens, d, f) in SIZES.items():
            keys = jax.random.split(jax.random.key(0), 3)
            shapes = ((tokens, d), (d, f), (tokens, f))
            x, w, dy = (jax.random.normal(k, s).astype(dtype) for k, s in zip(keys, shapes))
            operands = {"product": (x, w), "input gradient": (dy, w), "weight gradient": (x, dy)}
            torch = torch_forms(x, w, dy) if options.peers else {}
            for which, forms in FORMS.items():
                contenders = {n: turns.compiled(g, *operands[which])[0] for n, g in forms.items()}
                if which in torch:
                    contenders["torch"] = torch[which]
                spent = turns.milliseconds(contenders, options.seconds)
                rates = {n: 2e-6 * tokens * d * f / ms for n, ms in spent.items()}
                peers = {n: rate for n, rate in rates.items() if n != "ours"}
                case = f"{name} {dtype}"
                rows.append(harness.row(case, which, "GFLOP/CPU-s", rates["ours"], peers, floor))
                other = ", ".join(f"{n} {rate:.0f}" for n, rate in peers.items())
                lines.append([case, which, rates["ours"], other, floor])
    harness.show(
        "matrix products, GFLOP per CPU-second", ["case", "which", "ours", "others", "floor"], lines
    )
    harness.emit("matmul", rows, ("torch",))


if __name__ == "__main__":
    main()
