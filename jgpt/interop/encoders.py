"""Settings that encoders and encoder-decoders have, and decoders do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jgpt.config import ModelConfig
from jgpt.interop.description import InteropError, field, get, put
from jgpt.interop.layer_kinds import ATTENTION, pattern
from jgpt.interop.rope import FULL, SLIDING


@dataclass(frozen=True)
class Heads:
    """What is read from the hidden states: their `architectures` says.

    Attributes:
        rows: (their class, our settings) in order. A row whose settings have `num_labels` takes
            their number from `config.json`; the first row counts where no class is named.
    """

    rows: tuple[tuple[str, Mapping[str, Any]], ...]

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        named = theirs.get("architectures") or [self.rows[0][0]]
        known = dict(self.rows)
        for name in named:
            if name in known:
                for setting, value in known[name].items():
                    counted = setting == "num_labels" and value > 0
                    put(ours, setting, _num_labels(theirs) if counted else value)
                return
        raise InteropError(
            f"config.json: architecture {named[0]!r} is not supported; known: {', '.join(known)}"
        )

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        for name, settings in self.rows:
            if all(_fits(model, setting, value) for setting, value in settings.items()):
                theirs["architectures"] = [name]
                break
        if model.num_labels:
            labels = {str(i): f"LABEL_{i}" for i in range(model.num_labels)}
            theirs["id2label"] = labels
            theirs["label2id"] = {label: int(i) for i, label in labels.items()}


def _num_labels(theirs: Mapping[str, Any]) -> int:
    return len(theirs["id2label"]) if "id2label" in theirs else theirs.get("num_labels", 2)


def _fits(model: ModelConfig, setting: str, value: Any) -> bool:
    found = get(model, setting)
    return found > 0 if setting == "num_labels" and value else found == value


PLAIN = {"head_transform": False, "head_bias": False, "pooling": "none", "pooler": "none"}
"""A model without its language-model head; the table of embeddings stands in for one."""
NO_LABELS = {"num_labels": 0}
MASKED = PLAIN | NO_LABELS | {"head_transform": True, "head_bias": True}
TOKENS = PLAIN | {"num_labels": 1, "label_level": "token"}


def sequence(pooling: str, pooler: str) -> dict[str, Any]:
    """A classifier of whole sequences."""
    labels = {"num_labels": 1, "label_level": "sequence"}
    return PLAIN | labels | {"pooling": pooling, "pooler": pooler}


@dataclass(frozen=True)
class ClassifierPooling:
    """Which vector a classifier of sequences reads, after `Heads` has said that there is one."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        pooling = field(theirs, "classifier_pooling", "cls")
        if ours["pooling"] != "none":
            put(ours, "pooling", pooling)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        theirs["classifier_pooling"] = "cls" if model.pooling == "none" else model.pooling


@dataclass(frozen=True)
class ModernWindows:
    """ModernBERT's layers: full and sliding ones, `local_attention` to both sides together."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        every = theirs.get("global_attn_every_n_layers", 3)
        kinds = theirs.get("layer_types") or [
            SLIDING if index % every else FULL for index in range(ours["num_layers"])
        ]
        put(ours, "attention_pattern", pattern([ATTENTION[kind] for kind in kinds]))
        put(ours, "window", field(theirs, "local_attention", 128) // 2 + 1)

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        names = {ours: name for name, ours in ATTENTION.items()}
        kinds = [model.layer_kind(index)[0] for index in range(model.num_layers)]
        theirs["layer_types"] = [names[kind] for kind in kinds]
        theirs["local_attention"] = 2 * (model.window - 1) if "local" in kinds else 128


@dataclass(frozen=True)
class ModernRope:
    """ModernBERT's two bases, of version 4 (`global_rope_theta`) and of version 5; none scaled."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        newer = theirs.get("rope_parameters") or {}
        for name, kind, older, base in (
            ("rope_theta", FULL, "global_rope_theta", 160000.0),
            ("local_rope_theta", SLIDING, "local_rope_theta", 10000.0),
        ):
            values = newer.get(kind) or {}
            if values.get("rope_type", "default") != "default" or theirs.get("rope_scaling"):
                raise InteropError("config.json: scaled rotary positions of ModernBERT")
            put(ours, name, values.get("rope_theta", theirs.get(older, base)))

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        local = model.local_rope_theta or model.rope_theta
        theirs["global_rope_theta"], theirs["local_rope_theta"] = model.rope_theta, local
        theirs["rope_parameters"] = {
            FULL: {"rope_type": "default", "rope_theta": model.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        }


@dataclass(frozen=True)
class Disentangled:
    """DeBERTa's distances: buckets to either side, and how far they reach."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        kinds = field(theirs, "pos_att_type", None) or []
        kinds = kinds.split("|") if isinstance(kinds, str) else kinds
        if sorted(kind.strip() for kind in kinds) != ["c2p", "p2c"]:
            raise InteropError(f"config.json: pos_att_type {kinds!r} is not supported; p2c|c2p is")
        buckets = field(theirs, "position_buckets", -1)
        reach = field(theirs, "max_relative_positions", -1)
        if buckets < 1:
            raise InteropError("config.json: position_buckets below 1 is not supported")
        put(ours, "relative_buckets", buckets)
        put(ours, "relative_max_distance", reach if reach > 0 else ours["max_length"])

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        theirs["pos_att_type"] = ["p2c", "c2p"]
        theirs["position_buckets"] = model.relative_buckets
        theirs["max_relative_positions"] = model.relative_max_distance


@dataclass(frozen=True)
class Stacks:
    """T5's depths, its scores without a scale, and its head, which version 1.1 has of its own."""

    def read(self, theirs: Mapping[str, Any], ours: dict[str, Any]) -> None:
        layers = field(theirs, "num_layers")
        decoder = theirs.get("num_decoder_layers")
        put(ours, "encoder_layers", layers)
        put(ours, "num_layers", layers if decoder is None else decoder)
        put(ours, "attention_scale", ours["head_dim"] ** 0.5)
        if theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True)):
            raise InteropError(
                "config.json: a tied, scaled head is T5's version 1.0, which is not supported; "
                "take a version 1.1 model"
            )

    def write(self, model: ModelConfig, theirs: dict[str, Any]) -> None:
        theirs["num_layers"], theirs["num_decoder_layers"] = model.encoder_layers, model.num_layers
        theirs["tie_word_embeddings"] = False
