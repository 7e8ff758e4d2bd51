"""Reads adapters in peft's format (`jgpt.interop.peft_format` says what becomes what)."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jgpt.config import AdaLoraConfig, ConfigError, ModelConfig, PeftConfig
from jgpt.interop import peft_format_prompts as prompts
from jgpt.interop.description import Family, InteropError
from jgpt.interop.folder import read_json
from jgpt.interop.peft_format import CONFIG_FILE, PREFIX, PROJECTIONS, WEIGHTS_FILE
from jgpt.interop.peft_format_methods import ADALORA, CODECS, VERA, Codec, ending_of
from jgpt.interop.peft_format_modules import (
    Module,
    commonest,
    family_of_model,
    modules,
)
from jgpt.interop.tensor_files import TensorFile
from jgpt.interop.weights import plan
from jgpt.peft import Adapters, Peft, compose, make_peft
from jgpt.peft.adalora import EPSILON
from jgpt.peft.adapters import SHARED, dtype_of, laid_out, nested

ADD_MORE = (
    "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora",
    "use_bdlora", "arrow_config", "alora_invocation_tokens", "velora_config", "monteclora_config",
)  # fmt: skip
"""Settings of theirs that change what is computed and that ours do not have."""


@dataclass(frozen=True)
class AdapterFolder:
    """A folder of adapters, opened."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    """by name, without the leading `base_model.model.`"""


@dataclass(frozen=True)
class Read:
    """Adapters of a folder in our words.

    Attributes:
        settings: that make them fit.
        values: leaves by the path of their site (or `shared`), columns in use only.
        own: the model's own parameters that were trained, by unrolled path.
    """

    settings: PeftConfig
    values: Mapping[str, Mapping[str, np.ndarray]]
    own: Mapping[str, np.ndarray] = field(default_factory=dict)


def open_adapters(path: Path) -> AdapterFolder:
    """Opens and checks a folder.

    Raises:
        InteropError: what is missing, or not understood, in one line.
    """
    if not path.is_dir():
        raise InteropError(f"there is no folder {str(path)!r}; give that of adapters")
    if not (path / CONFIG_FILE).is_file():
        raise InteropError(f"{path} has no {CONFIG_FILE}; it is no folder of adapters")
    config = read_json(path / CONFIG_FILE)
    if not (path / WEIGHTS_FILE).is_file():
        pickled = " (a pickle can run any code when it is read)" * any(path.glob("*.bin"))
        raise InteropError(f"{path} has no {WEIGHTS_FILE}{pickled}; save it with safetensors")
    kind = config.get("peft_type")
    if kind not in (*CODECS, *prompts.KINDS):
        known = ", ".join((*CODECS, *prompts.KINDS))
        raise InteropError(f"{path / CONFIG_FILE}: peft_type {kind!r} is not known; known: {known}")
    strange = [name for name in ADD_MORE if config.get(name)]
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if strange:
        raise InteropError(
            f"{path / CONFIG_FILE}: {strange[0]}={config[strange[0]]!r} is not supported; merge "
            "these adapters with peft"
        )
    file = TensorFile(path / WEIGHTS_FILE)
    tensors = {n.removeprefix(PREFIX): file.view(n).astype(np.float32) for n in file.entries}
    return AdapterFolder(path, config, tensors)


def read(folder: AdapterFolder, model: ModelConfig, family: str = "") -> Read:
    """What a folder holds, for a model.

    Raises:
        InteropError: tensors of no module of this model, or of another shape.
    """
    config = folder.config
    if config["peft_type"] in prompts.KINDS:
        if prompts.TENSOR not in folder.tensors:
            raise InteropError(f"{folder.path} has no {prompts.TENSOR}; fetch it again")
        settings, values = prompts.read(folder.tensors[prompts.TENSOR], config, model)
        return Read(settings, values)
    codec, named = CODECS[config["peft_type"]], family_of_model(model, family)
    by_module, shared, rest = _sorted(folder, codec, named, model)
    known = modules(named, model)
    values = {}
    for name, tensors in by_module.items():
        _check_shapes(folder, known[name], tensors)
        values |= codec.read(known[name], tensors, _scale(codec, config, name, tensors))
    if codec is VERA:
        if len(shared) < len(PROJECTIONS):
            raise InteropError(
                f"{folder.path} has no vera_A and vera_B, which only torch can draw again; save it "
                "with save_projection=True"
            )
        values[SHARED] = shared
    own = _own(folder, rest, named, model)
    settings = _settings(codec, config, values, model)
    also = tuple(f"^{re.escape(path)}$" for path in own)
    return Read(dataclasses.replace(settings, train_also=also), values, own)


def _sorted(
    folder: AdapterFolder, codec: Codec, family: Family, model: ModelConfig
) -> tuple[dict[str, dict], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(tensors by module and ending, shared ones by our name, the rest)."""
    known, prefix = modules(family, model), family.optional_prefix
    by_module: dict[str, dict[str, np.ndarray]] = {}
    shared, rest = {}, {}
    for name, array in folder.tensors.items():
        found = ending_of(name, codec.endings)
        last = name.rpartition(".")[2]
        if last in PROJECTIONS:
            shared[PROJECTIONS[last]] = array.T
        elif found is None:
            rest[name] = array
        else:
            module = found[0] if found[0] in known else prefix + found[0]
            if module not in known:
                raise InteropError(
                    f"{folder.path}: {name} belongs to no module of this {family.name} model that "
                    "can be adapted here"
                )
            by_module.setdefault(module, {})[found[1]] = array
    if not by_module:
        raise InteropError(f"{folder.path} holds no adapters of type {codec.kind}")
    return by_module, shared, rest


