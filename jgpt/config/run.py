"""A whole run: its sections, and what they ask of each other."""

from dataclasses import dataclass

from jgpt.config.data import DataConfig, TokenizerConfig
from jgpt.config.inference import SampleConfig
from jgpt.config.model import ModelConfig
from jgpt.config.peft import InitConfig, PeftConfig
from jgpt.config.setting import ConfigError, setting
from jgpt.config.training import (
    CheckpointConfig,
    ForgettingConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)


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
        if self.model.encoder_layers or self.model.attention == "bidirectional":
            raise ConfigError(
                "forgetting.drift_documents compares next-token predictions, which encoders do not "
                "make; set it to 0"
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
