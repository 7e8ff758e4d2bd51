"""Every setting of a run: one frozen dataclass per section, one home per default.

Config files are `ml_collections.ConfigDict`s; `from_config_dict` turns one into a `Config`,
refusing unknown keys and impossible values with one line that names the field and the remedy.
Inside jgpt only these dataclasses exist. `configs/default.py` is generated from this file
(`python -m jgpt.config`), so the comment beside a field there is its `help` here.

This file is long because it is the reference page of all settings.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A setting cannot be used; the message names the field and what to write instead."""


def setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field: its default, its comment in `configs/default.py`, its choices."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched beyond the length they were trained on."""

    kind: str = setting(
        "none",
        "none; linear (position interpolation); ntk (NTK-aware base); yarn (NTK by parts); llama3; "
        "longrope (Phi-3: factors per frequency)",
        ("none", "linear", "ntk", "yarn", "llama3", "longrope"),
    )
    factor: float = setting(1.0, "how many times longer than original_length")
    original_length: int = setting(
        8192, "length the frequencies were trained on (yarn, llama3, longrope)"
    )
    beta_fast: float = setting(32.0, "yarn: rotations above which a dimension is kept")
    beta_slow: float = setting(1.0, "yarn: rotations below which a dimension is interpolated")
    low_frequency_factor: float = setting(1.0, "llama3: wavelengths over length/this are divided")
    high_frequency_factor: float = setting(4.0, "llama3: wavelengths under length/this are kept")
    attention_factor: float | None = setting(
        None,
        "cos and sin are multiplied by this; None: yarn 0.1 ln(factor) + 1, longrope "
        "sqrt(1 + ln(factor) / ln(original_length))",
    )
    short_factors: tuple[float, ...] = setting(
        (), "longrope: frequencies are divided by these while no position is past original_length"
    )
    long_factors: tuple[float, ...] = setting((), "longrope: and by these in longer texts")