def _check_shapes(folder: AdapterFolder, module: Module, tensors: Mapping[str, np.ndarray]) -> None:
    fan_in = module.shapes[0][0]
    inputs = {"lora_A.weight": 1, "lora_embedding_A": 1, "lora_A": 1}
    outputs = {"lora_B.weight": 0, "lora_embedding_B": 0, "lora_B": 0, "lora_magnitude_vector": 0}
    outputs |= {"vera_lambda_b": 0, "lora_B.bias": 0}
    for sides, size in ((inputs, fan_in), (outputs, module.outputs)):
        for ending, axis in sides.items():
            if ending in tensors and tensors[ending].shape[axis] != size:
                raise InteropError(
                    f"{folder.path}: {module.name}.{ending} has shape "
                    f"{list(tensors[ending].shape)}, and this model {size} at axis {axis}: it "
                    "belongs to another"
                )


def _scale(
    codec: Codec, config: Mapping[str, Any], name: str, tensors: Mapping[str, np.ndarray]
) -> float:
    """s of a module."""
    alpha = config.get("lora_alpha", 8)
    if codec is ADALORA:
        return alpha / (config.get("init_r", 12) + EPSILON)
    if codec.kind != "LORA":
        return 1.0
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    rank = len(tensors.get("lora_A.weight", tensors.get("lora_embedding_A", ())))
    if not rank:
        raise InteropError(f"{name} has no lora_A; fetch the adapters again")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _settings(
    codec: Codec,
    config: Mapping[str, Any],
    values: Mapping[str, Mapping[str, np.ndarray]],
    model: ModelConfig,
) -> PeftConfig:
    sites = {path: own for path, own in values.items() if path != SHARED}
    targets = tuple(f"^{path}$" for path in sites)
    if codec.kind == "IA3":
        return compose.compact(PeftConfig(method="ia3", targets=targets), model)
    if codec is VERA:
        rank = values[SHARED]["projection_a"].shape[-1]
        dropout = float(config.get("vera_dropout", 0.0))
        settings = PeftConfig(method="vera", targets=targets, rank=rank, dropout=dropout)
        return compose.compact(settings, model)
    dropout = float(config.get("lora_dropout", 0.0))
    if codec is ADALORA:
        initial = int(config.get("init_r", 12))
        settings = PeftConfig(
            method="adalora",
            targets=targets,
            rank=min(int(config.get("target_r", 8)), initial),
            alpha=float(config.get("lora_alpha", 8)),
            dropout=dropout,
            adalora=AdaLoraConfig(initial_rank=initial),
        )
        return compose.compact(settings, model)
    return compose.compact(_lora_settings(config, sites, targets, dropout), model)


