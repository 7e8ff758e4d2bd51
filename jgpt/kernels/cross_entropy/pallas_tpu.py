"""Cross-entropy for TPU in Pallas: two kernels per chunk of tokens.

The first streams over blocks of the vocabulary, with an online logsumexp per token as in flash
attention, and leaves exp(score - running maximum) of its chunk in the dtype of the products: half
of what float32 scores take, and precise where it matters, since what is rounded are factors of a
product, and the target's own entry is put in later from float32. The second turns them into the
gradient of the scores, multiplies it twice, and adds to the head's gradient in place. So scores are
computed once, three products in all, and no [T, V] array is ever in memory.

`pallas_tpu_kernels.py` has the bodies, `chunks.py` the loop over chunks, `streaming.py`
the derivative.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jgpt.kernels.cross_entropy import streaming
from jgpt.kernels.cross_entropy.chunks import Figures, Rows, Totals
from jgpt.kernels.cross_entropy.layout import find_layout
from jgpt.kernels.cross_entropy.pallas_tpu_kernels import (
    LANES,
    ROWS_AT_ONCE,
    gradients_kernel,
    scores_kernel,
)
from jgpt.kernels.device import device_kind
from jgpt.typing import Array, CrossEntropy

MIB = 2**20
VMEM = {"TPU v5 lite": 100 * MIB, "TPU v5": 56 * MIB, "TPU v6 lite": 100 * MIB}
"""What a kernel may use of the on-chip memory, by device kind."""
OTHER_VMEM = 14 * MIB
"""For kinds that are not in the table: fits every generation's default."""


class Blocks(NamedTuple):
    tokens: int
    """of a chunk"""
    columns: int
    """of the head in one step"""


CANDIDATES = [
    Blocks(tokens, columns)
    for tokens in (2048, 1024, 512, 256, 128)
    for columns in (512, 256, 128)
    if columns <= tokens
]
"""The first that fits is taken: more tokens read and write the head's gradient less often."""


def vmem_bytes(blocks: Blocks, width: int, itemsize: int) -> int:
    """Of the second kernel, which needs more."""
    tokens, columns = blocks
    streamed = 2 * columns * (width * itemsize + tokens * itemsize + 2 * 4 * width)
    resident = 3 * tokens * width * itemsize + 4 * tokens * width + 5 * 4 * tokens * LANES
    temporary = 4 * width * columns + 4 * min(tokens, ROWS_AT_ONCE) * (width + 2 * columns)
    return streamed + resident + temporary


def _blocks(width: int, itemsize: int) -> Blocks | None:
    limit = VMEM.get(device_kind(), OTHER_VMEM)
    return next((b for b in CANDIDATES if vmem_bytes(b, width, itemsize) <= limit), None)


def supports(hidden: Array, head: Array, **_) -> str:
    """Why not, or ''."""
    if not device_kind().startswith("TPU"):
        return "the Pallas TPU kernel runs on TPU"
    if hidden.dtype not in (jnp.bfloat16, jnp.float32):
        return f"the Pallas TPU kernel takes bfloat16 and float32, not {hidden.dtype}"
    width = head.shape[0]
    if _blocks(width, hidden.dtype.itemsize) is None:
        return f"the Pallas TPU kernel cannot hold a block of a head of width {width}"
    rows, _, _ = streaming.as_rows(hidden)
    reason = find_layout(*rows.shape, head.shape[1])[1]
    return reason and f"the Pallas TPU kernel cannot be cut over this mesh: {reason}"


def cross_entropy(
    hidden: Array,
    head: Array,
    targets: Array,
    weights: Array,
    *,
    bias: Array | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float = 0.0,
    blocks: tuple[int, int] | None = None,
    interpret: Any = False,
) -> CrossEntropy:
    """See `jgpt.kernels.cross_entropy.cross_entropy`.

    Args:
        hidden: see there.
        head: see there.
        targets: see there.
        weights: see there.
        bias: see there.
        z_loss: see there.
        label_smoothing: see there.
        softcap: see there.
        blocks: tokens of a chunk and columns of a block; None: the first of CANDIDATES that fits.
        interpret: what `pallas_call` takes: True or `pltpu.InterpretParams` run on any device.
    """
    return streaming.cross_entropy(
        _steps(hidden, head, softcap, blocks, interpret),
        hidden,
        head,
        targets,
        weights,
        bias=bias,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
    )


