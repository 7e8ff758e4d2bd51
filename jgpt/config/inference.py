"""The sections `sample` and its cache: text written by the model."""

from dataclasses import dataclass

from jgpt.config.setting import ConfigError, setting


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
