"""Which tensors of a folder make which parameters; each is read when it is asked for, in slices."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import numpy as np

from jgpt import models
from jgpt.config import ModelConfig
from jgpt.interop.description import Family, InteropError, Tensor
from jgpt.interop.folder import Folder
from jgpt.models.layout import layout, moe_layers
from jgpt.trees import leaves_by_path, map_with_path
from jgpt.typing import PyTree

SELECTION_BIAS = "selection_bias"
Index = tuple[slice, ...]


class Source(Protocol):
    """An array that is read slice by slice."""

    shape: tuple[int, ...]

    def read(self, index: Index) -> np.ndarray:
        """Part of the array, in memory of its own."""


@dataclass(frozen=True)
class Use:
    """One tensor of theirs with the layer filled in, and the parameters of ours in it.

    Attributes:
        names: one, or one per expert.
        parts: paths of ours, layers unrolled.
        shapes: of the parts; of one expert where `stacked`.
    """

    row: Tensor
    names: tuple[str, ...]
    parts: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def stacked(self) -> bool:
        return "{e}" in self.row.theirs


def unrolled_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by path, layers unrolled, with the selection bias of each layer."""
    shapes = models.abstract_params(replace(model, scan_layers="off"))
    found = {path: tuple(leaf.shape) for path, leaf in leaves_by_path(shapes).items()}
    if model.moe.selection_bias:
        for index in moe_layers(model):
            found[f"{SELECTION_BIAS}/layers_{index}"] = (model.moe.num_experts,)
    return found


def plan(family: Family, model: ModelConfig) -> list[Use]:
    """Every tensor of theirs that the model has, in the order of our parameters.

    Raises:
        InteropError: the family has no row for one of our parameters.
    """
    rows: dict[str, Tensor] = {}
    for row in family.tensors:
        for ours in row.ours:
            rows.setdefault(ours, row)
    shapes = unrolled_shapes(model)
    uses, done = [], set()
    for path in shapes:
        layer = re.search(r"layers_(\d+)", path)
        number = layer[1] if layer else ""
        row = rows.get(re.sub(r"layers_\d+", "layers_{i}", path))
        if row is None:
            raise InteropError(f"{family.name} models have no {path}; export as another family")
        if path not in done:
            use = _use(row, number, shapes, model)
            uses.append(use)
            done |= set(use.parts)
    return uses


def _use(
    row: Tensor, number: str, shapes: Mapping[str, tuple[int, ...]], model: ModelConfig
) -> Use:
    parts = tuple(ours.replace("{i}", number) for ours in row.ours)
    name = row.theirs.replace("{i}", number)
    missing = [path for path in parts if path not in shapes]
    if missing:
        raise InteropError(f"{name} holds {missing[0]}, which this model has not")
    if "{e}" not in name:
        return Use(row, (name,), parts, tuple(shapes[path] for path in parts))
    names = tuple(name.replace("{e}", str(expert)) for expert in range(model.moe.num_experts))
    return Use(row, names, parts, tuple(shapes[path][1:] for path in parts))


@dataclass(frozen=True)
class Piece:
    """Our part of one tensor in a folder."""

    folder: Folder
    name: str
    use: Use
    part: int
    model: ModelConfig

    @property
    def shape(self) -> tuple[int, ...]:
        return self.use.shapes[self.part]

    def read(self, index: Index) -> np.ndarray:
        theirs = self.folder.view(self.name)
        ours = self.use.row.transform.read(theirs, self.part, self.use.shapes, self.model)
        found = np.array(ours[index], order="C")
        self.folder.release(self.name)
        return found


@dataclass(frozen=True)
class Stack:
    """Equal arrays along a new first axis: experts of a layer, layers of a scan."""

    items: tuple[Source, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.items), *self.items[0].shape)

    def read(self, index: Index) -> np.ndarray:
        items = self.items[index[0]]
        found = None
        for number, item in enumerate(items):
            array = item.read(index[1:])
            if found is None:
                found = np.empty((len(items), *array.shape), array.dtype)
            found[number] = array
        return found


def sources(folder: Folder, model: ModelConfig) -> dict[str, Source]:
    """A source for every parameter, by its path with layers unrolled (see `unrolled_shapes`).

    Every tensor of the folder is used exactly once.

    Raises:
        InteropError: one line with all that is missing, left over or of another shape.
    """
    family = folder.family
    uses = plan(family, model)
    stored = _stored_names(folder, family)
    problems = _problems(folder, family, model, uses, stored)
    if problems:
        raise InteropError(f"{folder.path} does not hold this {family.name} model: {problems}")
    found: dict[str, Source] = {}
    for use in uses:
        for part, path in enumerate(use.parts):
            pieces = [Piece(folder, stored[name], use, part, model) for name in use.names]
            found[path] = Stack(tuple(pieces)) if use.stacked else pieces[0]
    return found


