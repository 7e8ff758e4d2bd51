"""Elastic weight consolidation (Kirkpatrick et al. 2017): training held to what a model was.

The penalty `L / 2 * sum_i F_i (theta_i - theta*_i)^2` is added to the mean loss, F being the
diagonal of the Fisher information at theta*, the anchor (`jgpt.training.fisher` estimates it). Both
lie in `TrainState.anchor`, each array where its parameter lies, and never in a checkpoint: they are
read from their own folder again.

With adapters theta is the merged model's weights, so that what they add to a weight is what counts;
a method that cannot be merged is refused.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jgpt import models, sharding
from jgpt.config import ConfigError, ModelConfig
from jgpt.models.layout import is_scanned
from jgpt.training.state import TrainState
from jgpt.training.state_files import nested, read_arrays, saved_arrays
from jgpt.training.workdir import write_json
from jgpt.trees import leaves_by_path
from jgpt.typing import Array, PyTree

FOLDER = "fisher"
"""In a workdir."""
FACTS = "fisher.json"
"""In that folder: how the information was estimated. Written last, so what has it is whole."""


def penalty(anchor: Mapping[str, PyTree], params: PyTree, weight: float) -> Array:
    """[] float32: weight / 2 * sum F (theta - theta*)^2, over the parameters that `anchor` has.

    Args:
        anchor: `fisher` and `weights`, trees of the same paths.
        params: with these paths, and maybe others.
        weight: L.
    """
    now, weights = leaves_by_path(params), leaves_by_path(anchor["weights"])
    terms = [
        jnp.sum(fisher * jnp.square(now[path].astype(jnp.float32) - weights[path]))
        for path, fisher in leaves_by_path(anchor["fisher"]).items()
    ]
    return weight / 2 * sum(terms, jnp.zeros(()))


def write_anchor(folder: Path, fisher: PyTree, weights: PyTree, facts: Mapping[str, Any]) -> None:
    """Writes the information and the weights it belongs to; every process calls this.

    Args:
        folder: what it holds already is replaced.
        facts: JSON values that say how it came about.
    """
    if jax.process_index() == 0:
        (folder / FACTS).unlink(missing_ok=True)
    tree = {"fisher": nested(fisher), "weights": nested(weights)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder.absolute() / "state", args=ocp.args.PyTreeSave(tree), force=True)
    if jax.process_index() == 0:
        write_json(folder / FACTS, dict(facts))


def read_anchor(
    path: str,
    model: ModelConfig,
    held: Callable[[PyTree], PyTree],
    mesh: jax.sharding.Mesh,
    places: Mapping[str, PyTree],
) -> dict[str, PyTree]:
    """`fisher` and `weights` as `TrainState.anchor`, float32, restacked where need be.

    Args:
        path: a folder that `write_anchor` wrote, or a workdir with one.
        model: that is trained.
        held: parameters of the model to those that are penalised.
        mesh: of the run.
        places: a sharding for every array.

    Raises:
        ConfigError: there is none, or it belongs to another model.
    """
    folder = _find(path)
    saved = saved_arrays(folder)
    scanned = is_scanned(saved["weights"])
    form = dataclasses.replace(model, scan_layers="on" if scanned else "off")
    shapes = models.abstract_params(form)
    _check(folder, saved, jax.eval_shape(held, models.abstract_params(model)), shapes)
    everywhere = leaves_by_path(sharding.shardings(mesh, models.logical_axes(form), shapes))

    def abstract(tree: PyTree) -> PyTree:
        return nested(
            {
                path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=everywhere[path])
                for path, leaf in leaves_by_path(tree).items()
            }
        )

    def as_trained(tree: PyTree) -> PyTree:
        return held(models.restack(tree, model, model.scan_layers == "on"))

    read = read_arrays(folder, {name: abstract(saved[name]) for name in places})
    return {name: jax.jit(as_trained, out_shardings=places[name])(read[name]) for name in places}


def _find(path: str) -> Path:
    folder = Path(path).expanduser()
    for found in (folder, folder / FOLDER):
        if (found / FACTS).is_file():
            return found.absolute()
    raise ConfigError(
        f"forgetting.ewc: {path!r} holds no Fisher information; make it with python -m jgpt.fisher "
        f"--workdir={path}"
    )


def _check(folder: Path, saved: Mapping[str, PyTree], held: PyTree, shapes: PyTree) -> None:
    """Refuses what belongs to a model of other arrays than those held."""
    there = {path: tuple(leaf.shape) for path, leaf in leaves_by_path(saved["fisher"]).items()}
    wanted = {path: leaf.shape for path, leaf in leaves_by_path(shapes).items()}
    lacking = [p for p in wanted if p.split("/")[0] in held and there.get(p) != wanted[p]]
    for path in [*lacking, *(there.keys() - wanted.keys())]:
        raise ConfigError(
            f"forgetting.ewc: {folder} is of another model: {path} is {there.get(path, 'absent')} "
            f"there and {wanted.get(path, 'absent')} here; make it anew from the run's own base"
        )


def anchored(init: Callable[[], TrainState], read: Callable[[], PyTree]) -> TrainState:
    """A fresh state with what it is held to."""
    return dataclasses.replace(init(), anchor=read())
