"""Settings that say what kind each layer is: sliding or full attention, dense or sparse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jgpt.config import ModelConfig
from jgpt.interop.description import InteropError, field, get, put
from jgpt.interop.rope import FULL, SLIDING

ATTENTION = {FULL: "global", SLIDING: "local"}


def pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest tuple that gives `kinds` when it is repeated (and cut at the end)."""
    for period in range(1, len(kinds)):
        if all(kind == kinds[index % period] for index, kind in enumerate(kinds)):
            return tuple(kinds[:period])
    return tuple(kinds)


@dataclass(frozen=True)
class Windows:
    """Which layers slide, and the width of the window (both count the token itself).

    Attributes:
        default: the window where `config.json` has no `sliding_window`; None for none.
        layers: which layers slide where there are no `layer_types`: `all`; `after` the first
            `max_window_layers`, if `use_sliding_window`; `alternate`, the first one sliding;
            `pattern`, all but every n-th, n being `sliding_window_pattern`.
        every: n, where nothing is said.
    """

    default: int | None
    layers: str = "all"
    every: int = 6

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        window = field(theirs, "sliding_window", self.default)
        if self.layers == "after" and not theirs.get("use_sliding_window"):
            window = None
        count = ours["num_layers"]
        kinds = [FULL] * count if window is None else self._kinds(theirs, count)
        for kind in kinds:
            if kind not in ATTENTION:
                raise InteropError(f"config.json: layer type {kind!r} is not supported")
        if len(kinds) != count:
            raise InteropError(f"config.json: {len(kinds)} layer_types for {count} layers")
        put(ours, "attention_pattern", pattern([ATTENTION[kind] for kind in kinds]))
        put(ours, "window", window if SLIDING in kinds else 0)

    def _kinds(self, theirs: Mapping[str, Any], count: int) -> list[str]:
        if self.layers == "all":
            return [SLIDING] * count
        if theirs.get("layer_types"):
            return theirs["layer_types"]
        if self.layers == "after":
            first = field(theirs, "max_window_layers")
            return [FULL if index < first else SLIDING for index in range(count)]
        every = 2
        if self.layers == "pattern":
            older = theirs.get("_sliding_window_pattern", self.every)
            every = theirs.get("sliding_window_pattern", older)
        return [FULL if (index + 1) % every == 0 else SLIDING for index in range(count)]

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        kinds = [model.layer_kind(index)[0] for index in range(model.num_layers)]
        sliding = "local" in kinds
        theirs["sliding_window"] = model.window if sliding else None
        if self.layers == "all":
            return
        names = {ours: name for name, ours in ATTENTION.items()}
        theirs["layer_types"] = [names[kind] for kind in kinds]
        if self.layers == "after":
            theirs["use_sliding_window"] = sliding
            theirs["max_window_layers"] = kinds.index("local") if sliding else model.num_layers
        elif self.layers == "pattern":
            theirs["sliding_window_pattern"] = _every(kinds)
            if not sliding:  # null would be read as the default
                theirs["sliding_window"] = self.default


def _every(kinds: Sequence[str]) -> int | None:
    """n where every n-th layer is global and no other; None where that is not so."""
    every = kinds.index("global") + 1 if "global" in kinds else len(kinds) + 1
    fits = all((k == "global") == ((i + 1) % every == 0) for i, k in enumerate(kinds))
    return every if fits else None


@dataclass(frozen=True)
class SparseLayers:
    """Which layers have experts: every `decoder_sparse_step`-th, except `mlp_only_layers`."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        step = field(theirs, "decoder_sparse_step", 1)
        dense = field(theirs, "mlp_only_layers", None) or []
        kinds = [
            "dense" if index in dense or (index + 1) % step else "moe"
            for index in range(ours["num_layers"])
        ]
        leading = kinds.index("moe") if "moe" in kinds else 0
        shifted = pattern(kinds[leading:])
        # The pattern is counted from layer 0, of which the leading ones are dense anyway.
        turn = leading % len(shifted)
        put(ours, "num_leading_dense", leading)
        put(ours, "ffn_pattern", shifted[-turn:] + shifted[:-turn] if turn else shifted)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        kinds = [model.layer_kind(index)[1] for index in range(model.num_layers)]
        theirs["decoder_sparse_step"] = 1
        theirs["mlp_only_layers"] = [i for i, kind in enumerate(kinds) if kind == "dense"]


@dataclass(frozen=True)
class Width:
    """Width of the feed-forward layer, a multiple of the model's where it is null."""

    theirs: str
    times: int

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        width = theirs.get(self.theirs)
        put(ours, "intermediate_size", width or self.times * ours["hidden_size"])

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        theirs[self.theirs] = model.intermediate_size


@dataclass(frozen=True)
class ScoreScale:
    """Scores are divided by the root of this number, not of the head's width (Gemma)."""

    theirs: str = "query_pre_attn_scalar"
    default: float = 256

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        scalar = field(theirs, self.theirs, self.default)
        put(ours, "attention_scale", (ours["head_dim"] / scalar) ** 0.5)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        scalar = get(model, "size_of_head") / model.attention_scale**2
        whole = round(scalar)
        theirs[self.theirs] = whole if abs(whole - scalar) < 1e-6 * scalar else scalar