@dataclass(frozen=True)
class BlockSparse:
    """Block-sparse causal attention: local blocks, global first ones, and every stride-th one."""

    block_size: int = setting(0, "tokens per block; 0 switches the pattern off")
    num_local_blocks: int = setting(4, "each block sees itself and this many minus one before it")
    num_global_blocks: int = setting(1, "the first blocks, seen by all")
    stride: int = setting(0, "also see every stride-th block; 0 for none")


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention: keys and values made of one short, cached vector per token."""

    kv_rank: int = setting(0, "width of that vector; 0 for ordinary attention")
    query_rank: int = setting(0, "width of the compressed query; 0 for a full query map")
    nope_dim: int = setting(128, "entries of each head's query and key without positions")
    rope_dim: int = setting(64, "entries with rotary positions; of the key, shared by all heads")
    value_dim: int = setting(128, "width of each head's value")


@dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts (used by the layers that `ffn_pattern` calls `moe`)."""

    num_experts: int = setting(0, "experts per layer; 0 for a dense model")
    top_k: int = setting(2, "experts per token")
    intermediate_size: int = setting(0, "width of one expert; 0 for the model's intermediate_size")
    router: str = setting(
        "softmax",
        "softmax, then top-k; sigmoid, then top-k; expert_choice (bidirectional models only)",
        ("softmax", "sigmoid", "expert_choice"),
    )
    renormalize: bool = setting(True, "make the k chosen weights sum to one")
    selection_bias: bool = setting(
        False, "auxiliary-loss-free balancing: a bias moves the selection, never the weights"
    )
    bias_update_rate: float = setting(1e-3, "step of the selection bias")
    num_groups: int = setting(0, "neighbouring experts in this many groups; 0 for none")
    top_groups: int = setting(0, "groups that a token's experts come from")
    routed_scale: float = setting(1.0, "multiplies the routed experts' output")
    jitter: float = setting(0.0, "router input times U(1-jitter, 1+jitter) in training")
    num_shared_experts: int = setting(0, "experts that every token uses")
    dispatch: str = setting(
        "dropless", "dense (reference); capacity; dropless", ("dense", "capacity", "dropless")
    )
    fused: bool = setting(
        True, "dropless: gate, up and activation in one kernel; False where adapters wrap experts"
    )
    backend: str = setting("auto", "dropless: auto, or a name from kernels.grouped_matmul.BACKENDS")
    capacity_factor: float = setting(1.25, "capacity: slots per expert over the even share")
    group_size: int = setting(0, "capacity: tokens per group; 0 for one group per sequence")
    exchange: str = setting(
        "auto",
        "dropless over mesh.expert: rows travel ragged (TPU) or padded; auto: ragged where it can",
        ("auto", "ragged", "padded"),
    )
    exchange_factor: float = setting(
        1.5, "and a round has room for this much of the even share; what is over takes another"
    )
    balance_coefficient: float = setting(1e-2, "weight of the load balance loss")
    z_coefficient: float = setting(1e-3, "weight of the router z-loss")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture, and how it is computed. Hashable; holds no mesh and no path."""

    vocab_size: int = setting(0, "0: as many as the tokenizer has")
    num_layers: int = setting(4, "blocks")
    hidden_size: int = setting(256, "width D of the residual stream")
    num_heads: int = setting(4, "query heads")
    num_kv_heads: int = setting(0, "key/value heads; 0 for num_heads, 1 is multi-query")
    head_dim: int = setting(0, "0 for hidden_size / num_heads")
    intermediate_size: int = setting(688, "width F of the feed-forward layer")
    max_length: int = setting(2048, "longest sequence; rows of a learned position table")
    encoder_layers: int = setting(
        0, "encoder-decoder: blocks of the encoder that every decoder block attends to; 0 for none"
    )
    decoder_start_id: int = setting(0, "encoder-decoder: the token before the first (T5: pad)")

    attention: str = setting(
        "causal",
        "causal; bidirectional; prefix (bidirectional over the first batch['prefix_lengths'])",
        ("causal", "bidirectional", "prefix"),
    )
    attention_pattern: tuple[str, ...] = setting(
        ("global",), "repeated over the layers: global or local (sliding window)"
    )
    window: int = setting(0, "local layers see this many tokens, themselves included")
    block_sparse: BlockSparse = setting(BlockSparse, "block-sparse pattern of the global layers")
    attention_softcap: float = setting(0.0, "c * tanh(scores / c); 0 for none")
    attention_scale: float = setting(1.0, "scores are scaled by this times head_dim**-0.5")
    learned_attention_scale: bool = setting(False, "learn the scale, one per layer, from there")
    qk_norm: bool = setting(False, "normalise each head's query and key")
    latent: LatentConfig = setting(LatentConfig, "multi-head latent attention (DeepSeek)")
    attention_sinks: bool = setting(False, "one learned logit per head that takes softmax mass")
    attention_bias: bool = setting(False, "bias on query, key and value")
    attention_output_bias: bool = setting(False, "bias on the attention's output")
    attention_backend: str = setting("auto", "auto, or a name from kernels.attention.BACKENDS")
    loss_backend: str = setting("auto", "auto, or a name from kernels.cross_entropy.BACKENDS")

    position: str = setting(
        "rope",
        "rope; alibi; learned; sinusoidal; relative (T5 buckets); disentangled (DeBERTa); none",
        ("rope", "alibi", "learned", "sinusoidal", "relative", "disentangled", "none"),
    )
    rope_theta: float = setting(10000.0, "base of the rotary frequencies")
    local_rope_theta: float = setting(0.0, "base in local layers; 0 for rope_theta")
    rope_fraction: float = setting(1.0, "share of each head that is rotated")
    rope_scaling: RopeScaling = setting(RopeScaling, "extension beyond the trained length")
    relative_buckets: int = setting(32, "T5 buckets; disentangled: buckets to either side")
    relative_max_distance: int = setting(128, "distance from which buckets no longer grow")
    token_types: int = setting(0, "rows of a table of token types (BERT's segments); 0 for none")

    norm: str = setting("rmsnorm", "rmsnorm; layernorm", ("rmsnorm", "layernorm"))
    norm_placement: str = setting(
        "pre",
        "pre: x + f(norm(x)); post: norm(x + f(x)), no final norm; sandwich: x + norm(f(norm(x)))",
        ("pre", "post", "sandwich"),
    )
    norm_epsilon: float = setting(1e-5, "added to the variance")
    norm_unit_offset: bool = setting(False, "scale by 1 + weight (Gemma)")
    norm_bias: bool = setting(True, "layernorm: has a bias")
    embedding_norm: bool = setting(False, "normalise the embeddings (BERT)")
    first_attention_norm: bool = setting(
        True, "pre: norm before the first layer's attention (ModernBERT has none)"
    )
    parallel_block: bool = setting(False, "attention and feed-forward side by side (GPT-NeoX)")

    ffn: str = setting("swiglu", "swiglu; geglu; gelu", ("swiglu", "geglu", "gelu"))
    ffn_bias: bool = setting(False, "biases in the feed-forward layer")
    gelu_approximate: bool = setting(True, "tanh form of GELU")
    ffn_pattern: tuple[str, ...] = setting(("dense",), "repeated over the layers: dense or moe")
    num_leading_dense: int = setting(0, "first layers that are dense whatever the pattern")
    moe: MoEConfig = setting(MoEConfig, "mixture of experts")

    tied_embeddings: bool = setting(False, "the head is the embedding table")
    head_bias: bool = setting(False, "bias on the head's logits")
    embedding_scale: bool = setting(False, "multiply embeddings by sqrt(hidden_size)")
    final_softcap: float = setting(0.0, "c * tanh(logits / c); 0 for none")
    head_transform: bool = setting(
        False, "dense, gelu and norm before the head (BERT); its bias as ffn_bias"
    )

    pooling: str = setting(
        "none",
        "one vector per row: none; cls (of the first token); mean (over all tokens); last (of the "
        "last token, which in a decoder has seen all)",
        ("none", "cls", "mean", "last"),
    )
    pooler: str = setting(
        "none",
        "then a dense map and: none (no map); tanh (BERT); gelu (DeBERTa); gelu_norm (ModernBERT)",
        ("none", "tanh", "gelu", "gelu_norm"),
    )
    num_labels: int = setting(0, "outputs of a task head; 0 for none; 1 for regression")
    label_level: str = setting(
        "sequence", "the task head reads: sequence (what is pooled); token", ("sequence", "token")
    )

    attention_dropout: float = setting(0.0, "on attention probabilities, in training")
    residual_dropout: float = setting(0.0, "on each block's two outputs, in training")
    embedding_dropout: float = setting(0.0, "on the embeddings, in training")

    init_std: float = setting(0.02, "standard deviation of normal initial weights")
    scale_residual_init: bool = setting(True, "divide it by sqrt(2 num_layers) on residual outputs")
    mup_base_width: int = setting(
        0, "muP: hidden_size the learning rate was tuned at; 0 switches width scaling off"
    )

    dtype: str = setting("float32", "of activations and matmuls", ("float32", "bfloat16"))
    param_dtype: str = setting("float32", "of the master weights", ("float32", "bfloat16"))
    remat: str = setting(
        "none",
        "recomputed in the backward pass: none; full (all of a block); dots (all but dense maps "
        "and, on TPU, attention)",
        ("none", "full", "dots"),
    )
    scan_layers: str = setting(
        "auto", "on: one compiled period of layers; off: unrolled; auto: off on CPU only",
        ("auto", "on", "off"),
    )  # fmt: skip

    def __post_init__(self):
        if self.num_layers < 1:
            raise ConfigError(f"model.num_layers is {self.num_layers}; it must be at least 1")
        if self.hidden_size < 1 or self.num_heads < 1:
            raise ConfigError("model.hidden_size and model.num_heads must be at least 1")
        latent = self.latent.kv_rank
        if not (self.head_dim or latent) and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.num_heads ({self.num_heads}) does not divide model.hidden_size "
                f"({self.hidden_size}); choose a divisor or set model.head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"model.num_kv_heads ({self.kv_heads}) does not divide model.num_heads "
                f"({self.num_heads}); choose a divisor"
            )
        if self.position == "rope" and self.rotary_dim % 2:
            raise ConfigError(
                f"rotary positions need an even width: model.head_dim {self.size_of_head} x "
                f"model.rope_fraction {self.rope_fraction} gives {self.rotary_dim}"
            )
        scaling = self.rope_scaling
        if self.position == "rope" and scaling.kind == "longrope":
            lengths = {len(scaling.short_factors), len(scaling.long_factors)}
            if lengths != {self.rotary_dim // 2}:
                raise ConfigError(
                    "model.rope_scaling.short_factors and long_factors must have one factor per "
                    f"frequency ({self.rotary_dim // 2})"
                )
        for name, allowed in (
            ("attention_pattern", ("global", "local")),
            ("ffn_pattern", ("dense", "moe")),
        ):
            pattern = getattr(self, name)
            if not pattern or set(pattern) - set(allowed):
                raise ConfigError(
                    f"model.{name} is {pattern!r}; use a tuple of {' and '.join(allowed)}"
                )
        if "local" in self.attention_pattern and self.window < 1:
            raise ConfigError("model.attention_pattern has local layers: set model.window above 0")
        if self.parallel_block and self.norm_placement == "post":
            raise ConfigError(
                "model.parallel_block has no place for post norms; set model.norm_placement to "
                "'pre' or 'sandwich'"
            )
        if not 0 <= self.num_leading_dense <= self.num_layers:
            raise ConfigError("model.num_leading_dense must lie between 0 and model.num_layers")
        if self.mup_base_width < 0:
            raise ConfigError("model.mup_base_width must be 0 (off) or a width")
        self._check_latent()
        self._check_moe()
        self._check_encoder()

    def _check_latent(self):
        latent = self.latent
        if not latent.kv_rank:
            return
        if min(latent.kv_rank, latent.nope_dim, latent.rope_dim, latent.value_dim) < 1:
            raise ConfigError("model.latent: its widths must be at least 1")
        for name, refused in (
            ("position", self.position != "rope"),
            ("num_kv_heads", self.kv_heads != self.num_heads),
            ("head_dim", self.head_dim not in (0, self.size_of_head)),
            ("qk_norm", self.qk_norm),
            ("attention_sinks", self.attention_sinks),
            ("learned_attention_scale", self.learned_attention_scale),
            ("encoder_layers", self.encoder_layers),
        ):
            if refused:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)!r} cannot be had with latent attention "
                    "(model.latent.kv_rank above 0); leave it at its default"
                )

    def _check_encoder(self):
        if self.pooler != "none" and self.pooling == "none":
            raise ConfigError(
                f"model.pooler={self.pooler!r} has nothing to map; set model.pooling to 'cls' or "
                "'mean'"
            )
        if self.num_labels and self.label_level == "sequence" and self.pooling == "none":
            raise ConfigError(
                f"model.num_labels is {self.num_labels} for whole sequences: set model.pooling to "
                "'cls', 'mean' or 'last', or model.label_level to 'token'"
            )
        if not self.first_attention_norm and self.norm_placement != "pre":
            raise ConfigError("model.first_attention_norm=False needs model.norm_placement='pre'")
        if self.position == "disentangled" and self.attention != "bidirectional":
            raise ConfigError(
                "model.position='disentangled' looks at later tokens; set "
                "model.attention='bidirectional'"
            )
        if self.position == "disentangled" and self.kv_heads != self.num_heads:
            raise ConfigError(
                "model.position='disentangled' has a key/value head per query head; set "
                "model.num_kv_heads to 0"
            )
        if not self.encoder_layers:
            return
        for name, refused in (
            ("attention", self.attention == "bidirectional"),
            ("ffn_pattern", "moe" in self.ffn_pattern),
            ("parallel_block", self.parallel_block),
            ("first_attention_norm", not self.first_attention_norm),
        ):
            if refused:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)!r} cannot be had in an encoder-decoder "
                    "(model.encoder_layers above 0); change it or set model.encoder_layers to 0"
                )

    def _check_moe(self):
        moe = self.moe
        if "moe" not in self.ffn_pattern:
            if moe.num_experts:
                raise ConfigError(
                    f"model.moe.num_experts is {moe.num_experts} but no layer is 'moe'; set "
                    "model.ffn_pattern to ('moe',) or ('dense', 'moe')"
                )
            return
        if moe.num_experts < 1:
            raise ConfigError("model.ffn_pattern has moe layers: set model.moe.num_experts")
        if not 1 <= moe.top_k <= moe.num_experts:
            raise ConfigError(
                f"model.moe.top_k is {moe.top_k}; it must lie between 1 and "
                f"model.moe.num_experts ({moe.num_experts})"
            )
        if moe.router == "expert_choice" and self.attention != "bidirectional":
            raise ConfigError(
                "model.moe.router='expert_choice' looks at later tokens; use it with "
                "model.attention='bidirectional' only"
            )
        if moe.dispatch == "capacity" and moe.capacity_factor <= 0:
            raise ConfigError("model.moe.capacity_factor must be positive")
        if moe.exchange_factor <= 0:
            raise ConfigError("model.moe.exchange_factor must be positive")
        if moe.num_groups:
            self._check_groups()

    def _check_groups(self):
        moe = self.moe
        if moe.router == "expert_choice" or moe.num_groups < 0 or moe.num_experts % moe.num_groups:
            raise ConfigError(
                f"model.moe.num_groups is {moe.num_groups}; it must divide model.moe.num_experts "
                f"({moe.num_experts}), and is not for router='expert_choice'"
            )
        size = moe.num_experts // moe.num_groups
        if not 1 <= moe.top_groups <= moe.num_groups or moe.top_groups * size < moe.top_k:
            raise ConfigError(
                f"model.moe.top_groups is {moe.top_groups}; it must lie between 1 and "
                f"model.moe.num_groups ({moe.num_groups}), and have model.moe.top_k experts"
            )
        if moe.router == "sigmoid" and size < 2:
            raise ConfigError("model.moe.num_groups: a sigmoid router needs two experts a group")

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def size_of_head(self) -> int:
        """Width of a head's query and key."""
        if self.latent.kv_rank:
            return self.latent.nope_dim + self.latent.rope_dim
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def size_of_value(self) -> int:
        """Width of a head's value."""
        return self.latent.value_dim if self.latent.kv_rank else self.size_of_head

    @property
    def rotary_dim(self) -> int:
        if self.latent.kv_rank:
            return self.latent.rope_dim
        return int(self.size_of_head * self.rope_fraction)

    @property
    def expert_size(self) -> int:
        return self.moe.intermediate_size or self.intermediate_size

    @property
    def encoder(self) -> "ModelConfig":
        """The encoder's own config in an encoder-decoder: the same but for depth and mask."""
        return dataclasses.replace(
            self, num_layers=self.encoder_layers, encoder_layers=0, attention="bidirectional"
        )

    @property
    def period(self) -> int:
        """Layers after which the pattern of attention and feed-forward kinds repeats."""
        return math.lcm(len(self.attention_pattern), len(self.ffn_pattern))

    def layer_kind(self, index: int) -> tuple[str, str]:
        """(`global` or `local`, `dense` or `moe`) of layer `index`."""
        attention = self.attention_pattern[index % len(self.attention_pattern)]
        ffn = self.ffn_pattern[index % len(self.ffn_pattern)]
        return attention, "dense" if index < self.num_leading_dense else ffn


