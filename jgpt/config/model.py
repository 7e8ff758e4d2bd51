"""The section `model`: the architecture."""

import dataclasses
import math
from dataclasses import dataclass

from jgpt.config.model_parts import BlockSparse, LatentConfig, MoEConfig, RopeScaling
from jgpt.config.setting import ConfigError, setting


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
