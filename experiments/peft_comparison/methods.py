"""The methods that are compared: what each is set to, and the rates it may choose from.

All begin from the same model. A method has its own defaults except for what is said here: the LoRA
family adapts every linear map at rank 8 and alpha 16, so that its members differ in nothing else.
"""

from dataclasses import dataclass, field
from typing import Any

STEPS, EVAL_EVERY = 50, 10
LORA = {"targets": ("all-linear",), "rank": 8, "alpha": 16.0}
ADALORA = {
    "initial_rank": 12,
    "warmup_steps": 10,
    "final_steps": 15,
    "interval": 5,
}


@dataclass(frozen=True)
class Entry:
    """A method as it is compared."""

    rates: tuple[float, ...]
    """learning rates that it may choose from; one where a relative has chosen already"""
    family: str
    """colour in the plots"""
    peft: dict[str, Any] = field(default_factory=dict)
    """settings of `peft`; none for methods that train the model's own parameters"""
    rules: tuple[str, ...] = ()
    """`optimizer.rules`"""


def lora(method: str, *rates: float, **changes: Any) -> Entry:
    return Entry(rates, "LoRA", {"method": method, **LORA, **changes})


def bottleneck(method: str, *rates: float) -> Entry:
    return Entry(rates, "bottleneck", {"method": method})


def virtual(method: str, *rates: float) -> Entry:
    return Entry(rates, "virtual tokens", {"method": method, "prompt": {"length": 10}})


METHODS = {
    "none": Entry((0.0,), "own weights", rules=("norm: rate=1", ".*: freeze")),
    "full": Entry((1e-3, 3e-3), "own weights"),
    "top_1": Entry(
        (2e-3, 6e-3),
        "own weights",
        rules=(r"^(layers_3/|final_norm|head): rate=1", ".*: freeze"),
    ),
    "norms": Entry((1e-2, 3e-2), "own weights", rules=("norm: rate=1", ".*: freeze")),
    "lora": lora("lora", 3e-3, 9e-3),
    "rslora": lora("rslora", 3e-3),
    "lora_plus": lora("lora_plus", 1e-3, 3e-3),
    "lora_fa": lora("lora_fa", 3e-3, 9e-3),
    "dora": lora("dora", 3e-3, 9e-3),
    "pissa": lora("pissa", 1e-3, 3e-3),
    "olora": lora("olora", 3e-3),
    "qlora_nf4": lora("lora", 9e-3, quantize="nf4"),
    "loftq_nf4": lora("loftq", 9e-3, quantize="nf4"),
    "adalora": lora("adalora", 1e-2, 3e-2, adalora=ADALORA),
    "vera": Entry((1e-2, 3e-2), "scales", {"method": "vera", "targets": ("all-linear",)}),
    "ia3": Entry((1e-2, 3e-2), "scales", {"method": "ia3"}),
    "houlsby": bottleneck("houlsby", 3e-3, 9e-3),
    "pfeiffer": bottleneck("pfeiffer", 9e-3),
    "parallel": bottleneck("parallel", 9e-3),
    "prefix_tuning": virtual("prefix_tuning", 3e-3, 9e-3),
    "p_tuning_v2": virtual("p_tuning_v2", 3e-2, 9e-2),
    "prompt_tuning": virtual("prompt_tuning", 1e-1, 3e-1),
    "p_tuning": virtual("p_tuning", 9e-3),
}
