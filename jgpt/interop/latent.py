"""Rows of DeepSeek's models: latent attention's rotary layout and scaling, groups of experts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jgpt.config import ModelConfig
from jgpt.interop.description import InteropError, field, put
from jgpt.interop.rope import Rope
from jgpt.interop.transforms import Shape, Transposed


@dataclass(frozen=True)
class LatentRope(Rope):
    """Rotation whose stretching also sharpens the scores, by YaRN's temperature squared.

    `mscale_all_dim` m and factor s multiply the scores by (0.1 m ln s + 1)**2.
    """

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        super().read(theirs, ours)
        values = self._parameters(theirs)
        power, factor = values.get("mscale_all_dim"), values.get("factor", 1.0)
        if power and factor > 1 and ours.get("rope_scaling"):
            put(ours, "attention_scale", (0.1 * power * math.log(factor) + 1.0) ** 2)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        super().write(model, theirs)
        scaling = model.rope_scaling
        if model.attention_scale == 1.0 or scaling.factor <= 1:
            return
        power = (math.sqrt(model.attention_scale) - 1.0) / (0.1 * math.log(scaling.factor))
        for values in (theirs["rope_parameters"], theirs["rope_scaling"]):
            if values:
                # Rounded, so that 0.707 is read back as the number that it was.
                values |= {"mscale": round(power, 10), "mscale_all_dim": round(power, 10)}


@dataclass(frozen=True)
class LeadingDense:
    """All layers have experts but the first few."""

    theirs: str = "first_k_dense_replace"
    default: int = 0

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        leading = field(theirs, self.theirs, self.default)
        put(ours, "num_leading_dense", min(leading, ours["num_layers"]))
        put(ours, "ffn_pattern", ("moe",))

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        kinds = [model.layer_kind(index)[1] for index in range(model.num_layers)]
        theirs[self.theirs] = kinds.index("moe") if "moe" in kinds else model.num_layers
        theirs["moe_layer_freq"] = 1


@dataclass(frozen=True)
class Groups:
    """Groups of experts.

    Attributes:
        methods: their `topk_method` without groups and with them; None where groups are there
            unless there is one alone.
        num_groups, top_groups: where nothing is said.
    """

    methods: tuple[str, str] | None = None
    num_groups: int | None = None
    top_groups: int | None = None

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        groups = field(theirs, "n_group", self.num_groups) or 0
        top = field(theirs, "topk_group", self.top_groups) or 0
        if self.methods:
            method = field(theirs, "topk_method", self.methods[0])
            if method not in self.methods:
                known = " and ".join(self.methods)
                raise InteropError(
                    f"config.json: topk_method {method!r} is not supported; known: {known}"
                )
            groups = groups if method == self.methods[1] else 0
        used = groups > 1
        put(ours, "moe.num_groups", groups if used else 0)
        put(ours, "moe.top_groups", top if used else 0)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        groups = model.moe.num_groups
        theirs["n_group"] = groups or 1
        theirs["topk_group"] = model.moe.top_groups or 1
        theirs["topk_method"] = self.methods[bool(groups)] if self.methods else "noaux_tc"


@dataclass(frozen=True)
class Interleaved(Transposed):
    """A torch `Linear` whose last outputs (of each head) are rotated.

    Their pairs are neighbours (0, 1), (2, 3), ...; ours are (i, i + p / 2).

    Attributes:
        per_head: the outputs are heads side by side, each with its own rotated part.
    """

    per_head: bool

    def _order(self, outputs: int, model: ModelConfig) -> np.ndarray:
        """Their index of each of our outputs."""
        rotated = model.latent.rope_dim
        heads = model.num_heads if self.per_head else 1
        width = outputs // heads
        pairs = np.arange(width - rotated, width).reshape(-1, 2).T.reshape(-1)
        order = np.concatenate([np.arange(width - rotated), pairs])
        return (np.arange(heads)[:, None] * width + order).reshape(-1)

    def read(
        self, theirs: np.ndarray, part: int, shapes: Sequence[Shape], model: ModelConfig
    ) -> np.ndarray:
        order = self._order(len(theirs), model)
        return theirs[order].T if theirs.ndim == 2 else theirs[order]

    def write(self, parts: Sequence[np.ndarray], model: ModelConfig) -> np.ndarray:
        ours = parts[0].T
        theirs = np.empty(ours.shape, ours.dtype)
        theirs[self._order(len(ours), model)] = ours
        return theirs

    def shape(self, shapes: Sequence[Shape], model: ModelConfig) -> Shape:
        return tuple(reversed(shapes[0]))