def _stored_names(folder: Folder, family: Family) -> dict[str, str]:
    """Name in the family's rows to name in the files: some files leave out a prefix."""
    prefix = family.optional_prefix
    if not prefix or any(name.startswith(prefix) for name in folder.files):
        return {name: name for name in folder.files}
    known = {row.theirs.split("{")[0].split(".")[0] for row in family.tensors}
    return {n if n.split(".")[0] in known else prefix + n: n for n in folder.files}


def _problems(
    folder: Folder,
    family: Family,
    model: ModelConfig,
    uses: Sequence[Use],
    stored: Mapping[str, str],
) -> str:
    wanted = {name: use for use in uses for name in use.names}
    missing = [name for name in wanted if name not in stored]
    left = [
        name
        for name in stored
        if name not in wanted and not any(re.search(p, name) for p in family.ignored)
    ]
    if model.tied_embeddings:
        left = [name for name in left if not _is_tied_copy(folder, family, name, stored)]
    shapes = []
    for name, use in wanted.items():
        if name in stored:
            there = folder.entry(stored[name]).shape
            here = use.row.transform.shape(use.shapes, model)
            if there != here:
                shapes.append(f"{name} {list(there)} instead of {list(here)}")
    found = []
    for what, names in (("missing", missing), ("left over", left), ("of another shape", shapes)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            found.append(f"{what}: {', '.join(names[:5])}{more}")
    return "; ".join(found)


def _is_tied_copy(folder: Folder, family: Family, name: str, stored: Mapping[str, str]) -> bool:
    """Whether `name` is the head of a tied model, stored though it is the embedding once more."""
    rows = {ours: row.theirs for row in family.tensors for ours in row.ours}
    table = rows.get("embedding/table")
    if name != rows.get("head/kernel") or table not in stored:
        return False
    head, embedding = folder.view(stored[name]), folder.view(stored[table])
    same = head.shape == embedding.shape and all(
        np.array_equal(head[i : i + 4096], embedding[i : i + 4096])
        for i in range(0, len(head), 4096)
    )
    folder.release(stored[name])
    folder.release(stored[table])
    return same


def dtype_of(folder: Folder) -> np.dtype:
    """The type that holds every floating point tensor of a folder without loss."""
    types = {file.entries[name].dtype for name, file in folder.files.items()}
    floating = {t for t in types if t.kind not in "iub"}
    return floating.pop() if len(floating) == 1 else np.dtype(np.float32)


def load(
    folder: Folder,
    model: ModelConfig,
    shardings: PyTree,
    replicated: jax.sharding.Sharding,
    convert: Callable[[str, jax.Array], Any] = lambda path, array: array,
) -> dict[str, PyTree]:
    """The model's variables on their devices, in `model.param_dtype`.

    A process reads only the slices that its devices hold, one parameter after the other.

    Args:
        folder: from `open_folder`.
        model: the architecture in the folder, with the computation's own settings.
        shardings: of every parameter, in the form (scanned or unrolled) that they shall have.
        replicated: of the selection bias.
        convert: what lies in the place of a parameter; called before the next one is read.

    Raises:
        InteropError: the folder does not hold this model.
    """
    found = sources(folder, model)
    dtype = jax.numpy.dtype(model.param_dtype)

    def place(path: str, sharding: jax.sharding.Sharding) -> Any:
        array = _place(_scanned(found, path, model), sharding, dtype)
        return jax.block_until_ready(convert(path, array))

    variables = {"params": map_with_path(place, shardings)}
    if model.moe.selection_bias:
        layers = [found[f"{SELECTION_BIAS}/layers_{i}"] for i in moe_layers(model)]
        variables[SELECTION_BIAS] = _place(Stack(tuple(layers)), replicated, np.dtype(np.float32))
    return variables


def _place(source: Source, sharding: jax.sharding.Sharding, dtype: Any) -> jax.Array:
    pieces: dict[Any, np.ndarray] = {}  # devices that hold the same slice share one reading

    def read(index: Index) -> np.ndarray:
        place = tuple((part.start, part.stop) for part in index)
        if place not in pieces:
            pieces[place] = source.read(index).astype(dtype, copy=False)
        return pieces[place]

    array = jax.make_array_from_callback(source.shape, sharding, read)
    return array.block_until_ready()  # before the next is read: host copies do not pile up


def _scanned(found: Mapping[str, Source], path: str, model: ModelConfig) -> Source:
    """The source of a parameter: one layer's, or all of a scan's (`layers/block_0/...`)."""
    scan = re.match(r"(encoder/)?layers/block_(\d+)/(.+)", path)
    if not scan:
        return found[path]
    stack, block, rest = scan[1] or "", int(scan[2]), scan[3]
    where = layout(model.encoder if stack else model)
    layers = [where.layer(period, block) for period in range(where.periods)]
    return Stack(tuple(found[f"{stack}layers_{layer}/{rest}"] for layer in layers))
