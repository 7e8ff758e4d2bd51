"""Writes adapters in peft's format (`jgpt.interop.peft_format` says what becomes what)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jgpt.config import ModelConfig, PeftConfig
from jgpt.interop import peft_format_prompts as prompts
from jgpt.interop.description import Family, InteropError
from jgpt.interop.export import complete_or_nothing, write_json
from jgpt.interop.peft_format import CONFIG_FILE, PREFIX, PROJECTIONS, SHARED_PREFIX, WEIGHTS_FILE
from jgpt.interop.peft_format_methods import ADALORA, IA3, OF_METHOD, VERA, Codec
from jgpt.interop.peft_format_modules import (
    Module,
    commonest,
    family_of_model,
    modules,
    modules_of_sites,
    target_names,
)
from jgpt.interop.tensor_files import Shape, write_file
from jgpt.interop.weights import plan
from jgpt.peft import METHODS, Adapters, Peft, compose
from jgpt.peft.adalora import EPSILON
from jgpt.peft.adapters import SHARED, flat, unrolled
from jgpt.peft.starts import SPLITS


def write_folder(
    target: Path,
    peft: Peft,
    adapters: Adapters,
    *,
    own: Mapping[str, Any] | None = None,
    began: Adapters | None = None,
    base: str = "",
    family: str = "",
    serving: bool = False,
) -> dict[str, Any]:
    """Writes adapters as a folder that `PeftModel.from_pretrained` loads.

    Args:
        target: the folder; must not exist.
        own: parameters of the model that were trained beside the adapters, by unrolled path.
        began: the adapters before the first step (PiSSA, OLoRA, LoftQ need them).
        base: `base_model_name_or_path`.
        family: whose names modules get; "" for the first that has such models.
        serving: the form for vLLM.

    Returns:
        The content of `adapter_config.json`.

    Raises:
        InteropError, ConfigError: what cannot be said so.
    """
    own = dict(own or {})
    if serving and own:
        raise InteropError(
            f"the serving form holds LoRA only, and {next(iter(own))} was trained too; merge"
        )
    peft, adapters = _plain(peft, adapters, began)
    if serving:
        peft, adapters = compose.as_lora((peft, adapters))
    named = family_of_model(peft.model, family)
    tensors, config = _contents(peft, adapters, named)
    if serving:
        tensors, config = _one_rank(tensors, config)
    extra, saved = _saved_modules(own, named, peft.model)
    tensors |= extra
    config |= {
        "task_type": _task(peft.model),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": saved or None,
    }
    with complete_or_nothing(target) as partial:
        shapes = {name: Shape(array.shape, array.dtype) for name, array in tensors.items()}
        write_file(partial / WEIGHTS_FILE, shapes, tensors.__getitem__, {"format": "pt"})
        write_json(partial / CONFIG_FILE, config)
    return config


def _plain(peft: Peft, adapters: Adapters, began: Adapters | None) -> compose.Pair:
    """Adapters that belong to the original model: `s (B A - B0 A0)` where it was split."""
    if peft.settings.init not in SPLITS:
        return peft, adapters
    if began is None:
        raise InteropError(
            f"peft.init={peft.settings.init!r} splits the base; write the adapters from their run, "
            "which knows how they began"
        )
    return compose.combine([(peft, adapters), (peft, began)], (1.0, -1.0))


def _one_rank(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """LoRA whose s is 1 everywhere, with zeros where a module has fewer rows than another."""
    axes = {name: int("lora_B" in name or name.endswith("_B")) for name in tensors}
    rank = max(array.shape[axes[name]] for name, array in tensors.items())

    def padded(name: str, array: np.ndarray) -> np.ndarray:
        widths = [(0, 0), (0, 0)]
        widths[axes[name]] = (0, rank - array.shape[axes[name]])
        return np.pad(array, widths)

    same = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
    return {name: padded(name, array) for name, array in tensors.items()}, {**config, **same}


def leaves_by_site(peft: Peft, adapters: Adapters) -> dict[str, dict[str, np.ndarray]]:
    """Leaves of the sites that are adapted, and of `shared`; float32, masked columns cut off."""
    values = {}
    for tree in adapters:
        values |= dict(flat(unrolled(peft, tree)))
    found = {}
    for path, names in peft.leaves.items():
        own = {n: np.asarray(values[f"{path}/{n}"]).astype(np.float32) for n in names}
        found[path] = _used(own) if "scaling" in own else own
    masked = {t.site.path for t in peft.targets if not t.rank and peft.method.masked}
    return {path: own for path, own in found.items() if path not in masked}


def _used(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scaling = own["scaling"]
    used = np.any(scaling.reshape(-1, scaling.shape[-1]) != 0, axis=0)
    cut = {"lora_a": -1, "lora_b": -2, "lora_e": -1, "scaling": -1}
    return {
        n: np.compress(used, array, axis=cut[n]) if n in cut else array for n, array in own.items()
    }


def _contents(
    peft: Peft, adapters: Adapters, family: Family
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    sites = leaves_by_site(peft, adapters)
    shared = sites.pop(SHARED, {})
    method = peft.settings.method
    if method not in OF_METHOD:
        if peft.method.virtual_tokens(peft.settings) or peft.method.past_tokens(peft.settings):
            table, config = prompts.write(peft, sites, shared)
            return {prompts.TENSOR: table}, config
        raise InteropError(
            f"peft has no method {method!r}; known: {', '.join(OF_METHOD)}, prompts, prefixes"
        )
    codec = OF_METHOD[method]
    found = modules_of_sites(family, peft.model, list(sites))
    tensors, scales, by_module = {}, {}, {}
    for name, module in found.items():
        parts = {site: sites[site] for site in module.sites if site in sites}
        own, scales[name] = codec.write(module, parts)
        by_module[name] = own
        tensors |= {f"{PREFIX}{name}.{ending}": array for ending, array in own.items()}
    for theirs, ours in PROJECTIONS.items():
        if ours in shared:
            tensors[SHARED_PREFIX + theirs] = shared[ours].T
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    config = {
        "peft_type": codec.kind,
        "target_modules": target_names(list(found), list(modules(family, peft.model))),
        "fan_in_fan_out": any(module.in_out for module in found.values()),
    }
    return tensors, config | _method_fields(codec, peft, family, found, by_module, scales)


def _method_fields(
    codec: Codec,
    peft: Peft,
    family: Family,
    found: Mapping[str, Module],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    scales: Mapping[str, float],
) -> dict[str, Any]:
    settings = peft.settings
    if codec is IA3:
        down = [name for name, own in tensors.items() if own["ia3_l"].shape[0] == 1]
        short = target_names(down, list(found))
        targets = target_names(list(found), list(modules(family, peft.model)))
        if not set(short) <= set(targets):  # peft wants the one list to be in the other
            short, targets = sorted(down), sorted(found)
        return {"feedforward_modules": short, "target_modules": targets, "init_ia3_weights": True}
    if codec is VERA:
        rank = len(next(iter(tensors.values()))["vera_lambda_d"])
        return {
            "r": rank,
            "save_projection": True,
            "projection_prng_key": 0,
            "vera_dropout": settings.dropout,
            "d_initial": settings.vera_initial,
            "bias": "none",
            "init_weights": True,
        }
    shared = {
        "lora_dropout": settings.dropout,
        "bias": "none",
        "use_dora": settings.method == "dora",
        "init_lora_weights": True,
    }
    if codec is ADALORA:
        return shared | _adalora_fields(peft, scales, tensors)
    return shared | _lora_fields(settings, tensors, scales)


def _lora_fields(
    settings: PeftConfig,
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    scales: Mapping[str, float],
) -> dict[str, Any]:
    root = settings.scaling == "sqrt_rank"
    ranks = {}
    for name, own in tensors.items():
        ranks[name] = len(own["lora_A.weight" if "lora_A.weight" in own else "lora_embedding_A"])
    alphas = {n: scales[n] * (r**0.5 if root else r) for n, r in ranks.items()}
    alphas = {n: round(a) if abs(a - round(a)) < 1e-5 * a else a for n, a in alphas.items()}
    rank, alpha = commonest(ranks.values()), commonest(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": root,
        "lora_bias": any("lora_B.bias" in own for own in tensors.values()),
        "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {n: a for n, a in alphas.items() if a != alpha},
    }


def _adalora_fields(
    peft: Peft, scales: Mapping[str, float], tensors: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    if len(set(scales.values())) > 1:
        raise InteropError(
            "peft's AdaLoRA has one alpha for all modules; write the adapters as plain LoRA "
            "(--as_lora)"
        )
    s = peft.settings.adalora
    alpha = next(iter(scales.values())) * (s.initial_rank + EPSILON)
    return {
        "init_r": s.initial_rank,
        "target_r": min(peft.settings.rank or METHODS["adalora"].default_rank, s.initial_rank),
        "lora_alpha": round(alpha, 4),
        "tinit": 0,
        "tfinal": 0,
        "deltaT": s.interval,
        "beta1": s.sensitivity_decay,
        "beta2": s.uncertainty_decay,
        "orth_reg_weight": s.orthogonality,
        "total_step": 1,
        "rank_pattern": {
            f"{name}.lora_E": [i < len(own["lora_E"]) for i in range(s.initial_rank)]
            for name, own in tensors.items()
        },
    }


def _saved_modules(
    own: Mapping[str, Any], family: Family, model: ModelConfig
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(tensors of the model's own parameters that were trained, the modules they belong to)."""
    tensors, names = {}, {}
    for use in plan(family, model) if own else ():
        there = [path for path in use.parts if path in own]
        if not there:
            continue
        if len(there) < len(use.parts) or use.stacked:
            raise InteropError(
                f"peft.train_also: {there[0]} is a part of {use.names[0]}, which peft saves whole; "
                "train all of it, or merge"
            )
        name = use.names[0]
        parts = [np.asarray(own[path]).astype(np.float32) for path in use.parts]
        tensors[PREFIX + name] = np.ascontiguousarray(use.row.transform.write(parts, model))
        names[name.rpartition(".")[0]] = None
    return tensors, list(names)


def _task(model: ModelConfig) -> str | None:
    if model.num_labels:
        return "SEQ_CLS"
    if model.encoder_layers:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if model.attention == "causal" else None
