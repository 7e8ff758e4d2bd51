"""What a method of fine-tuning is: leaves, a call and a merge, site by site.

One equation covers all of them, `h = f_theta0(x) + delta_phi(x)`: theta0 is frozen, phi trained.
A `Method` says for one site which arrays phi has there (`leaves`), what the site then computes
(`call`), and where possible how phi goes into theta0 (`merge`). Experts, scanned layers, meshes,
several adapters in one batch and checkpoints are the business of `jgpt.peft.adapters` and
`jgpt.peft.bind`, which a method never sees: it is written for one matrix.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp

from jgpt.config import ModelConfig, PeftConfig
from jgpt.layers.initialization import Initializer
from jgpt.layers.residual import dropout
from jgpt.peft.sites import Site
from jgpt.typing import Array, PyTree

Leaves = Mapping[str, Array]
"""Arrays of one site by name, trained and constant ones together."""


class Leaf(NamedTuple):
    """An array of an adapter, described once: initial value, sharding and count read it.

    Of a layer of experts, what each expert has: the leading axis is added for it.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """logical names"""
    initializer: Initializer
    trained: bool = True
    """False for what stays as it began; it is kept with the adapters"""

    @property
    def rank(self) -> int:
        """Axes of one matrix or vector: without that of experts."""
        return len(self.shape) - (self.axes[:1] == ("experts",))


@dataclass(frozen=True)
class Target:
    """A site that is adapted, and by how much."""

    site: Site
    rank: int
    """columns that are trained here; 0 where the layer is one of a stack but not adapted"""
    alpha: float
    width: int
    """columns that there is room for: layers of a stack have the same, the rest is masked"""
    settings: PeftConfig
    model: ModelConfig

    @property
    def scale(self) -> float:
        """s of the LoRA family: alpha / r, or alpha / sqrt(r) (rsLoRA)."""
        root = self.settings.scaling == "sqrt_rank"
        return self.alpha / (math.sqrt(self.rank) if root else max(self.rank, 1))


@dataclass(frozen=True)
class Call:
    """One use of an adapted site.

    A linear map has one matrix for all rows; a layer of experts one per expert; a batch in which
    each row has its own adapter one per adapter. `product` and `lookup` know which, so that a
    method is written once.
    """

    leaves: Leaves
    settings: PeftConfig
    base: Callable[..., Any]
    """the site without its adapter"""
    product: Callable[[Array, Array], Array]
    """(x [..., in], matrix leaf [in, out]) -> [..., out] in x's dtype, summed in float32"""
    lookup: Callable[[Array], Array]
    """vector leaf [n] -> what broadcasts against [..., n]"""
    rows: Callable[[Array, Array], Array]
    """(table leaf [V, n], ids [...]) -> [..., n]"""
    kind: str
    """of site"""
    weight: Any = None
    """the site's frozen parameter: a kernel, a table, or one that is quantised"""
    bias: Array | None = None
    """the site's frozen bias [out], where it has one"""
    shared: Leaves | None = None
    """arrays that belong to no site"""
    key: Array | None = None
    """of dropout; None outside of training"""
    total: Callable[[Array], Array] = lambda part: part
    """(what was summed over the inputs that are here) -> over all: experts' are cut on a mesh"""

    def dropped(self, x: Array, rate: float | None = None) -> Array:
        """`x` with dropout in training, by default `settings.dropout`."""
        return dropout(x, self.settings.dropout if rate is None else rate, self.key)


Start = Callable[[Target, Array, dict[str, Array]], tuple[Any, dict[str, Array]]]
"""(target, kernel [in, out] or table [V, D] in float32, its leaves) -> (the frozen weight of the
same shape, or None where it stays as it is; the leaves)."""

Sites = Mapping[str, Leaves]
"""Leaves by the path of their site in the model as it is: those of scanned layers have a leading
axis of layers, those of experts one of experts (behind it)."""


class AfterUpdate(NamedTuple):
    """What `Method.after_update` is told of one update of the optimizer."""

    trained: PyTree
    """as the update left them"""
    constants: PyTree
    gradients: PyTree
    """of `trained`, as the optimizer was given them"""
    state: PyTree
    """from `Method.state` or the update before"""
    step: Array
    """[] int32: updates so far, this one included; the first is 1"""
    num_steps: int
    """updates in the whole run"""
    targets: tuple[Target, ...]


def no_start(settings: PeftConfig) -> None:
    """Leaves begin as their initialisers have them."""


def no_leaves(*_: Any) -> dict[str, Leaf]:
    return {}


@dataclass(frozen=True)
class Method:
    """A method of parameter-efficient fine-tuning, as functions on the leaves of one site."""

    kinds: tuple[str, ...]
    """of sites that it attaches to"""
    targets: tuple[str, ...]
    """patterns of the sites that it attaches to by default"""
    leaves: Callable[[Target], dict[str, Leaf]]
    call: Callable[..., Any]
    """(Call, the site's own arguments) -> the site's own result"""
    merge: Callable[[str, Array, Leaves, PeftConfig], Array] | None = None
    """(kind, kernel [in, out] or table [V, D] in float32, leaves, settings) -> the weight that does
    the same alone"""
    unmerge: Callable[[str, Array, Leaves, PeftConfig], Array] | None = None
    """its inverse"""
    merge_bias: Callable[[Array, Leaves, PeftConfig], Array] | None = None
    """(bias [out], leaves, settings) -> the bias beside the merged kernel, where it changes too"""
    unmerge_bias: Callable[[Array, Leaves, PeftConfig], Array] | None = None
    """its inverse"""
    start: Callable[[PeftConfig], Start | None] = no_start
    """settings -> how leaves begin that depend on the weight; None where they do not"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """settings that the method's name stands for, where the user leaves them as they are"""
    shared: Callable[[tuple[Target, ...]], dict[str, Leaf]] = no_leaves
    """arrays that belong to no site"""
    identity: bool = True
    """whether the model is the same before the first step"""
    masked: bool = False
    """whether a site can have fewer than `width` columns: leaves then hold `scaling` [width]"""
    default_rank: int = 8
    inits: tuple[str, ...] = ("default",)
    """what `peft.init` may be"""
    virtual_tokens: Callable[[PeftConfig], int] = lambda settings: 0
    """ids before a document that stand for learned embeddings (`jgpt.peft.prompt`)"""
    past_tokens: Callable[[PeftConfig], int] = lambda settings: 0
    """keys before a document that are learned: positions count from there"""
    regulariser: Callable[[Sites, PeftConfig], Array] | None = None
    """(all leaves of each site) -> what is added to the mean loss, a float32 scalar"""
    gradient: Callable[[Leaves, Leaves, PeftConfig], Leaves] | None = None
    """(gradients of a site's trained leaves, all its leaves, settings) -> the gradients that the
    optimizer is given, after clipping"""
    state: Callable[[tuple[Target, ...], PyTree, int], PyTree] | None = None
    """(targets, tree of trained leaves, updates in the run) -> what `after_update` remembers,
    before the first update. Raises ConfigError where the run is too short."""
    after_update: Callable[[AfterUpdate], tuple[PyTree, PyTree]] | None = None
    """what follows an update of the optimizer -> (trained leaves, new state)"""
    rates: Callable[[str, PeftConfig], float] = lambda name, settings: 1.0
    """name of a leaf -> factor of its learning rate"""


def add(y: Array, delta: Array) -> Array:
    """`y + delta`, rounded once to y's dtype."""
    return (y + delta.astype(jnp.float32)).astype(y.dtype) if y.dtype != delta.dtype else y + delta
