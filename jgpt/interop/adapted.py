"""The model that a run left, whatever it trained: all of it, a part, or adapters on another model.

Checkpoints of a run with adapters hold these alone. The model that they adapt comes from where the
run began (`init`), and is changed as it was then: split (PiSSA, OLoRA, LoftQ), quantised.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jgpt import models, peft
from jgpt.config import Config, ConfigError
from jgpt.interop.start import begin
from jgpt.interop.workdirs import Saved, unrolled_reader
from jgpt.peft.quantization import is_quantized, restored
from jgpt.training.assembly import unchanged
from jgpt.training.checkpoints import RestoredVariables, restore_params
from jgpt.training.state import ADAPTERS, Start, joined, parted
from jgpt.training.trainable import Trainable, make_trainable
from jgpt.trees import leaves_by_path
from jgpt.typing import PyTree


@dataclass(frozen=True)
class Model:
    """A model from a run, its layers unrolled.

    Attributes:
        config: of the run, `scan_layers` being off.
        variables: `params`; with adapters also `adapters` and `constants`.
        peft: the method of fine-tuning; None where there are no adapters.
        began: the adapters as they were before the first step.
        step: of the checkpoint.
        notes: lines to show.
    """

    config: Config
    variables: dict[str, PyTree]
    peft: peft.Peft | None
    began: peft.Adapters | None
    step: int
    notes: tuple[str, ...]

    @property
    def adapters(self) -> peft.Adapters:
        return peft.Adapters(self.variables[peft.TRAINED], self.variables[peft.CONSTANTS])

    def apply(self) -> Callable[..., Any]:
        """`models.apply` of the model, with its adapters where it has some."""
        plain = partial(models.apply, self.config.model)
        return plain if self.peft is None else peft.bind(self.peft, plain)

    def merged(self) -> dict[str, PyTree]:
        """Variables of a plain model that does the same.

        Raises:
            ConfigError: the method cannot be merged.
        """
        rest = {k: v for k, v in self.variables.items() if k not in (peft.TRAINED, peft.CONSTANTS)}
        if self.peft is None:
            return rest
        params = peft.merge(self.peft, rest["params"], self.adapters)
        whole = partial(_whole, self.config.model.param_dtype)
        return {**rest, "params": jax.tree.map(whole, params, is_leaf=is_quantized)}


def _whole(dtype: str, leaf: Any) -> Any:
    return restored(leaf).astype(dtype) if is_quantized(leaf) else leaf


def open_run(workdir: Path, *, use_ema: bool = True, vocabulary: str = "") -> Model:
    """The model of a run's newest intact checkpoint, on this process's first device.

    Args:
        workdir: folder of the run.
        use_ema: the averaged weights, where the run kept them.
        vocabulary: fingerprint of the tokenizer that will be used with it, to be compared.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: the model that its adapters belong to is gone, or is another one.
    """
    found = restore_params(workdir, use_ema=use_ema, vocabulary=vocabulary)
    variables, trainable, began = found.variables, None, None
    if found.config.peft.method != "none":
        trainable = make_trainable(found.config)
        started = _started(trainable, found, workdir)
        own, began = parted(started.params)
        own = {**own, **variables["params"]}
        variables = {**variables, "params": joined(own, started.frozen) if own else started.frozen}
    model = dataclasses.replace(found.config.model, scan_layers="off")
    config = dataclasses.replace(found.config, model=model)

    def unrolled(tree: PyTree) -> PyTree:
        return models.restack(tree, model, scan=False)

    trees = ("params", ADAPTERS, peft.CONSTANTS)
    return Model(
        config=config,
        variables={k: unrolled(v) if k in trees else v for k, v in variables.items()},
        peft=None if trainable is None else peft.make_peft(config.peft, model),
        began=None
        if began is None
        else peft.Adapters(unrolled(began), unrolled(variables[peft.CONSTANTS])),
        step=found.step,
        notes=found.notes,
    )


def _started(trainable: Trainable, found: RestoredVariables, workdir: Path) -> Start:
    """The run's first state again: what is trained, and beside it the frozen model."""
    config, model = found.config, trainable.model
    key = jax.random.key(config.train.seed)
    source = config.init.workdir or config.init.hf_folder
    if not source:
        return jax.jit(lambda key: trainable.start(models.init(model, key), key))(key)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: here, models.abstract_params(model))
    # The adapters are those of the checkpoint: a folder that they once came from is not needed.
    config = dataclasses.replace(config, peft=dataclasses.replace(config.peft, adapters=""))
    try:
        _, start = begin(config, workdir)
        variables = start(model, places, here, trainable.converter() or unchanged)
    except (ConfigError, RuntimeError) as error:
        if workdir.name in str(error):
            raise
        raise ConfigError(
            f"the model that {workdir} adapts cannot be read from {source!r} ({error}); put it "
            "back, or run this from the folder that the run was started in"
        ) from error
    return jax.jit(lambda params: trainable.start(params, key))(variables["params"])


def reader(workdir: Path, saved: Saved) -> Callable[[str], np.ndarray]:
    """Path with layers unrolled to value, of the whole model with adapters merged into it.

    Where a checkpoint holds all parameters they are read one by one, else they are in memory.

    Raises:
        ConfigError: the adapters cannot be merged, or their model is gone.
    """
    if saved.config.peft.method == "none" and not saved.arrays.get("frozen"):
        return unrolled_reader(saved)
    variables = open_run(workdir, use_ema=saved.weights == "ema").merged()
    values = leaves_by_path(variables["params"])
    plain = unrolled_reader(saved)  # the selection bias lies as it always does

    def read(path: str) -> np.ndarray:
        return np.asarray(values[path]) if path in values else plain(path)

    return read
