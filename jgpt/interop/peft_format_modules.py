"""Modules of the other library that adapters attach to, and the sites of ours in each.

A module is what has a `weight`: one of our sites, or several that it holds fused (query, key and
value of GPT-2 and Phi-3). An adapter of a fused module has one A for all, ours one for each; both
are exact in the other's words, since rows of B belong to one part.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jgpt.config import ModelConfig
from jgpt.interop.configs import write_config
from jgpt.interop.description import Family, InteropError
from jgpt.interop.families import FAMILIES
from jgpt.interop.transforms import SAME, Same, Transform
from jgpt.interop.weights import plan
from jgpt.peft.sites import find_sites

WEIGHT = ".weight"


@dataclass(frozen=True)
class Module:
    """One module with a weight.

    Attributes:
        name: its path, such as `model.layers.0.self_attn.q_proj`.
        sites: paths of ours in it, in its order.
        shapes: [in, out] of each; [V, D] of an embedding.
        kind: `linear` or `embedding`.
        transform: between our kernels and its weight.
        model: ours.
    """

    name: str
    sites: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    kind: str
    transform: Transform
    model: ModelConfig

    @property
    def fused(self) -> bool:
        return len(self.sites) > 1

    @property
    def in_out(self) -> bool:
        """Whether its weight is (in, out), as in GPT-2's Conv1D; torch's is (out, in)."""
        if self.kind == "embedding":
            return False
        inner = self.transform.inner if self.fused else self.transform
        return isinstance(inner, Same)

    @property
    def outputs(self) -> int:
        return sum(out for _, out in self.shapes)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Matrices [k, out] of the sites as one of the module's, (out, k)."""
        parts = [np.asarray(part) for part in parts]
        if self.kind == "embedding":
            return np.ascontiguousarray(parts[0].T)
        whole = self.transform.write(parts, self.model)
        return np.ascontiguousarray(whole.T if self.in_out else whole)

    def split(self, whole: np.ndarray) -> list[np.ndarray]:
        """Its inverse."""
        if self.kind == "embedding":
            return [np.array(whole.T)]
        theirs = whole.T if self.in_out else whole
        shapes = [(whole.shape[1], out) for _, out in self.shapes]
        parts = range(len(shapes))
        return [np.array(self.transform.read(theirs, i, shapes, self.model)) for i in parts]


def family_of_model(model: ModelConfig, name: str = "") -> Family:
    """The family of that name, or the first that has such models.

    Raises:
        InteropError: none has.
    """
    if name and name not in FAMILIES:
        raise InteropError(f"family {name!r} is not known; there are {', '.join(FAMILIES)}")
    return write_config(model, name)[0]


def modules(family: Family, model: ModelConfig) -> Mapping[str, Module]:
    """Every module that adapters can attach to, by its name.

    Experts are not among them: transformers keeps those of a layer in one array, which is no module
    that peft knows.
    """
    return _modules(family.name, model)


@functools.lru_cache(maxsize=8)
def _modules(family: str, model: ModelConfig) -> Mapping[str, Module]:
    kinds = ("linear", "embedding")
    sites = {site.weight: site for site in find_sites(model) if site.kind in kinds}
    found = {}
    for use in plan(FAMILIES[family], model):
        own = [sites.get(path) for path in use.parts]
        if use.stacked or None in own or not use.names[0].endswith(WEIGHT):
            continue
        kind = own[0].kind
        transform = SAME if kind == "embedding" else use.row.transform
        name = use.names[0].removesuffix(WEIGHT)
        shapes = tuple(site.matrix for site in own)
        paths = tuple(site.path for site in own)
        found[name] = Module(name, paths, shapes, kind, transform, model)
    return found


def modules_of_sites(family: Family, model: ModelConfig, sites: Sequence[str]) -> dict[str, Module]:
    """The modules that hold these sites, by name.

    Raises:
        InteropError: a site that is in none.
    """
    known = modules(family, model)
    of_site = {site: module for module in known.values() for site in module.sites}
    for site in sites:
        if site not in of_site:
            raise InteropError(
                f"{site}: peft has no such module in {family.name} models (experts lie in one "
                "array there); leave it out (peft.exclude), or merge"
            )
    wanted = {of_site[site].name for site in sites}
    return {name: module for name, module in known.items() if name in wanted}


def target_names(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """`target_modules`: last parts of the names where those mean the same, else whole names.

    Args:
        names: of the modules that are adapted.
        every: names of all modules there are.
    """
    lasts = {name.rpartition(".")[2] for name in names}
    meant = {name for name in every if name.rpartition(".")[2] in lasts}
    return sorted(lasts) if meant == set(names) else sorted(names)


def commonest(values: Iterable[Any]) -> Any:
    """What most modules have: the default beside which patterns name the others."""
    return Counter(values).most_common(1)[0][0]