@dataclass(frozen=True)
class InitConfig:
    """Weights to start from; random ones where nothing is named."""

    hf_folder: str = setting(
        "", "a Hugging Face model folder; model section and tokenizer are taken from it"
    )
    workdir: str = setting(
        "", "a run, whose newest weights, model section and tokenizer are taken; a new run begins"
    )

    def __post_init__(self):
        if self.hf_folder and self.workdir:
            raise ConfigError("init.hf_folder and init.workdir are both set; choose one")


@dataclass(frozen=True)
class AdaLoraConfig:
    """How AdaLoRA shrinks its ranks (Zhang et al. 2023)."""

    initial_rank: int = setting(12, "of every matrix; peft.rank is what they end with on average")
    warmup_steps: int = setting(0, "steps before ranks begin to fall")
    final_steps: int = setting(0, "steps after they have fallen")
    interval: int = setting(1, "steps between two cuts")
    sensitivity_decay: float = setting(0.85, "smoothing of |weight x gradient|")
    uncertainty_decay: float = setting(0.85, "smoothing of how much that varies")
    orthogonality: float = setting(0.5, "weight of the penalty that keeps P and Q orthogonal")
    squared: bool = setting(False, "square its norms and add them up, as in the paper")

    def __post_init__(self):
        for name in ("initial_rank", "interval"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"peft.adalora.{name} is {getattr(self, name)}; it must be at least 1"
                )


