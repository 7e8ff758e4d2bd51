"""`config.json` to `ModelConfig` and back, through a family's settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jgpt.config import ConfigError, ModelConfig, MoEConfig, RopeScaling, model_from_dict, to_dict
from jgpt.interop.description import Family, InteropError
from jgpt.interop.families import FAMILIES

NOT_ARCHITECTURE = (
    "dtype", "param_dtype", "remat", "scan_layers", "attention_backend", "loss_backend",
    "attention_dropout", "residual_dropout", "embedding_dropout", "init_std", "scale_residual_init",
)  # fmt: skip
"""Fields of `ModelConfig` that do not change what weights compute."""
ROUTER_TRAINING = (
    "bias_update_rate", "jitter", "dispatch", "fused", "backend", "capacity_factor", "group_size",
    "exchange", "exchange_factor", "balance_coefficient", "z_coefficient",
)  # fmt: skip
"""The same of `MoEConfig`."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a `config.json` names.

    Raises:
        InteropError: none that is known.
    """
    name = config.get("model_type")
    if name in FAMILIES:
        return FAMILIES[name]
    architectures = config.get("architectures") or []
    for family in FAMILIES.values():
        if name is None and family.architecture in architectures:
            return family
    raise InteropError(
        f"config.json: model_type {name!r} (architectures {architectures}) is not known; known: "
        f"{', '.join(FAMILIES)}"
    )


def read_config(family: Family, config: Mapping[str, Any]) -> ModelConfig:
    """The model that a `config.json` describes.

    Raises:
        InteropError: a field is missing, or says what our models do not have.
    """
    settings: dict[str, Any] = {}
    for row in family.settings:
        row.read(config, settings)
    try:
        return model_from_dict(settings)
    except ConfigError as error:
        raise InteropError(f"config.json of a {family.name} model: {error}") from error


def write_config(model: ModelConfig, name: str = "") -> tuple[Family, dict[str, Any]]:
    """(the family, its `config.json`) of a model.

    Args:
        name: of the family; "" for the first that can express the model.

    Raises:
        InteropError: no family, or not the named one, has such models. What is written is read
            back to find out.
    """
    if name and name not in FAMILIES:
        raise InteropError(f"family {name!r} is not known; known: {', '.join(FAMILIES)}")
    reasons = {}
    for family in [FAMILIES[name]] if name else FAMILIES.values():
        config = _written(family, model)
        try:
            found = differences(read_config(family, config), model)
        except InteropError as error:
            found = [str(error)]
        if not found:
            return family, config
        reasons[family.name] = found
    closest = min(reasons, key=lambda family: len(reasons[family]))
    raise InteropError(
        f"no family has such models; {closest} comes closest but cannot express "
        f"{', '.join(reasons[closest])}"
    )


def _written(family: Family, model: ModelConfig) -> dict[str, Any]:
    config = {"model_type": family.name, "architectures": [family.architecture]}
    # Explicit in all that other libraries derive otherwise, but with the unused as it is.
    explicit = dataclasses.replace(canonical(model), intermediate_size=model.intermediate_size)
    for row in family.settings:
        row.write(explicit, config)
    return config | dict(family.constants)


def differences(first: ModelConfig, second: ModelConfig) -> list[str]:
    """Dotted names of the settings by which two models compute different things."""
    values = [_flat(to_dict(canonical(model))) for model in (first, second)]
    return [
        f"model.{name}={values[1][name]!r}"
        for name in values[0]
        if values[0][name] != values[1][name] and name != "max_length"
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


def canonical(model: ModelConfig) -> ModelConfig:
    """The same model with what follows from other settings written out, and the unused at default.

    Two configs compute the same from the same weights where their canonical forms are equal.
    """
    plain = ModelConfig()
    kinds = [model.layer_kind(index) for index in range(model.num_layers)]
    attention, ffn = (tuple(kind) for kind in zip(*kinds))
    changes = {name: getattr(plain, name) for name in NOT_ARCHITECTURE}
    changes |= {
        "num_kv_heads": model.kv_heads,
        "head_dim": model.size_of_head,
        "attention_pattern": attention,
        "ffn_pattern": ffn,
        "num_leading_dense": 0,
        "window": model.window if "local" in attention else 0,
        "moe": _canonical_moe(model) if "moe" in ffn else MoEConfig(),
        **_canonical_rope(model, attention),
    }
    if "dense" not in ffn:
        changes["intermediate_size"] = model.expert_size
    if model.ffn == "swiglu":
        changes["gelu_approximate"] = plain.gelu_approximate
    if model.pooler == "none" and not (model.num_labels and model.label_level == "sequence"):
        changes["pooling"] = plain.pooling
    if not model.num_labels:
        changes["label_level"] = plain.label_level
    if model.position not in ("relative", "disentangled"):
        changes["relative_buckets"] = plain.relative_buckets
        changes["relative_max_distance"] = plain.relative_max_distance
    return dataclasses.replace(model, **changes)


def _canonical_moe(model: ModelConfig) -> MoEConfig:
    unused = {name: getattr(MoEConfig(), name) for name in ROUTER_TRAINING}
    return dataclasses.replace(model.moe, intermediate_size=model.expert_size, **unused)


def _canonical_rope(model: ModelConfig, attention: tuple[str, ...]) -> dict[str, Any]:
    names = ("rope_theta", "local_rope_theta", "rope_fraction", "rope_scaling")
    if model.position != "rope":
        return {name: getattr(ModelConfig(), name) for name in names}
    scaling = _canonical_scaling(model.rope_scaling)
    same_base = model.local_rope_theta == model.rope_theta and scaling.kind == "none"
    one_base = same_base or "local" not in attention
    return {
        "rope_fraction": model.rotary_dim / model.size_of_head,
        "local_rope_theta": 0.0 if one_base else model.local_rope_theta,
        "rope_scaling": scaling,
    }


def _canonical_scaling(scaling: RopeScaling) -> RopeScaling:
    used = {
        "none": (),
        "linear": ("factor",),
        "ntk": ("factor",),
        "yarn": ("factor", "original_length", "beta_fast", "beta_slow", "attention_factor"),
        "longrope": (
            "factor",
            "original_length",
            "attention_factor",
            "short_factors",
            "long_factors",
        ),
        "llama3": ("factor", "original_length", "low_frequency_factor", "high_frequency_factor"),
    }[scaling.kind]
    return RopeScaling(scaling.kind, **{name: getattr(scaling, name) for name in used})
