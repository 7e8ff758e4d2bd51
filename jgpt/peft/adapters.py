"""A method fitted to a model: trees of adapters, their start, and their merge into the model.

Adapters are two trees laid out like the parameters: what is trained, and constants that are kept
with it. At `layers_3/attention/query` lie the leaves of that site, scanned layers being stacked
like their parameters; `shared` holds what belongs to no site.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jgpt.config import ConfigError, ModelConfig, PeftConfig
from jgpt.models.layout import is_scanned, resolve_scan, restack
from jgpt.peft.method import Leaf, Method, Start, Target
from jgpt.peft.quantization import is_quantized, restored
from jgpt.peft.sites import Site
from jgpt.peft.targets import choose_targets
from jgpt.typing import Array, PyTree

SHARED = "shared"
"""Path of the leaves that belong to no site."""


class Adapters(NamedTuple):
    """The two trees of adapters."""

    trained: PyTree
    constants: PyTree


@dataclass(frozen=True)
class Peft:
    """A method, its settings, and the sites of a model that it adapts."""

    settings: PeftConfig
    model: ModelConfig
    method: Method
    targets: tuple[Target, ...]

    @functools.cached_property
    def leaves(self) -> dict[str, dict[str, Leaf]]:
        """Site path (or `shared`) -> the leaves there, in the unrolled layout."""
        found = {t.site.path: _for_site(t, self.method.leaves(t)) for t in self.targets}
        shared = self.method.shared(self.targets)
        return {SHARED: shared, **found} if shared else found

    @property
    def scanned(self) -> bool:
        return resolve_scan(self.model, jax.default_backend()).scan_layers == "on"


def fit(settings: PeftConfig, model: ModelConfig, methods: Mapping[str, Method]) -> Peft:
    """The method that `settings` name, on the sites of `model` that they choose.

    Raises:
        ConfigError: an unknown method, or targets that it cannot adapt.
    """
    method = method_of(settings, methods)
    if settings.init not in method.inits:
        raise ConfigError(
            f"peft.init={settings.init!r} is not for peft.method={settings.method!r}; choose "
            f"{' or '.join(method.inits)}"
        )
    settings = _with_defaults(settings, method.defaults)
    return Peft(settings, model, method, choose_targets(settings, model, method))


def method_of(settings: PeftConfig, methods: Mapping[str, Method]) -> Method:
    """The method by its name; raises ConfigError where there is none."""
    if settings.method not in methods:
        raise ConfigError(
            f"peft.method is {settings.method!r}; choose none or one of {', '.join(methods)}"
        )
    return methods[settings.method]


def _with_defaults(settings: PeftConfig, defaults: Mapping[str, Any]) -> PeftConfig:
    """`settings` with `defaults` in the fields that are as `PeftConfig` has them."""
    plain = PeftConfig()
    unset = {n: v for n, v in defaults.items() if getattr(settings, n) == getattr(plain, n)}
    return dataclasses.replace(settings, **unset)


def _for_site(target: Target, leaves: dict[str, Leaf]) -> dict[str, Leaf]:
    """Leaves of one matrix as those of the site: with a leading axis for experts."""
    if target.site.kind != "experts":
        return leaves
    experts, axis = target.site.shape[0], target.site.axes[0]
    return {
        name: leaf._replace(shape=(experts, *leaf.shape), axes=(axis, *leaf.axes))
        for name, leaf in leaves.items()
    }


# --- trees ---------------------------------------------------------------------------------------


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), folders, tree)[name] = leaf
    return tree


def _tree(peft: Peft, value: Callable[[str, str, Leaf], Any], trained: bool) -> dict[str, Any]:
    """`value(site path, name, leaf)` at every trained (or constant) leaf; unrolled."""
    return nested(
        {
            f"{path}/{name}": value(path, name, leaf)
            for path, leaves in peft.leaves.items()
            for name, leaf in leaves.items()
            if leaf.trained == trained
        }
    )


def laid_out(peft: Peft, tree: PyTree) -> PyTree:
    """An unrolled tree of arrays in the layout of the model's parameters."""
    return restack(tree, peft.model, peft.scanned)


