"""Rotary positions in `config.json`, of version 4 and of version 5 of transformers.

Version 5 has `rope_parameters` (`rope_type`, `rope_theta`, the scaling's fields, and
`partial_rotary_factor`; by kind of layer where there are several). Version 4 had `rope_theta`,
`rope_scaling` (with `type` or `rope_type`) and `partial_rotary_factor` side by side. Either is
read, both are written.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jgpt.config import ModelConfig, RopeScaling
from jgpt.interop.description import InteropError, put

FULL, SLIDING = "full_attention", "sliding_attention"
KINDS = ("linear", "yarn", "llama3", "longrope")
"""The scalings that both sides have."""


@dataclass(frozen=True)
class Rope:
    """Base, share and scaling of the rotation.

    Attributes:
        theta: the base where nothing is said.
        fraction: the rotated share of a head where nothing is said.
        theta_name: version 4's name of the base.
        fraction_name: version 4's name of the share; "" where the family has none.
        local_theta: base of sliding layers where nothing is said; 0 where the family has one base.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    theta_name: str = "rope_theta"
    fraction_name: str = ""
    local_theta: float = 0.0

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        values = self._parameters(theirs)
        if FULL in values or SLIDING in values:
            local = values.get(SLIDING, {})
            put(ours, "local_rope_theta", local.get("rope_theta", self.local_theta))
            if _kind(local) != "default":
                raise InteropError(
                    f"config.json: rope_parameters.{SLIDING} is scaled ({_kind(local)!r}), which "
                    "local layers here are not"
                )
            values = values.get(FULL, {})
        put(ours, "rope_theta", values.get("rope_theta", self.theta))
        put(ours, "rope_fraction", values.get("partial_rotary_factor", self.fraction))
        length = theirs.get("max_position_embeddings")
        for name, value in read_scaling(values, theirs, length).items():
            put(ours, f"rope_scaling.{name}", value)

    def _parameters(self, theirs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Version 5's `rope_parameters`, made of version 4's fields where it is not there."""
        older = {"rope_theta": theirs.get(self.theta_name, self.theta)}
        if self.fraction_name:
            older["partial_rotary_factor"] = theirs.get(self.fraction_name, self.fraction)
        older |= theirs.get("rope_scaling") or {}
        newer = theirs.get("rope_parameters")
        if newer:
            return newer if FULL in newer or SLIDING in newer else older | newer
        if not self.local_theta:
            return older
        local = theirs.get("rope_local_base_freq", self.local_theta)
        return {FULL: older, SLIDING: {"rope_theta": local}}

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        scaling = write_scaling(model.rope_scaling)
        values = {"rope_type": "default", **scaling, "rope_theta": model.rope_theta}
        if self.fraction_name:
            values["partial_rotary_factor"] = model.rope_fraction
            theirs[self.fraction_name] = model.rope_fraction
        theirs[self.theta_name] = model.rope_theta
        theirs["rope_scaling"] = _older_scaling(scaling)
        if model.rope_scaling.kind == "longrope":
            theirs["original_max_position_embeddings"] = model.rope_scaling.original_length
        if not self.local_theta:
            theirs["rope_parameters"] = values
            return
        local = model.local_rope_theta or model.rope_theta
        theirs["rope_local_base_freq"] = local
        theirs["rope_parameters"] = {
            FULL: values,
            SLIDING: {"rope_type": "default", "rope_theta": local},
        }


def _kind(values: Mapping[str, Any]) -> str:
    kind = values.get("rope_type", values.get("type")) or "default"
    return "longrope" if kind in ("su", "longrope") else kind


def read_scaling(
    values: Mapping[str, Any], theirs: Mapping[str, Any], length: int | None
) -> dict[str, Any]:
    """Fields of our `RopeScaling`.

    Args:
        values: their scaling parameters.
        theirs: the whole `config.json`.
        length: the model's longest sequence.

    Raises:
        InteropError: a kind or a field that our positions do not have.
    """
    kind = _kind(values)
    if kind == "default":
        return {}
    if kind not in KINDS:
        raise InteropError(
            f"config.json: rope scaling of kind {kind!r} is not supported (known: default, "
            f"{', '.join(KINDS)})"
        )
    original = values.get("original_max_position_embeddings") or theirs.get(
        "original_max_position_embeddings", length
    )
    factor = values.get("factor") or length / original
    if kind == "linear":
        return {"kind": "linear", "factor": factor}
    found = {"kind": kind, "factor": factor, "original_length": original}
    if kind == "longrope":
        return found | _read_longrope(values)
    if kind == "llama3":
        low, high = values["low_freq_factor"], values["high_freq_factor"]
        return found | {"low_frequency_factor": low, "high_frequency_factor": high}
    if not values.get("truncate", True):
        raise InteropError("config.json: yarn with truncate=false is not supported")
    found |= {
        "beta_fast": values.get("beta_fast") or 32.0,
        "beta_slow": values.get("beta_slow") or 1.0,
    }
    temperature = values.get("attention_factor")
    if temperature is None and values.get("mscale") and values.get("mscale_all_dim"):
        scales = [_mscale(factor, values[name]) for name in ("mscale", "mscale_all_dim")]
        temperature = scales[0] / scales[1]
    return found if temperature is None else found | {"attention_factor": temperature}


def _read_longrope(values: Mapping[str, Any]) -> dict[str, Any]:
    temperatures = {values.get(name) for name in ("short_mscale", "long_mscale")} - {None}
    temperatures |= {values.get("attention_factor")} - {None}
    if len(temperatures) > 1:
        raise InteropError("config.json: longrope with two attention factors is not supported")
    found = {
        "short_factors": tuple(values["short_factor"]),
        "long_factors": tuple(values["long_factor"]),
    }
    return found | ({"attention_factor": temperatures.pop()} if temperatures else {})


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    """Their scaling parameters; empty without scaling, or for a kind that they do not have."""
    if scaling.kind not in KINDS:
        return {}
    values = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return values
    values["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        return values | {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        }
    if scaling.kind == "longrope":
        values["short_factor"] = list(scaling.short_factors)
        values["long_factor"] = list(scaling.long_factors)
    else:
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.attention_factor is not None:
        values["attention_factor"] = scaling.attention_factor
    return values


def _older_scaling(values: dict[str, Any]) -> dict[str, Any] | None:
    """Version 4's `rope_scaling`, which for longrope takes three fields and no more."""
    if not values:
        return None
    older = values | {"type": values["rope_type"]}
    if values["rope_type"] == "longrope":
        return {name: older[name] for name in ("type", "short_factor", "long_factor")}
    return older
