"""Parameter-efficient fine-tuning: methods in small files, and one seam that binds them.

A method is a `Method` (`jgpt.peft.method`): leaves, a call and a merge for one site. `make_peft`
fits one to a model, `init` makes its adapters, `bind` gives an `apply` that uses them, `merge` puts
them into the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jgpt.config import Config, ConfigError, ModelConfig, PeftConfig
from jgpt.peft import (
    adalora,
    bottleneck,
    dora,
    ia3,
    lora,
    lora_fa,
    lora_plus,
    p_tuning,
    prefix,
    prompt,
    vera,
)
from jgpt.peft.adapters import (
    Adapters,
    Peft,
    abstract_adapters,
    adapter_axes,
    count_trained,
    fit,
    init,
    merge,
    method_of,
    unmerge,
)
from jgpt.peft.bind import ADAPTER_IDS, CONSTANTS, TRAINED, bind
from jgpt.peft.method import Method

METHODS: dict[str, Method] = {
    "lora": lora.LORA,
    "rslora": lora.RSLORA,
    "lora_plus": lora_plus.LORA_PLUS,
    "lora_fa": lora_fa.LORA_FA,
    "pissa": lora.PISSA,
    "olora": lora.OLORA,
    "loftq": lora.LOFTQ,
    "dora": dora.DORA,
    "adalora": adalora.ADALORA,
    "vera": vera.VERA,
    "ia3": ia3.IA3,
    "houlsby": bottleneck.HOULSBY,
    "pfeiffer": bottleneck.PFEIFFER,
    "parallel": bottleneck.PARALLEL,
    "prefix_tuning": prefix.PREFIX,
    "p_tuning_v2": prefix.P_TUNING_V2,
    "prompt_tuning": prompt.PROMPT,
    "p_tuning": p_tuning.P_TUNING,
}
"""`peft.method` -> what it does."""


def make_peft(settings: PeftConfig, model: ModelConfig) -> Peft:
    """The method that `settings` name, fitted to `model`.

    Raises:
        ConfigError: an unknown method, or targets that it cannot adapt.
    """
    return fit(settings, model, METHODS)


def decide(config: Config, encode: Callable[[str], Sequence[int]]) -> Config:
    """The config of a run with what its method asks of the data filled in.

    That is the number of virtual tokens in front of documents, and the ids of `peft.prompt.text`.

    Args:
        config: of the run.
        encode: text to token ids, without bos and eos.

    Raises:
        ConfigError: an unknown method, or virtual tokens where the objective changes the inputs.
    """
    if config.peft.method == "none":
        return config
    settings = config.peft
    if settings.prompt.init == "text" and not settings.prompt.tokens:
        tokens = tuple(int(i) for i in encode(settings.prompt.text))
        settings = replace(settings, prompt=replace(settings.prompt, tokens=tokens))
    count = method_of(settings, METHODS).virtual_tokens(settings)
    if count and config.objective.name in ("mlm", "span_corruption"):
        raise ConfigError(
            f"peft.method={settings.method!r} puts virtual tokens into the inputs, of which "
            f"objective.name={config.objective.name!r} hides some; use 'p_tuning_v2'"
        )
    return replace(config, peft=settings, data=replace(config.data, virtual_tokens=count))


__all__ = [
    "ADAPTER_IDS",
    "CONSTANTS",
    "METHODS",
    "TRAINED",
    "Adapters",
    "Method",
    "Peft",
    "abstract_adapters",
    "adapter_axes",
    "bind",
    "decide",
    "count_trained",
    "init",
    "make_peft",
    "merge",
    "unmerge",
]
