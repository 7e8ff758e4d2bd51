"""One mixture-of-experts layer on this machine, forward and backward: ways of computing it.

    python experiments/benchmarks/moe.py [--dtypes float32,bfloat16] [--experts 8] [--peers]

Contenders step in turn (`harness.py`), each in a process of its own:

- `dropless`, `capacity`, `dense`: the layer's dispatches (`docs/moe.md`);
- `ragged_dot`: sorted like dropless, through `lax.ragged_dot`, XLA's own grouped product;
- `padded`: sorted, every expert's rows padded to the capacity factor, one batched product;
- `equal dense MLP`: a SwiGLU layer with as many multiplications per token (k experts wide). It is
  what the experts would cost if routing, sorting and choosing among matrices were free;
- `torch expert loop` (with `--peers`): PyTorch on one
  thread, each expert in turn on the tokens that chose it.

The figure is CPU-seconds of the process per step (forward, backward), which do not grow when
somebody else has the core. The floor is the multiplications alone at the speed that one large
product of this machine reaches. Prints a table, and one JSON line last.
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.benchmarks import harness

DISPATCHES = ("dropless", "capacity", "dense")
BASELINES = ("ragged_dot", "padded")
EQUAL_MLP = "equal dense MLP"
TORCH = "torch expert loop"
CONTENDERS = (*DISPATCHES, *BASELINES, EQUAL_MLP)


def flops(options: argparse.Namespace) -> float:
    """Multiplications and additions of the chosen experts, forward and backward."""
    return 3 * 2 * 3 * options.tokens * options.top_k * options.width * options.expert_width


def model_config(options: argparse.Namespace, contender: str, dtype: str):
    """The layer's config; the equal MLP is a dense layer k experts wide."""
    from jgpt.config import ModelConfig, MoEConfig

    sizes = {"hidden_size": options.width, "dtype": dtype}
    if contender == EQUAL_MLP:
        return ModelConfig(intermediate_size=options.top_k * options.expert_width, **sizes)
    moe = MoEConfig(
        num_experts=options.experts,
        top_k=options.top_k,
        dispatch=contender if contender in DISPATCHES else "dropless",
    )
    return ModelConfig(
        intermediate_size=options.expert_width, ffn_pattern=("moe",), moe=moe, **sizes
    )


