"""The sections `optimizer`, `objective`, `forgetting`, `train`, `checkpoint` and `mesh`."""

from dataclasses import dataclass

from jgpt.config.setting import ConfigError, setting


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
class MeshConfig:
    """How many devices along each axis; one may be -1, the rest of the devices."""

    data: int = setting(-1, "replicas of the weights, each with its own rows")
    fsdp: int = setting(1, "weights cut up, rows too")
    expert: int = setting(1, "experts")
    tensor: int = setting(1, "heads and feed-forward columns")
    context: int = setting(1, "positions of the sequence")
