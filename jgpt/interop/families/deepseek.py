"""DeepSeek-V2 and V3 (and R1): latent attention, shared experts, groups of routed experts."""

from jgpt.interop.description import Always, Family, Field, linear, norm, only, tensor
from jgpt.interop.families.llama import ACTIVATION, BIASES, SIZES, STYLE, TENSORS, UNTIED
from jgpt.interop.latent import Groups, Interleaved, LatentRope, LeadingDense
from jgpt.interop.transforms import TRANSPOSED

_ATTENTION = "model.layers.{i}.self_attn"
_OURS = "layers_{i}/attention"
_EXPERT = "model.layers.{i}.mlp.experts.{e}"
_PLAIN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_LATENT = (
    Field("latent.kv_rank", "kv_lora_rank", 512),
    Field("latent.query_rank", "q_lora_rank", 1536, none=0),
    Field("latent.nope_dim", "qk_nope_head_dim", 128),
    Field("latent.rope_dim", "qk_rope_head_dim", 64),
    Field("latent.value_dim", "v_head_dim", 128),
)


def _rotated(theirs: str, ours: str, per_head: bool) -> tuple:
    layout = Interleaved(per_head)
    return (
        tensor(f"{_ATTENTION}.{theirs}.weight", f"{_OURS}/{ours}/kernel", layout),
        tensor(f"{_ATTENTION}.{theirs}.bias", f"{_OURS}/{ours}/bias", layout),
    )


_TENSORS = (
    *(row for row in TENSORS if not any(name in row.theirs for name in _PLAIN)),
    *_rotated("q_proj", "query", per_head=True),
    *linear(f"{_ATTENTION}.q_a_proj", f"{_OURS}/query_down"),
    *norm(f"{_ATTENTION}.q_a_layernorm", f"{_OURS}/query_norm"),
    *_rotated("q_b_proj", "query_up", per_head=True),
    *_rotated("kv_a_proj_with_mqa", "key_value_down", per_head=False),
    *norm(f"{_ATTENTION}.kv_a_layernorm", f"{_OURS}/key_value_norm"),
    *linear(f"{_ATTENTION}.kv_b_proj", f"{_OURS}/key_value_up"),
    *linear("model.layers.{i}.mlp.gate", "layers_{i}/moe/router"),
    *linear("model.layers.{i}.mlp.shared_experts.gate_proj", "layers_{i}/moe/shared/gate"),
    *linear("model.layers.{i}.mlp.shared_experts.up_proj", "layers_{i}/moe/shared/up"),
    *linear("model.layers.{i}.mlp.shared_experts.down_proj", "layers_{i}/moe/shared/down"),
    tensor(f"{_EXPERT}.gate_proj.weight", "layers_{i}/moe/gate/kernel", TRANSPOSED),
    tensor(f"{_EXPERT}.up_proj.weight", "layers_{i}/moe/up/kernel", TRANSPOSED),
    tensor(f"{_EXPERT}.down_proj.weight", "layers_{i}/moe/down/kernel", TRANSPOSED),
)


def _experts(routed: int, top_k: int | None, width: int, shared: int, scale: float) -> tuple:
    return (
        Field("moe.num_experts", "n_routed_experts", routed),
        Field("moe.top_k", "num_experts_per_tok", top_k),
        Field("moe.intermediate_size", "moe_intermediate_size", width),
        Field("moe.num_shared_experts", "n_shared_experts", shared, none=0),
        Field("moe.routed_scale", "routed_scaling_factor", scale),
    )


_COMMON = (*SIZES, *_LATENT, UNTIED, BIASES, ACTIVATION, STYLE, LatentRope())

DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    settings=(
        *_COMMON,
        *_experts(64, None, 1407, 2, 1.0),
        only("norm_topk_prob", False),
        Always({"moe.router": "softmax", "moe.renormalize": False}),
        LeadingDense(default=0),
        Groups(methods=("greedy", "group_limited_greedy")),
        only("moe_layer_freq", 1),
    ),
    tensors=_TENSORS,
)
DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    settings=(
        *_COMMON,
        *_experts(256, 8, 2048, 1, 2.5),
        Field("moe.renormalize", "norm_topk_prob", True),
        Always({"moe.router": "sigmoid", "moe.selection_bias": True}),
        LeadingDense(default=3),
        Groups(num_groups=8, top_groups=4),
        only("moe_layer_freq", 1),
        only("rope_interleave", True),
    ),
    tensors=(
        *_TENSORS,
        tensor(
            "model.layers.{i}.mlp.gate.e_score_correction_bias",
            "selection_bias/layers_{i}",
        ),
    ),
    # The layers that predict further tokens, behind the last: of the 671B models.
    ignored=(r"^model\.layers\.61\.",),
    constants=(("num_nextn_predict_layers", 0),),
)
