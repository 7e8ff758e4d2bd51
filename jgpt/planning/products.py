"""Floating point operations of one `dot` or `convolution`: two per multiplication and addition."""

import math
import re

from jgpt.planning.hlo import Computation, Instruction

DIMENSION_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def product_flops(product: Instruction, computation: Computation) -> float:
    """Of the instruction, run once; `computation` holds its operands.

    The TPU compiler turns dots into convolutions: batch dimensions into spatial ones that a
    dilated window walks over so that most of the window lies on padding. Only pairs of real
    elements are counted.
    """
    if product.op == "dot":
        return _dot_flops(product, computation)
    return _convolution_flops(product, computation)


def _dot_flops(dot: Instruction, computation: Computation) -> float:
    left = computation.operand(dot, 0).shapes[0].dims
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
    return 2.0 * math.prod(dot.shapes[0].dims) * math.prod(left[axis] for axis in axes)


def _convolution_flops(convolution: Instruction, computation: Computation) -> float:
    labels = DIMENSION_LABELS.search(convolution.attributes)
    left_labels, right_labels, out_labels = labels.groups()
    left = computation.operand(convolution, 0).shapes[0].dims
    right = computation.operand(convolution, 1).shapes[0].dims
    out = convolution.shapes[0].dims
    pairs = 1
    for axis, window in enumerate(_windows(convolution, sum(c.isdigit() for c in left_labels))):
        label = str(axis)
        pairs *= _real_pairs(
            left[left_labels.index(label)],
            right[right_labels.index(label)],
            out[out_labels.index(label)],
            **window,
        )
    groups = re.search(r"batch_group_count=(\d+)", convolution.attributes)
    # The right side's input features are those of one feature group already.
    features = right[right_labels.index("i")]
    rows, columns = out[out_labels.index("b")], out[out_labels.index("f")]
    return 2.0 * rows * columns * features * pairs / (int(groups[1]) if groups else 1)


def _windows(convolution: Instruction, count: int) -> list[dict[str, int]]:
    """Stride, first padding, dilations and reversal of each spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}

    def each(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * count

    return [
        {
            "stride": int(stride),
            "padding": int(padding.split("_")[0]),
            "left_dilation": int(left),
            "right_dilation": int(right),
        }
        for stride, padding, left, right in zip(
            each("stride", "1"),
            each("pad", "0_0"),
            each("lhs_dilate", "1"),
            each("rhs_dilate", "1"),
            strict=True,
        )
    ]


def _real_pairs(
    left: int,
    right: int,
    out: int,
    stride: int,
    padding: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """(output, window) positions that meet an element of the left side, not padding or a gap."""
    count = 0
    for tap in range(right):
        # Positions p with 0 <= p * stride + offset <= last and left_dilation dividing it.
        offset, last = tap * right_dilation - padding, (left - 1) * left_dilation
        first = max(0, -(offset // stride) if offset < 0 else 0)
        end = min(out - 1, (last - offset) // stride)
        if end < first:
            continue
        if left_dilation == 1:
            count += end - first + 1
        else:
            count += sum((p * stride + offset) % left_dilation == 0 for p in range(first, end + 1))
    return count
