"""Supervised fine-tuning: pretraining in which only the replies of conversations are learned."""

from jgpt.config import Config, ConfigError
from jgpt.data.sources import item_kinds
from jgpt.objectives import pretrain
from jgpt.objectives.objective import Objective


def make(config: Config) -> Objective:
    """Cross-entropy of the targets that `data.chat.learn` chooses, over their number in the whole
    batch; documents mixed in (replay) count with every token. The loss is that of `pretrain`.

    Raises:
        ConfigError: `data.sources` holds no conversations.
    """
    if "chat" not in item_kinds(config.data.sources):
        raise ConfigError(
            f"objective.name='sft' needs conversations, but data.sources is "
            f"{config.data.sources!r}; name one of kind chat or microworld_chat"
        )
    return pretrain.make(config)