def unrolled(peft: Peft, tree: PyTree) -> PyTree:
    """Its inverse."""
    return restack(tree, peft.model, False)


def dtype_of(peft: Peft, leaf: Leaf) -> Any:
    return jnp.dtype(peft.settings.dtype if leaf.trained else jnp.float32)


def abstract_adapters(peft: Peft) -> Adapters:
    """Shapes and dtypes of the adapters; nothing is computed."""

    def shape(path: str, name: str, leaf: Leaf) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype_of(peft, leaf))

    return Adapters(
        *(
            jax.eval_shape(functools.partial(laid_out, peft), _tree(peft, shape, trained))
            for trained in (True, False)
        )
    )


def adapter_axes(peft: Peft) -> Adapters:
    """A tuple of logical axis names in place of each leaf."""

    def names(trained: bool) -> PyTree:
        flat = _tree(peft, lambda path, name, leaf: _Axes(leaf.axes), trained)
        stacked = restack(flat, peft.model, peft.scanned, stack=_stacked_axes)
        return jax.tree.map(lambda axes: axes.names, stacked)

    return Adapters(names(True), names(False))


@dataclass(frozen=True)
class _Axes:
    names: tuple[str | None, ...]


def _stacked_axes(*layers: _Axes) -> _Axes:
    return _Axes(("layers", *layers[0].names))


def count_trained(peft: Peft) -> int:
    """Trained numbers; columns that are masked do not count."""
    total = 0
    for target in peft.targets:
        own = dataclasses.replace(target, width=target.rank)
        if target.rank:
            total += _count(_for_site(own, peft.method.leaves(own)))
    return total + _count(peft.leaves.get(SHARED, {}))


def _count(leaves: Mapping[str, Leaf]) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in leaves.values() if leaf.trained)


# --- start ---------------------------------------------------------------------------------------


def init(peft: Peft, params: PyTree, key: Array) -> tuple[PyTree, Adapters]:
    """(the base that is trained upon, fresh adapters), both in the layout of `params`.

    The base is `params` itself, except where the method begins with another split of the same
    weights (PiSSA, OLoRA, LoftQ). The random numbers of a leaf follow from the key and its path.
    """

    def draw(path: str, name: str, leaf: Leaf) -> Array:
        seed = np.uint32(zlib.crc32(f"{path}/{name}".encode()))
        return leaf.initializer(jax.random.fold_in(key, seed), leaf.shape, dtype_of(peft, leaf))

    trained, constants = (_tree(peft, draw, kind) for kind in (True, False))
    start = peft.method.start(peft.settings)
    if start is not None:
        params, trained = _started(peft, start, params, trained, constants)
    return params, Adapters(laid_out(peft, trained), laid_out(peft, constants))


def _started(
    peft: Peft, start: Start, params: PyTree, trained: PyTree, constants: PyTree
) -> tuple[PyTree, PyTree]:
    """`start` at every target; all but the base unrolled."""
    base = dict(flat(unrolled(peft, params)))
    leaves, fixed = dict(flat(trained)), dict(flat(constants))
    changed = False
    for target in peft.targets:
        site = target.site
        if not target.rank:
            continue
        names = peft.leaves[site.path]
        own = {n: {**leaves, **fixed}[f"{site.path}/{n}"] for n in names}
        begin = functools.partial(start, target)
        if site.kind == "experts":
            begin = jax.vmap(begin)
        weight, own = begin(restored(base[site.weight]), own)
        if weight is not None:
            _refuse_change(peft, site, base[site.weight])
            changed = True
            base[site.weight] = weight.astype(peft.model.param_dtype)
        leaves |= {
            f"{site.path}/{n}": a.astype(dtype_of(peft, names[n]))
            for n, a in own.items()
            if names[n].trained
        }
    if changed:
        params = laid_out(peft, nested(base)) if is_scanned(params) else nested(base)
    return params, nested(leaves)


