"""Sections of `model.`: stretched positions, sparse attention, latent attention, experts."""

from dataclasses import dataclass

from jgpt.config.setting import setting


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