def baseline(contender: str, config):
    """(params, x [T,D]) -> y [T,D] with plain JAX around this project's router."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from jgpt.layers.router import choose_experts, router_scores

    moe = config.moe

    def route(params, x):
        logits = x.astype(jnp.float32) @ params["router"]["kernel"]
        everybody = jnp.ones(len(x), bool)
        return choose_experts(router_scores(logits, moe), everybody, moe)

    def kernels(params, dtype):
        return [params[name]["kernel"].astype(dtype) for name in ("gate", "up", "down")]

    def ragged(params, x):
        routing = route(params, x)
        experts = routing.experts.reshape(-1)
        order = jnp.argsort(experts)
        sizes = jnp.bincount(experts, length=moe.num_experts)
        gate, up, down = kernels(params, x.dtype)
        rows = x[order // moe.top_k]
        h = jax.nn.silu(lax.ragged_dot(rows, gate, sizes)) * lax.ragged_dot(rows, up, sizes)
        y = lax.ragged_dot(h, down, sizes) * routing.weights.reshape(-1)[order][:, None]
        return jnp.zeros_like(x).at[order // moe.top_k].add(y.astype(x.dtype))

    def padded(params, x):
        routing = route(params, x)
        experts = routing.experts.reshape(-1)
        order = jnp.argsort(experts)
        sizes = jnp.bincount(experts, length=moe.num_experts)
        slots = int(moe.capacity_factor * len(experts) / moe.num_experts)
        place = (jnp.cumsum(sizes) - sizes)[:, None] + jnp.arange(slots)
        filled = jnp.arange(slots) < sizes[:, None]
        source = order[jnp.minimum(place, len(experts) - 1)]
        gate, up, down = kernels(params, x.dtype)
        rows = jnp.where(filled[..., None], x[source // moe.top_k], 0)

        def product(a, b):
            return jnp.einsum("eci,eio->eco", a, b, preferred_element_type=jnp.float32).astype(
                x.dtype
            )

        y = product(jax.nn.silu(product(rows, gate)) * product(rows, up), down)
        y = y * (routing.weights.reshape(-1)[source] * filled)[..., None]
        flat = (source // moe.top_k).reshape(-1)
        return jnp.zeros_like(x).at[flat].add(y.astype(x.dtype).reshape(len(flat), -1))

    return {"ragged_dot": ragged, "padded": padded}[contender]


def work(options: argparse.Namespace, contender: str, dtype: str) -> None:
    """One contender's process."""
    import jax
    from flax.core import meta

    from jgpt.layers.ffn import FFN
    from jgpt.layers.moe import MoE

    config = model_config(options, contender, dtype)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (options.tokens // options.length, options.length, options.width)
    x, dy = (jax.random.normal(key, shape).astype(dtype) for key in keys[:2])
    module = FFN(config) if contender == EQUAL_MLP else MoE(config)
    params = meta.unbox(jax.jit(module.init)(keys[2], x)["params"])

    def layer(params, x):
        if contender in BASELINES:
            flat = x.reshape(-1, options.width)
            return baseline(contender, config)(params, flat).reshape(x.shape)
        y = module.apply({"params": params}, x)
        return y if contender == EQUAL_MLP else y[0]

    def forward_backward(params, x, dy):
        y, pull = jax.vjp(layer, params, x)
        return y, pull(dy)

    start = time.perf_counter()
    compiled = jax.jit(forward_backward).lower(params, x, dy).compile()
    facts = {
        "compile_seconds": time.perf_counter() - start,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }

    def step():
        jax.block_until_ready(compiled(params, x, dy))

    for _ in range(3):
        step()
    harness.serve(step, facts)


def work_in_torch(options: argparse.Namespace, dtype: str) -> None:
    """The expert loop's process: softmax over the chosen experts, one thread."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    torch.set_num_threads(1)  # its threads spin while they wait, which counts as CPU time
    kind = getattr(torch, dtype)
    width, inner, experts = options.width, options.expert_width, options.experts

    def weights(*shape):
        return (torch.randn(*shape) * 0.02).to(kind).requires_grad_()

    router = weights(experts, width)
    gate, up = weights(experts, inner, width), weights(experts, inner, width)
    down = weights(experts, width, inner)
    x = torch.randn(options.tokens, width).to(kind).requires_grad_()
    dy = torch.randn(options.tokens, width).to(kind)
    leaves = (router, gate, up, down, x)

    def layer():
        best, chosen = (x.float() @ router.float().T).topk(options.top_k)
        shares = best.softmax(-1).to(kind)
        out = torch.zeros_like(x)
        for e in range(experts):
            token, place = torch.where(chosen == e)
            rows = x[token]
            h = functional.silu(rows @ gate[e].T) * (rows @ up[e].T)
            out = out.index_add(0, token, (h @ down[e].T) * shares[token, place, None])
        return out

    def step():
        torch.autograd.grad(layer(), leaves, dy)

    for _ in range(3):
        step()
    harness.serve(step, {"compile_seconds": None, "temporary_mb": None})


def floor_seconds(options: argparse.Namespace, dtype: str) -> float:
    """CPU-seconds of the same multiplications at the speed of one large product."""
    import jax
    import jax.numpy as jnp

    size = 1024
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(20):
        start = time.process_time()
        jax.block_until_ready(product(a, a))
        seconds.append(time.process_time() - start)
    return min(seconds) * flops(options) / (2 * size**3)


def compare(options: argparse.Namespace, dtype: str) -> tuple[list[list], list[dict]]:
    """Table lines and rows of the JSON line for one dtype."""
    case = f"E{options.experts} top-{options.top_k} {dtype}"
    shared = [
        f"--{name}={getattr(options, name.replace('-', '_'))}"
        for name in ("tokens", "length", "width", "expert-width", "experts", "top-k")
    ]
    floor = floor_seconds(options, dtype)
    workers = [
        harness.Worker(name, __file__, [*shared, "--work", f"{name},{dtype}"])
        for name in (*CONTENDERS, *[TORCH] * options.peers)
    ]
    harness.alternate(workers, options.rounds, options.steps)
    for worker in workers:
        worker.close()
    equal = next(w.cpu_median for w in workers if w.name == EQUAL_MLP)
    lines = [
        [
            f"{case} {w.name}",
            w.cpu_median * 1e3,
            w.cpu_median / equal,
            flops(options) / w.cpu_median / 1e9,
            w.facts["temporary_mb"],
            w.facts["compile_seconds"],
        ]
        for w in workers
    ]
    ours, *others = workers

    def row(metric, unit, value, floor=None):
        named = {w.name: round(value(w), 3) for w in others if value(w) is not None}
        return harness.row(
            case, metric, unit, round(value(ours), 3), named, floor, higher_is_better=False
        )

    rows = [
        row("forward and backward", "CPU-ms", lambda w: w.cpu_median * 1e3, round(floor * 1e3, 2)),
        row("temporary memory", "MB", lambda w: w.facts["temporary_mb"]),
        row("compile", "s", lambda w: w.facts["compile_seconds"]),
    ]
    return lines, rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--width", type=int, default=256, help="hidden size")
    parser.add_argument("--expert-width", type=int, default=352)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--peers", action="store_true", help="torch too (pip install torch)")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, dtype = options.work.split(",")
        if name == TORCH:
            work_in_torch(options, dtype)
        else:
            work(options, name, dtype)
        return
    lines, rows = [], []
    for dtype in options.dtypes.split(","):
        more_lines, more_rows = compare(options, dtype)
        lines += more_lines
        rows += more_rows
    columns = ["case", "CPU-ms", "over equal MLP", "GFLOP/CPU-s", "temporary MB", "compile s"]
    harness.show("mixture-of-experts layer, forward and backward", columns, lines)
    harness.emit("moe", rows)


if __name__ == "__main__":
    main()
