"""Where XLA's fusions end on CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata


def fenced(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of arrays, on one CPU compiled by itself: arguments and results are in memory.

    XLA's CPU backend (jax 0.10) fuses whatever is elementwise into all that read it, and computes
    it anew for each, value by value where types are narrow or axes are swapped. An optimization
    barrier does not hold it: barriers are gone before it fuses. A function that may not be inlined
    does. Elsewhere nothing but `function`; so too on a mesh, whose partitioner knows no calls.
    """
    compiled = jax.jit(function)

    def alone(*arguments: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    def call(*arguments: Any) -> Any:
        if jax.sharding.get_abstract_mesh().size > 1:
            return function(*arguments)
        return lax.platform_dependent(*arguments, cpu=alone, default=function)

    return call
