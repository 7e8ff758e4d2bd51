"""The `TrainState` as Orbax files: nested dicts named by path, read onto any mesh and layout."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jgpt.config import ModelConfig
from jgpt.models import restack
from jgpt.models.layout import is_scanned
from jgpt.training.state import ADAPTERS, TrainState, abstract_state, parted
from jgpt.trees import leaves_by_path
from jgpt.typing import PyTree


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or used; one line that says why and what to do."""


def nested(tree: PyTree) -> dict[str, Any]:
    """Nested dicts of the leaves, by path: the same on disk whatever the containers are in memory.

    Containers without leaves vanish; `_like` brings them back.
    """
    result: dict[str, Any] = {}
    for path, leaf in leaves_by_path(tree).items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, result)[name] = leaf
    return result


def _like(tree: PyTree, values: dict[str, Any]) -> PyTree:
    """Inverse of `nested`: `values` in the containers of `tree`."""
    by_path = leaves_by_path(values)
    paths = list(leaves_by_path(tree))
    return jax.tree.unflatten(jax.tree.structure(tree), [by_path[path] for path in paths])


def read_state(directory: Path, abstract: TrainState, config: ModelConfig) -> TrainState:
    """The state on the devices of `abstract`, restacked where layers are laid out differently."""
    saved = saved_arrays(directory)
    scanned = _scanned(saved["params"])
    if scanned == _scanned(abstract.params):
        return _read_like(directory, saved, abstract)
    if abstract.frozen:
        raise CheckpointError(
            f"{directory} holds layers of which some are frozen; set model.scan_layers to "
            f"{'on' if scanned else 'off'} as it was there"
        )
    as_saved = jax.eval_shape(functools.partial(_restack, config, scan=scanned), abstract)
    everywhere = abstract.step.sharding
    state = _read_like(
        directory,
        saved,
        abstract_state(as_saved, everywhere),
        remedy=f"set model.scan_layers to {'on' if scanned else 'off'} as it was there, since this "
        "optimizer's state has another form for scanned layers",
    )
    back = functools.partial(_restack, config, scan=not scanned)
    return jax.jit(back, out_shardings=jax.tree.map(lambda a: a.sharding, abstract))(state)


def _restack(config: ModelConfig, state: TrainState, *, scan: bool) -> TrainState:
    """A state with its parameters, and all that mirrors them, in the other layout."""

    def mirrors(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() == state.params.keys()

    def restacked(params: PyTree) -> PyTree:
        own, adapters = parted(params)
        own = restack(own, config, scan)
        return own if adapters is None else {**own, ADAPTERS: restack(adapters, config, scan)}

    state = jax.tree.map(
        lambda node: restacked(node) if mirrors(node) else node, state, is_leaf=mirrors
    )
    return dataclasses.replace(state, constants=restack(state.constants, config, scan))


def _scanned(params: PyTree) -> bool:
    own, adapters = parted(params)
    return is_scanned(own) or (adapters is not None and is_scanned(adapters))


def _read_like(
    directory: Path,
    saved: dict[str, Any],
    abstract: TrainState,
    remedy: str = "use the config it was made with, or another --workdir",
) -> TrainState:
    """The state, after a check that every array is there with the wanted shape and type."""
    before, now = leaves_by_path(saved), leaves_by_path(abstract)
    differing = [
        f"{path} is {_describe(before.get(path))} there and {_describe(now.get(path))} here"
        for path in {**now, **before}
        if _describe(before.get(path)) != _describe(now.get(path))
    ]
    if differing:
        raise CheckpointError(
            f"{directory} does not fit this run: {differing[0]} ({len(differing)} such arrays); "
            f"{remedy}"
        )
    return _like(abstract, read_arrays(directory, nested(abstract)))


def _describe(leaf: Any) -> str:
    return "absent" if leaf is None else f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def saved_arrays(directory: Path) -> dict[str, Any]:
    """Shapes and types of what `state/` holds."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.metadata(directory / "state").item_metadata.tree


def read_arrays(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(directory / "state", args=arguments)