@dataclass(frozen=True)
class BottleneckConfig:
    """Adapters of two small layers on the residual stream."""

    size: int = setting(0, "width of the bottleneck; 0 for hidden_size / reduction")
    reduction: int = setting(0, "hidden_size over that width; 0 for the method's own")
    activation: str = setting(
        "", "relu, gelu, silu; empty for the method's own", ("", "relu", "gelu", "silu")
    )
    scale: float = setting(0.0, "multiplies what is added; 0 for the method's own")
    init: str = setting(
        "zero_up", "zero_up (identity at the start); bert (N(0, 0.02) on both)", ("zero_up", "bert")
    )


@dataclass(frozen=True)
class PromptConfig:
    """Virtual tokens of prompt and prefix methods."""

    length: int = setting(20, "virtual tokens")
    hidden: int = setting(0, "width of the network that makes them; 0 for hidden_size")
    encoder: str = setting("mlp", "p_tuning: mlp or lstm", ("mlp", "lstm"))
    init: str = setting(
        "normal",
        "normal (N(0, 1)); uniform (U(-0.5, 0.5)); vocabulary (rows of random tokens); text",
        ("normal", "uniform", "vocabulary", "text"),
    )
    text: str = setting("", "init='text': its tokens' embeddings, repeated as need be")
    tokens: tuple[int, ...] = setting((), "init='text': the ids of those tokens")
    dropout: float = setting(0.0, "p_tuning_v2: on the virtual keys and values, in training")

    def __post_init__(self):
        if self.length < 1:
            raise ConfigError(f"peft.prompt.length is {self.length}; it must be at least 1")


