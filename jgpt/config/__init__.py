"""Every setting of a run: one frozen dataclass per section, one home per default.

Config files are `ml_collections.ConfigDict`s; `from_config_dict` turns one into a `Config`,
refusing unknown keys and impossible values with one line that names the field and the remedy.
Inside jgpt only these dataclasses exist. `configs/default.py` is generated from them
(`python -m jgpt.config`), so the comment beside a field there is its `help` here.
"""

from jgpt.config.data import ChatConfig, CleaningConfig, DataConfig, LabelsConfig, TokenizerConfig
from jgpt.config.default_page import default_config_source
from jgpt.config.inference import CacheConfig, SampleConfig
from jgpt.config.model import ModelConfig
from jgpt.config.model_parts import BlockSparse, LatentConfig, MoEConfig, RopeScaling
from jgpt.config.peft import AdaLoraConfig, BottleneckConfig, InitConfig, PeftConfig, PromptConfig
from jgpt.config.reading import from_config_dict, model_from_dict, to_dict
from jgpt.config.run import Config
from jgpt.config.setting import ConfigError, setting
from jgpt.config.training import (
    CheckpointConfig,
    ForgettingConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "AdaLoraConfig",
    "BlockSparse",
    "BottleneckConfig",
    "CacheConfig",
    "ChatConfig",
    "CheckpointConfig",
    "CleaningConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "ForgettingConfig",
    "InitConfig",
    "LabelsConfig",
    "LatentConfig",
    "MeshConfig",
    "MoEConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PeftConfig",
    "PromptConfig",
    "RopeScaling",
    "SampleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "default_config_source",
    "from_config_dict",
    "model_from_dict",
    "setting",
    "to_dict",
]