def _refuse_change(peft: Peft, site: Site, weight: Any) -> None:
    """Raises ConfigError where another base at `site` would not be the same model."""
    if is_quantized(weight):
        raise ConfigError(
            f"peft.init={peft.settings.init!r} splits the weights as they were before quantisation;"
            " begin with those, and quantise the base that it returns"
        )
    if site.kind == "embedding" and peft.model.tied_embeddings:
        raise ConfigError(
            f"peft.init={peft.settings.init!r} changes the embedding, and the head is tied to it; "
            "set peft.exclude to it, or model.tied_embeddings to False"
        )


def flat(tree: PyTree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dicts; anything else is a leaf, quantised weights too."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def by_site(*trees: PyTree) -> dict[str, dict[str, Any]]:
    """Site path (in the layout that the trees have) -> its leaves of all trees."""
    sites: dict[str, dict[str, Any]] = {}
    for tree in trees:
        for path, leaf in flat(tree):
            site, _, name = path.rpartition("/")
            sites.setdefault(site, {})[name] = leaf
    return sites


# --- merge ---------------------------------------------------------------------------------------


def merge(peft: Peft, params: PyTree, adapters: Adapters) -> PyTree:
    """Parameters of a model that does alone what `params` and the adapters do together.

    Quantised weights become whole ones of `model.param_dtype`. Site by site, so that at most one
    weight exists twice.

    Raises:
        ConfigError: the method has no merge, or a weight is used elsewhere too.
    """
    if peft.method.merge is None:
        raise ConfigError(
            f"peft.method={peft.settings.method!r} cannot be merged into the model's weights; "
            "serve it with its adapters"
        )
    return _changed(peft, params, adapters, peft.method.merge, peft.method.merge_bias)


def unmerge(peft: Peft, params: PyTree, adapters: Adapters) -> PyTree:
    """The base that `merge` was given, up to rounding.

    Raises:
        ConfigError: the method cannot be taken out again.
    """
    if peft.method.unmerge is None:
        raise ConfigError(
            f"peft.method={peft.settings.method!r} cannot be taken out of merged weights; keep the "
            "base"
        )
    change_bias = peft.method.unmerge_bias
    if peft.method.merge_bias is not None and change_bias is None and peft.settings.bias:
        raise ConfigError("peft.bias: merged biases cannot be taken out again; keep the base")
    return _changed(peft, params, adapters, peft.method.unmerge, change_bias)


def _changed(
    peft: Peft,
    params: PyTree,
    adapters: Adapters,
    change: Callable,
    change_bias: Callable | None,
) -> PyTree:
    base = dict(flat(unrolled(peft, params)))
    leaves = {path: leaf for tree in adapters for path, leaf in flat(unrolled(peft, tree))}
    shared = {n: leaves[f"{SHARED}/{n}"] for n in peft.leaves.get(SHARED, {})}
    for target in peft.targets:
        site = target.site
        if site.kind == "embedding" and peft.model.tied_embeddings:
            raise ConfigError(
                "the head is tied to the embedding, and would change with it; set "
                "model.tied_embeddings to False before, or serve the adapters unmerged"
            )
        own = {n: leaves[f"{site.path}/{n}"] for n in peft.leaves[site.path]}

        def merged(weight: Array, own: dict[str, Array], kind: str = site.kind) -> Array:
            return change(kind, weight.astype(jnp.float32), {**own, **shared}, peft.settings)

        if site.kind == "experts":
            merged = jax.vmap(merged)
        weight = base[site.weight]
        base[site.weight] = merged(restored(weight), own).astype(
            peft.model.param_dtype if is_quantized(weight) else weight.dtype
        )
        if change_bias is not None:
            _merge_bias(base, f"{site.path}/bias", own, change_bias, peft)
    return laid_out(peft, nested(base)) if is_scanned(params) else nested(base)


def _merge_bias(
    base: dict[str, Any], path: str, own: dict[str, Array], change: Callable, peft: Peft
) -> None:
    if path in base:
        base[path] = change(base[path], own, peft.settings).astype(base[path].dtype)
    elif "lora_bias" in own:
        raise ConfigError(
            f"peft.bias: {path} is not there to be merged into; export the adapters instead"
        )