def _lora_settings(
    config: Mapping[str, Any],
    sites: Mapping[str, Mapping[str, np.ndarray]],
    targets: Sequence[str],
    dropout: float,
) -> PeftConfig:
    root = bool(config.get("use_rslora"))
    ranks = {path: len(own["scaling"]) for path, own in sites.items()}
    alphas = {
        path: round(float(own["scaling"][0]) * (ranks[path] ** (0.5 if root else 1.0)), 5)
        for path, own in sites.items()
    }
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    return PeftConfig(
        method="dora" if config.get("use_dora") else "lora",
        targets=tuple(targets),
        rank=rank,
        alpha=alpha,
        scaling="sqrt_rank" if root else "rank",
        rank_pattern=tuple(f"^{path}$={r}" for path, r in ranks.items() if r != rank),
        alpha_pattern=tuple(f"^{path}$={a}" for path, a in alphas.items() if a != alpha),
        dropout=dropout,
        bias=any("lora_bias" in own for own in sites.values()),
    )


def _own(
    folder: AdapterFolder, rest: Mapping[str, np.ndarray], family: Family, model: ModelConfig
) -> dict[str, np.ndarray]:
    """Parameters of ours in tensors that belong to no adapter; copies of the base are left out."""
    uses = {use.names[0]: use for use in plan(family, model) if not use.stacked}
    saved = folder.config.get("modules_to_save") or []
    found = {}
    for name, array in rest.items():
        module = name.rpartition(".")[0]
        if not any(module.endswith(other) for other in saved):
            if ".base_layer." in name or name in uses:  # an embedding that peft saves beside LoRA
                continue
            raise InteropError(f"{folder.path}: {name} is not understood")
        if name not in uses:
            raise InteropError(f"{folder.path}: {name} belongs to no parameter of this model")
        use = uses[name]
        for part, path in enumerate(use.parts):
            ours = use.row.transform.read(array, part, use.shapes, model)
            if ours.shape != use.shapes[part]:
                raise InteropError(
                    f"{folder.path}: {name} has shape {list(array.shape)}, of another model"
                )
            found[path] = np.array(ours)
    return found


def build(found: Read, model: ModelConfig) -> tuple[Peft, Adapters]:
    """A folder's adapters, in the layout of `model`.

    Raises:
        ConfigError: the settings do not fit.
    """
    peft = make_peft(found.settings, model)
    trees: tuple[dict, dict] = ({}, {})
    for path, leaves in peft.leaves.items():
        given = found.values.get(path, {})
        for name, leaf in leaves.items():
            whole = np.asarray(leaf.initializer(jax.random.key(0), leaf.shape, jnp.float32))
            if name in given and name != "scaling":
                value = np.asarray(given[name], np.float32)
                if any(have > room for have, room in zip(value.shape, whole.shape)):
                    raise ConfigError(
                        f"{path}/{name} has shape {list(value.shape)}, and there is room for "
                        f"{list(whole.shape)}; mend peft.rank and its patterns"
                    )
                whole = np.zeros_like(whole)
                whole[tuple(slice(n) for n in value.shape)] = value
            trees[0 if leaf.trained else 1][f"{path}/{name}"] = jnp.asarray(
                whole, dtype_of(peft, leaf)
            )
    return peft, Adapters(*(laid_out(peft, nested(tree)) for tree in trees))
