"""Phi-3: Llama with query, key and value in one map, and gate and up in another."""

from jgpt.interop.description import Family, only, tensor
from jgpt.interop.families.llama import ACTIVATION, OLD_BUFFERS, SIZES, STYLE, TENSORS, UNTIED
from jgpt.interop.layer_kinds import Windows
from jgpt.interop.rope import Rope
from jgpt.interop.transforms import TRANSPOSED, Fused

_ATTENTION, _FFN = "layers_{i}/attention", "layers_{i}/ffn"
_ROWS = Fused(TRANSPOSED, axis=0)

PHI3 = Family(
    name="phi3",
    architecture="Phi3ForCausalLM",
    settings=(
        *SIZES,
        UNTIED,
        ACTIVATION,
        STYLE,
        Rope(fraction_name="partial_rotary_factor"),
        Windows(None),
        only("embd_layer", None, "default"),
    ),
    tensors=(
        tensor(
            "model.layers.{i}.self_attn.qkv_proj.weight",
            [f"{_ATTENTION}/{name}/kernel" for name in ("query", "key", "value")],
            _ROWS,
        ),
        tensor(
            "model.layers.{i}.mlp.gate_up_proj.weight",
            [f"{_FFN}/{name}/kernel" for name in ("gate", "up")],
            _ROWS,
        ),
        *TENSORS,
    ),
    ignored=OLD_BUFFERS,
)