@dataclass(frozen=True)
class PeftConfig:
    """Parameter-efficient fine-tuning: a frozen model and what is added to it."""

    method: str = setting("none", "none, or a name from peft.METHODS")
    targets: tuple[str, ...] = setting(
        (), "patterns of module paths; 'all-linear'; () for the method's own"
    )
    exclude: tuple[str, ...] = setting((), "patterns of module paths left out of them")
    rank: int = setting(0, "LoRA family: r; 0 for the method's own (8; vera 256)")
    alpha: float = setting(0.0, "LoRA family: the update counts alpha / r times; 0 for r")
    scaling: str = setting(
        "rank", "alpha / r, or with sqrt_rank alpha / sqrt(r) (rsLoRA)", ("rank", "sqrt_rank")
    )
    rank_pattern: tuple[str, ...] = setting((), "'PATTERN=RANK' where another rank is wanted")
    alpha_pattern: tuple[str, ...] = setting((), "'PATTERN=ALPHA' likewise")
    dropout: float = setting(0.0, "on the adapter's input, in training")
    init: str = setting(
        "default",
        "LoRA, DoRA: default (B = 0), gaussian (A by 1/r), pissa, olora, loftq",
        ("default", "gaussian", "pissa", "olora", "loftq"),
    )
    loftq_iterations: int = setting(1, "loftq: how often codes and update take turns")
    bias: bool = setting(False, "LoRA: a bias on B")
    rate_ratio: float = setting(
        0.0,
        "LoRA+: learning rate of B over A's; 0 for the method's own (lora_plus 16, else 1)",
    )
    vera_initial: float = setting(0.1, "VeRA: initial value of d")
    train_also: tuple[str, ...] = setting(
        (), "patterns of the model's own parameters that are trained beside the adapters"
    )
    dtype: str = setting("float32", "of the adapters", ("float32", "bfloat16"))
    quantize: str = setting("none", "the frozen matrices", ("none", "nf4", "int8"))
    double_quantize: bool = setting(True, "nf4: the scales in 8 bits too")
    adapters: str = setting("", "a folder of adapters to start from")
    adalora: AdaLoraConfig = setting(AdaLoraConfig, "AdaLoRA")
    bottleneck: BottleneckConfig = setting(BottleneckConfig, "houlsby, pfeiffer, parallel")
    prompt: PromptConfig = setting(PromptConfig, "prompt and prefix methods")

    def __post_init__(self):
        if self.rank < 0:
            raise ConfigError(f"peft.rank is {self.rank}; it must be at least 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"peft.dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.rate_ratio < 0:
            raise ConfigError(f"peft.rate_ratio is {self.rate_ratio}; it must be at least 0")
        if self.loftq_iterations < 1:
            raise ConfigError(
                f"peft.loftq_iterations is {self.loftq_iterations}; it must be at least 1"
            )
        if self.method == "none" and (self.quantize != "none" or self.train_also):
            raise ConfigError(
                "peft.quantize and peft.train_also belong to a method: set peft.method, such as "
                "'lora'"
            )


@dataclass(frozen=True)
class TokenizerConfig:
    """Text to token ids and back."""

    kind: str = setting(
        "unigram",
        "unigram, bpe, char (SentencePiece, trained here); word; byte; huggingface (from path)",
        ("unigram", "bpe", "char", "word", "byte", "huggingface"),
    )
    vocab_size: int = setting(8000, "pieces, special tokens included")
    path: str = setting("", "a saved tokenizer (folder, .model or tokenizer.json) to use as it is")
    character_coverage: float = setting(0.9995, "share of characters that get a piece of their own")
    byte_fallback: bool = setting(True, "spell what has no piece as UTF-8 bytes")
    split_digits: bool = setting(True, "one piece per digit")
    split_scripts: bool = setting(
        True, "no piece holds Japanese and punctuation or Latin; off: longer pieces, as in です。"
    )
    normalization: str = setting(
        "nfkc",
        "identity; nfkc, but for what Japanese text needs (compiled into the model)",
        ("identity", "nfkc"),
    )
    word_segmenter: str = setting(
        "whitespace", "word: whitespace; mecab; sudachi", ("whitespace", "mecab", "sudachi")
    )
    train_megabytes: float = setting(10.0, "text from the corpus start that it is trained on")


@dataclass(frozen=True)
class CleaningConfig:
    """Filters over source documents, in this order; each reports how much it removed."""

    normalize: str = setting("nfkc", "none; nfkc (keeps 、。「」～ and the like)", ("none", "nfkc"))
    strip_control: bool = setting(True, "control and zero-width characters")
    strip_aozora: bool = setting(True, "ruby《》 and annotations ［＃］ of Aozora Bunko")
    drop_boilerplate: bool = setting(False, "navigation, copyright and cookie lines of web pages")
    drop_repeated_lines: bool = setting(False, "a line that the document already had")
    min_characters: int = setting(1, "shorter documents are removed")
    max_characters: int = setting(0, "longer ones are cut at sentence ends; 0 for never")
    min_japanese_ratio: float = setting(0.0, "least share of kana and kanji among letters")
    min_kana_ratio: float = setting(0.0, "least share of kana (tells Japanese from Chinese)")
    exact_dedup: bool = setting(False, "documents with the same text after the steps above")
    minhash_threshold: float = setting(0.0, "near-duplicates above this Jaccard similarity; 0: off")


@dataclass(frozen=True)
class ChatConfig:
    """Conversations (sources of kind chat and microworld_chat)."""

    template: str = setting(
        "jgpt",
        "jgpt (for tokenizers trained here); chatml; llama2; llama3; gemma; mistral; alpaca_ja; or "
        "a .jinja file, or a model folder that has one",
    )
    learn: str = setting(
        "replies",
        "tokens that count: replies (what the assistant wrote); last (its last reply); all",
        ("replies", "last", "all"),
    )
    overlong: str = setting(
        "cut",
        "conversations longer than a row: cut (oldest exchanges, then prompt, then reply); error",
        ("cut", "error"),
    )
    checked: int = setting(64, "held-out questions that are asked and checked at the end")


@dataclass(frozen=True)
class LabelsConfig:
    """Labelled records (sources of kind labels and microworld_labels)."""

    text: str = setting("text", "field of the text")
    pair: str = setting("", "field of a second text; '' where there is none")
    label: str = setting("label", "field of the label")
    classes: tuple[str, ...] = setting((), "names of the classes; () where labels are numbers")


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes batches."""

    sources: str = setting(
        "microworld",
        "comma-separated KIND:PATH@WEIGHT; kind: microworld, text, jsonl, parquet, array_record, "
        "huggingface, chat, labels, class_texts, microworld_chat or microworld_labels; $VARIABLES "
        "and globs are expanded, the kind may be left to the ending",
    )
    text_field: str = setting("text", "field of jsonl, parquet, array_record, huggingface records")
    text_documents: str = setting(
        "file",
        "text: a document is a whole file, or each block between blank lines",
        ("file", "block"),
    )
    split: str = setting("train", "huggingface: the split to stream")
    subset: str = setting("", "huggingface: the dataset's configuration name, such as ja")
    microworld_documents: int = setting(200_000, "microworld: documents before it repeats")
    cache: str = setting("", "folder of caches; empty for ~/.cache/jgpt ($JGPT_CACHE)")
    cleaning: CleaningConfig = setting(CleaningConfig, "filters over documents")
    chat: ChatConfig = setting(ChatConfig, "conversations")
    labels: LabelsConfig = setting(LabelsConfig, "labelled records")
    class_weight: float = setting(
        1.0, "sources of kind class_texts: lambda, what a token of theirs weighs in the loss"
    )
    max_bad_records: int = setting(100, "unreadable records (UTF-8, JSON) before the run stops")
    sequence_length: int = setting(256, "tokens per row")
    virtual_tokens: int = setting(
        0, "ids below 0 in front of every document; training sets them as peft.prompt says"
    )
    batch_size: int = setting(16, "rows per step, over all processes")
    packing: str = setting(
        "best_fit",
        "best_fit (whole documents where they fit); split (concatenate and cut); none (one a row)",
        ("best_fit", "split", "none"),
    )
    pack_open_rows: int = setting(64, "best_fit: documents for so many rows wait to be chosen from")
    shuffle: bool = setting(True, "a new order every epoch")
    shuffle_buffer: int = setting(2048, "documents in memory, for sources without an index")
    seed: int = setting(0, "of shuffling")
    epochs: int = setting(0, "0 for as many as the steps need")
    virtual_shards: int = setting(64, "fixed streams that processes share out among themselves")
    validation_fraction: float = setting(0.01, "of documents, by hash of their text")
    validation_documents: int = setting(512, "at most this many of them are scored")
    workers: int = setting(0, "processes that read and pack; 0 for a thread of this one")
    prefetch: int = setting(8, "batches made ahead")

    def __post_init__(self):
        for name in (
            "sequence_length", "batch_size", "virtual_shards", "prefetch", "pack_open_rows",
            "shuffle_buffer", "microworld_documents",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.virtual_tokens <= max(self.sequence_length - 2, 0):
            raise ConfigError(
                f"data.sequence_length ({self.sequence_length}) has no room for text after "
                f"{self.virtual_tokens} virtual tokens (peft.prompt.length); raise it"
            )
        if self.class_weight <= 0:
            raise ConfigError(
                f"data.class_weight is {self.class_weight}; it must be above 0, or leave the "
                "class_texts out of data.sources"
            )
        if not self.sources.strip():
            raise ConfigError("data.sources is empty; name a source such as 'microworld'")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError("data.validation_fraction must lie in [0, 1)")
        small, large = sorted((self.batch_size, self.virtual_shards))
        if large % small:
            raise ConfigError(
                f"data.batch_size ({self.batch_size}) and data.virtual_shards "
                f"({self.virtual_shards}) must divide one another; choose a power of two"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """Update rule, learning rate over time, clipping."""

    name: str = setting(
        "adamw", "adamw; adafactor; lion; muon", ("adamw", "adafactor", "lion", "muon")
    )
    learning_rate: float = setting(1e-3, "at its peak")
    schedule: str = setting(
        "cosine", "cosine; wsd (warmup, stable, decay); constant; all after a warmup",
        ("cosine", "wsd", "constant"),
    )  # fmt: skip
    warmup_steps: int = setting(100, "linear from 0")
    decay_fraction: float = setting(0.2, "wsd: share of the steps that decay")
    final_fraction: float = setting(0.1, "learning rate at the end over its peak")
    b1: float = setting(0.9, "first moment (adamw, lion), momentum (muon uses 0.95)")
    b2: float = setting(0.95, "second moment")
    epsilon: float = setting(1e-8, "adamw's")
    weight_decay: float = setting(0.1, "decoupled; on matrices only")
    clip_norm: float = setting(1.0, "of the global gradient; 0 for none")
    muon_learning_rate: float = setting(0.02, "muon: of the matrices; the rest uses learning_rate")
    muon_momentum: float = setting(0.95, "muon's Nesterov momentum")
    ema_decay: float = setting(0.0, "exponential moving average of the weights; 0 for none")
    rules: tuple[str, ...] = setting(
        (), "'PATTERN: freeze' or 'PATTERN: rate=R decay=D' over parameter paths; first match wins"
    )
    offload: bool = setting(
        False, "keep the optimizer's state in host memory, where devices have a pinned_host"
    )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    name: str = setting("pretrain", "a name from objectives.OBJECTIVES")
    z_loss: float = setting(0.0, "weight of logsumexp(logits)**2")
    label_smoothing: float = setting(
        0.0, "share of each target's mass spread evenly over the vocabulary, the target included"
    )
    noise_density: float = setting(0.15, "mlm, span_corruption: share of the tokens hidden")
    mean_span: float = setting(3.0, "span_corruption: tokens per hidden span, on average")
    mask_id: int = setting(-1, "mlm: the mask token; -1 for a row added after the tokenizer's ids")
    first_sentinel: int = setting(
        -1, "span_corruption: id of the first sentinel, the others below; -1 for rows added"
    )
    num_sentinels: int = setting(100, "span_corruption: sentinels, so many spans in a document")
    end_id: int = setting(-1, "span_corruption: ends a target; -1 for the tokenizer's eos")

    def __post_init__(self):
        if not 0 < self.noise_density < 1:
            raise ConfigError(
                f"objective.noise_density is {self.noise_density}; it must lie between 0 and 1"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"objective.label_smoothing is {self.label_smoothing}; it must be at least 0 and "
                "below 1"
            )
        if self.mean_span < 1:
            raise ConfigError(f"objective.mean_span is {self.mean_span}; it must be at least 1")

    @property
    def added_ids(self) -> int:
        """Ids that the objective needs beside the tokenizer's."""
        if self.name == "mlm":
            return 1 if self.mask_id < 0 else 0
        if self.name == "span_corruption":
            return self.num_sentinels if self.first_sentinel < 0 else 0
        return 0


@dataclass(frozen=True)
class ForgettingConfig:
    """What holds a fine-tuned model to what it was, and what says how far it has moved."""

    ewc: str = setting(
        "", "elastic weight consolidation: what python -m jgpt.fisher made (its folder, or the run)"
    )
    ewc_weight: float = setting(
        1.0, "ewc: L of L / 2 * sum F (theta - theta0)^2, which is added to the mean loss"
    )
    drift_documents: int = setting(
        0, "held-out documents that the run is compared on with the model it began as; 0 for none"
    )
    drift_sources: str = setting("microworld", "drift: where they are from, as data.sources")
    drift_fraction: float = setting(
        0.01, "drift: as the first run's data.validation_fraction, or less: its held-out texts"
    )

    def __post_init__(self):
        if self.ewc and self.ewc_weight <= 0:
            raise ConfigError(
                f"forgetting.ewc_weight is {self.ewc_weight}; it must be above 0, or leave "
                "forgetting.ewc empty"
            )
        if not 0 < self.drift_fraction < 1:
            raise ConfigError(
                f"forgetting.drift_fraction is {self.drift_fraction}; it must lie between 0 and 1"
            )


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = setting(1000, "optimizer steps")
    microbatches: int = setting(1, "gradient accumulation: parts a batch is cut into")
    gradient_dtype: str = setting(
        "float32",
        "of weight gradients while devices add theirs up; bfloat16 halves that traffic",
        ("float32", "bfloat16"),
    )
    seed: int = setting(0, "of initial weights and dropout")
    log_every: int = setting(10, "steps between lines of metrics.jsonl on screen and TensorBoard")
    eval_every: int = setting(200, "steps between validations; 0 for only the last")
    sample_every: int = setting(200, "steps between samples; 0 for only the last")
    max_nonfinite: int = setting(10, "skipped non-finite steps in a row before the run stops")
    keep_malloc: bool = setting(True, "main: glibc keeps freed buffers (CPU only; 1.2-1.6x faster)")

    def __post_init__(self):
        for name in ("steps", "microbatches", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on disk, and when."""

    every: int = setting(200, "steps between checkpoints; 0 for only the last")
    keep_last: int = setting(2, "newest ones kept")
    keep_best: int = setting(1, "ones of lowest validation loss kept")
    asynchronous: bool = setting(True, "write while training goes on")


@dataclass(frozen=True)
class CacheConfig:
    """Keys and values of past tokens, kept while text is written."""

    kind: str = setting(
        "slots",
        "slots: each row has room for its longest length; pages: rows take pages of a common pool",
        ("slots", "pages"),
    )
    dtype: str = setting(
        "model",
        "of keys and values: model (that of activations); float32; bfloat16; int8 (a scale per "
        "token and head)",
        ("model", "float32", "bfloat16", "int8"),
    )
    page_size: int = setting(128, "tokens of a page")

    def __post_init__(self):
        if self.page_size < 1:
            raise ConfigError(f"cache.page_size is {self.page_size}; it must be at least 1")


@dataclass(frozen=True)
class SampleConfig:
    """Text written by the model, during training and by `jgpt.generate`."""

    prompts: tuple[str, ...] = setting(("",), "each is continued; '' starts a document")
    num_samples: int = setting(4, "per round in training, over the prompts in turn")
    max_new_tokens: int = setting(128, "at most")
    temperature: float = setting(0.8, "0 is greedy")
    top_k: int = setting(0, "only the k likeliest; 0 for all")
    top_p: float = setting(0.95, "only the likeliest that make up this mass; 1 for all")
    min_p: float = setting(0.0, "only those at least this times as likely as the likeliest")
    repetition_penalty: float = setting(1.0, "makes tokens of the text so far unlikelier; 1: off")
    seed: int = setting(0, "of sampling")
    cache: CacheConfig = setting(CacheConfig, "of past tokens")
    final_samples: int = setting(50, "written and judged at the end of a run; 0 for none")

    def __post_init__(self):
        for name, holds, rule in (
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("prompts", len(self.prompts) >= 1, "one prompt or more; ('',) starts documents"),
        ):
            if not holds:
                raise ConfigError(f"sample.{name} is {getattr(self, name)!r}; it must be {rule}")


@dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis; one may be -1, the rest of the devices."""

    data: int = setting(-1, "replicas of the weights, each with its own rows")
    fsdp: int = setting(1, "weights cut up, rows too")
    expert: int = setting(1, "experts")
    tensor: int = setting(1, "heads and feed-forward columns")
    context: int = setting(1, "positions of the sequence")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = setting("default", "of the run; the workdir is runs/NAME unless --workdir is given")
    model: ModelConfig = setting(ModelConfig, "architecture")
    init: InitConfig = setting(InitConfig, "weights to start from")
    peft: PeftConfig = setting(PeftConfig, "adapters on a frozen model")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "text to token ids")
    data: DataConfig = setting(DataConfig, "corpus and batches")
    optimizer: OptimizerConfig = setting(OptimizerConfig, "update rule")
    objective: ObjectiveConfig = setting(ObjectiveConfig, "what is minimised")
    forgetting: ForgettingConfig = setting(ForgettingConfig, "what a fine-tuned model keeps")
    train: TrainConfig = setting(TrainConfig, "loop")
    checkpoint: CheckpointConfig = setting(CheckpointConfig, "what is kept on disk")
    sample: SampleConfig = setting(SampleConfig, "text written by the model")
    mesh: MeshConfig = setting(MeshConfig, "devices")

    def __post_init__(self):
        if self.data.batch_size % self.train.microbatches:
            raise ConfigError(
                f"train.microbatches ({self.train.microbatches}) does not divide data.batch_size "
                f"({self.data.batch_size})"
            )
        if self.train.gradient_dtype != self.model.dtype == "float32":
            raise ConfigError(
                "train.gradient_dtype='bfloat16' would round the weights of a float32 model; set "
                "model.dtype to 'bfloat16' too, or leave it 'float32'"
            )
        if self.model.position == "learned" and self.data.sequence_length > self.model.max_length:
            raise ConfigError(
                f"data.sequence_length ({self.data.sequence_length}) is longer than the learned "
                f"position table; raise model.max_length ({self.model.max_length})"
            )
        self._check_objective()
        self._check_drift()

    def _check_drift(self):
        if not self.forgetting.drift_documents:
            return
        if not (self.init.workdir or self.init.hf_folder):
            raise ConfigError(
                "forgetting.drift_documents compares a run with the model it begins as: set "
                "init.workdir or init.hf_folder, or leave it 0"
            )
        prompts = self.peft.method in ("prompt_tuning", "p_tuning")
        if prompts or self.model.encoder_layers or self.model.attention == "bidirectional":
            raise ConfigError(
                "forgetting.drift_documents compares next-token predictions place by place, which "
                "encoders do not make and prompt_tuning and p_tuning shift; set it to 0"
            )

    def _check_objective(self):
        model, name = self.model, self.objective.name
        if name == "mlm" and model.attention != "bidirectional":
            raise ConfigError(
                "objective.name='mlm' predicts from both sides: set model.attention to "
                "'bidirectional'"
            )
        if name == "span_corruption" and not model.encoder_layers:
            raise ConfigError(
                "objective.name='span_corruption' needs an encoder-decoder: set "
                "model.encoder_layers above 0"
            )
        bidirectional = model.attention == "bidirectional" or model.encoder_layers
        if name in ("pretrain", "sft") and bidirectional:
            kind, other = ("an encoder-decoder", "span_corruption")
            if model.attention == "bidirectional":
                kind, other = ("a bidirectional model", "mlm")
            raise ConfigError(
                f"objective.name={name!r} predicts the next token, which {kind} cannot be "
                f"trained on; set it to {other!r}"
            )
        silent = model.attention == "bidirectional" or model.encoder_layers > 0
        if silent and (self.sample.final_samples or self.train.sample_every):
            raise ConfigError(
                "this model continues no prompts: set sample.final_samples and train.sample_every "
                "to 0"
            )


def _unwrap_optional(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return inner[0], True
    return kind, False


def _convert(kind: Any, value: Any, path: str) -> Any:
    kind, optional = _unwrap_optional(kind)
    if value is None and optional:
        return None
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, path)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; write a tuple such as ({item()!r},)")
        return tuple(_convert(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path} is {value!r}; write {kind.__name__} here")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{path} is {value}; write a finite number")
    return value


def _build(kind: type, values: Any, path: str) -> Any:
    if dataclasses.is_dataclass(values):
        return values
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ConfigError(f"{path or 'the config'} is {values!r}; it is a section of settings")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    arguments = {}
    for name, value in values.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"unknown config field {here!r}; {hint}")
        arguments[name] = _convert(hints[name], value, here)
        choices = fields[name].metadata["choices"]
        if choices and arguments[name] not in choices:
            raise ConfigError(f"{here} is {value!r}; choose one of {', '.join(choices)}")
    return kind(**arguments)