def token_logps(
    hidden: Array,
    head: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float = 0.0,
    blocks: tuple[int, int] | None = None,
    interpret: Any = False,
) -> Array:
    """See `jgpt.kernels.cross_entropy.token_logps`; `blocks` and `interpret` as above."""
    steps = _steps(hidden, head, softcap, blocks, interpret)
    return streaming.token_logps(steps, hidden, head, targets, bias=bias)


def _steps(
    hidden: Array, head: Array, softcap: float, blocks: tuple[int, int] | None, interpret: Any
) -> "_Steps":
    width, itemsize = head.shape[0], hidden.dtype.itemsize
    found = Blocks(*(blocks or _blocks(width, itemsize)))
    # No more than they need: the compiler keeps what the kernels read in the rest.
    needed = vmem_bytes(found, width, itemsize) * 5 // 4 + 2 * MIB
    limit = min(VMEM.get(device_kind(), OTHER_VMEM), needed)
    return _Steps(*found, softcap, interpret, limit)


class Head(NamedTuple):
    """A head padded to whole blocks."""

    matrix: Array
    bias: Array | None
    vocabulary: int


@dataclass(frozen=True)
class _Steps:
    """See `chunks.Steps`."""

    tokens: int
    columns: int
    softcap: float
    interpret: Any
    vmem_bytes: int
    flat = True
    multiple = LANES
    unrolled = 2

    def prepare(self, head: Array, bias: Array | None) -> Head:
        missing = -head.shape[1] % self.columns
        matrix = jnp.pad(head, ((0, 0), (0, missing))) if missing else head
        if bias is not None:
            bias = jnp.pad(bias.astype(jnp.float32), (0, missing))[None]
        return Head(matrix, bias, head.shape[1])

    def zeros(self, head: Head) -> Totals:
        bias = None if head.bias is None else jnp.zeros(head.bias.shape, jnp.float32)
        return Totals(jnp.zeros(head.matrix.shape, jnp.float32), bias)

    def finish(self, totals: Totals, head: Array) -> Totals:
        columns = head.shape[1]
        bias = None if totals.bias is None else totals.bias[0, :columns]
        return Totals(totals.head[:, :columns], bias)

    def scores(
        self, head: Head, hidden: Array, targets: Array, summed: bool, keep: bool
    ) -> tuple[Figures, Any]:
        shape, hidden = targets.shape, hidden.reshape(-1, hidden.shape[-1])
        tokens, width = hidden.shape
        columns, steps = self.columns, head.matrix.shape[1] // self.columns
        maxima = math.ceil(steps / LANES) * LANES
        outputs = {"figures": (_float32(tokens, LANES), _resident(tokens, LANES))}
        if keep:
            outputs["exponentials"] = (
                jax.ShapeDtypeStruct((tokens, head.matrix.shape[1]), hidden.dtype),
                pl.BlockSpec((tokens, columns), lambda j: (0, j)),
            )
            outputs["maxima"] = (
                _float32(tokens, maxima),
                pl.BlockSpec((tokens, LANES), lambda j: (0, j // LANES)),
            )
        scratch = ["highest", "total", "chosen", *["summed"] * summed]
        outs = self._call(
            functools.partial(scores_kernel, vocabulary=head.vocabulary),
            "cross_entropy_scores",
            steps,
            inputs={
                "hidden": (hidden, _resident(tokens, width)),
                "head": (head.matrix, pl.BlockSpec((width, columns), lambda j: (0, j))),
                "bias": (head.bias, pl.BlockSpec((1, columns), lambda j: (0, j))),
                "targets": (_inside(targets, head.vocabulary), _resident(tokens, 1)),
            },
            outputs=outputs,
            scratch=dict.fromkeys(scratch, (tokens, LANES)),
            flops=2 * head.matrix.size * tokens,
        )
        figures = outs.pop("figures")
        parts = [figures[:, i].reshape(shape) for i in range(3 + summed)]
        return Figures(*parts[:3], parts[3] if summed else None), outs

    def gradients(
        self, head: Head, hidden: Array, targets: Array, kept: Any, rows: Rows, totals: Totals
    ) -> tuple[Totals, Array]:
        chunk, hidden = hidden.shape, hidden.reshape(-1, hidden.shape[-1])
        tokens, width = hidden.shape
        columns = self.columns
        packed = _packed(rows, self.softcap).reshape(tokens, LANES)
        blocks = pl.BlockSpec((width, columns), lambda j: (0, j))
        along = pl.BlockSpec((1, columns), lambda j: (0, j))
        outputs = {
            "dhidden": (
                jax.ShapeDtypeStruct(hidden.shape, hidden.dtype),
                pl.BlockSpec(hidden.shape, lambda j: (0, 0)),
            ),
            "dhead": (_float32(*totals.head.shape), blocks),
        }
        if totals.bias is not None:
            outputs["dbias"] = (_float32(*totals.bias.shape), along)
        outs = self._call(
            functools.partial(gradients_kernel, smoothed=rows.constant is not None),
            "cross_entropy_gradients",
            head.matrix.shape[1] // columns,
            inputs={
                "exponentials": (
                    kept["exponentials"],
                    pl.BlockSpec((tokens, columns), lambda j: (0, j)),
                ),
                "maxima": (
                    kept["maxima"],
                    pl.BlockSpec((tokens, LANES), lambda j: (0, j // LANES)),
                ),
                "head": (head.matrix, blocks),
                # rows of its transpose are the left operand of the head's gradient
                "transposed": (hidden.T, _resident(width, tokens)),
                "targets": (_inside(targets, head.vocabulary), _resident(tokens, 1)),
                "rows": (packed, _resident(tokens, LANES)),
                "old_dhead": (totals.head, blocks),
                "old_dbias": (totals.bias, along),
            },
            outputs=outputs,
            scratch={"dhidden_sum": (tokens, width)},
            flops=4 * head.matrix.size * tokens,
            in_place={"old_dhead": "dhead", "old_dbias": "dbias"},
        )
        return Totals(outs["dhead"], outs.get("dbias")), outs["dhidden"].reshape(chunk)

    def _call(
        self,
        body: Any,
        name: str,
        steps: int,
        inputs: dict[str, tuple[Array, pl.BlockSpec]],
        outputs: dict[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: dict[str, tuple[int, ...]],
        flops: int,
        in_place: dict[str, str] | None = None,
    ) -> dict[str, Array]:
        """One `pallas_call` whose body gets all its refs by name; absent inputs are None there."""
        present = {n: pair for n, pair in inputs.items() if pair[0] is not None}
        names = (*present, *outputs, *scratch)
        optional = dict.fromkeys((*inputs, "exponentials", "maxima", "summed", "dbias"))
        arrays = [array for array, _ in present.values()]
        shapes = [shape for shape, _ in outputs.values()]
        numbers, out_numbers = list(present), list(outputs)

        def kernel(*refs):
            body(refs=optional | dict(zip(names, refs, strict=True)), softcap=self.softcap)

        outs = pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid=(steps,),
            in_specs=[spec for _, spec in present.values()],
            out_specs=[spec for _, spec in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
            input_output_aliases={
                numbers.index(a): out_numbers.index(b)
                for a, b in (in_place or {}).items()
                if a in present
            },
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("arbitrary",), vmem_limit_bytes=self.vmem_bytes
            ),
            cost_estimate=pl.CostEstimate(
                flops=flops,
                transcendentals=0,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays + shapes),
            ),
            interpret=self.interpret,
            name=name,
        )(*arrays)
        return dict(zip(outputs, outs, strict=True))


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _resident(*shape: int) -> pl.BlockSpec:
    """The whole array, fetched once."""
    return pl.BlockSpec(shape, lambda j: (0, 0), pipeline_mode=pl.Buffered(1))


def _inside(targets: Array, vocabulary: int) -> Array:
    """[tokens, 1], -1 for a target that another device has: it must not meet a padded column."""
    return jnp.where(targets < vocabulary, targets, -1).reshape(-1, 1)


def _packed(rows: Rows, softcap: float) -> Array:
    """Figures of a token side by side: normalizer, factor, the target's gradient, constant.

    The target's gradient is computed here, from float32 throughout.
    """
    constant = jnp.zeros_like(rows.pull) if rows.constant is None else rows.constant
    at_target = rows.factor * jnp.exp(rows.chosen - rows.normalizer) - rows.pull - constant
    if softcap:
        at_target *= 1 - (rows.chosen / softcap) ** 2
    at_target = jnp.where(rows.pull != 0, at_target, 0)
    packed = jnp.stack([rows.normalizer, rows.factor, at_target, constant], axis=-1)
    return jnp.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, LANES - 4)])
