"""The sections `init` and `peft`: what training starts from, and what is added to it."""

from dataclasses import dataclass

from jgpt.config.setting import ConfigError, setting


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