def from_config_dict(values: Any) -> Config:
    """A `Config` from a `ConfigDict` or nested mapping; fields left out keep their defaults.

    Raises:
        ConfigError: an unknown field, a wrong type, or values that cannot go together.
    """
    return _build(Config, values, "")


def model_from_dict(values: Any) -> ModelConfig:
    """A `ModelConfig` from a nested mapping, checked as `from_config_dict` checks its section."""
    return _build(ModelConfig, values, "model")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of any section; `from_config_dict(to_dict(c)) == c`."""
    return dataclasses.asdict(config)


_DEFAULT_HEAD = '''"""Every setting with its default and meaning; other configs change a few lines.

Generated from `jgpt/config.py`: `python -m jgpt.config > configs/default.py`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
'''


def _literal(value: Any) -> str:
    """Python source of a setting, strings in double quotes."""
    if isinstance(value, tuple):
        return "(" + "".join(f"{_literal(v)}, " for v in value) + ")"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _default_lines(section: Any, path: str) -> list[str]:
    lines = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            lines.append(f"\n    # {field.metadata['help']}")
            lines.append(f"    {path}.{field.name} = ml_collections.ConfigDict()")
            lines.extend(_default_lines(value, f"{path}.{field.name}"))
        else:
            lines.append(f"    # {field.metadata['help']}")
            if value is None:
                line = f"{path}.{field.name} = ml_collections.config_dict.placeholder(float)"
            else:
                line = f"{path}.{field.name} = {_literal(value)}"
            lines.append(f"    {line}")
    return lines


def default_config_source() -> str:
    """Text of `configs/default.py`, generated from the dataclasses."""
    body = "\n".join(_default_lines(Config(), "c"))
    return f"{_DEFAULT_HEAD}{body}\n    return c\n"


if __name__ == "__main__":
    print(default_config_source(), end="")
