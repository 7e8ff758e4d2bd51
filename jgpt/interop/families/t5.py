"""T5 version 1.1 (retrieva-jp): gated feed-forward layers, a head of its own."""

from jgpt.interop.description import Always, Choice, Family, Field, linear, norm, tensor
from jgpt.interop.encoders import Stacks

_ATTENTION = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))


def _attention(theirs: str, ours: str):
    return [row for a, b in _ATTENTION for row in linear(f"{theirs}.{a}", f"{ours}/{b}")]


def _stack(theirs: str, ours: str, ffn: int):
    """Rows of a stack whose feed-forward layer is sublayer number `ffn`."""
    block, layer = f"{theirs}.block.{{i}}.layer", f"{ours}layers_{{i}}"
    return (
        tensor(
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{ours}relative_bias/table",
        ),
        *norm(f"{block}.0.layer_norm", f"{layer}/attention_norm"),
        *_attention(f"{block}.0.SelfAttention", f"{layer}/attention"),
        *norm(f"{block}.1.layer_norm", f"{layer}/cross_attention_norm"),
        *_attention(f"{block}.1.EncDecAttention", f"{layer}/cross_attention"),
        *norm(f"{block}.{ffn}.layer_norm", f"{layer}/ffn_norm"),
        *linear(f"{block}.{ffn}.DenseReluDense.wi_0", f"{layer}/ffn/gate"),
        *linear(f"{block}.{ffn}.DenseReluDense.wi_1", f"{layer}/ffn/up"),
        *linear(f"{block}.{ffn}.DenseReluDense.wo", f"{layer}/ffn/down"),
        *norm(f"{theirs}.final_layer_norm", f"{ours}final_norm"),
    )


T5 = Family(
    name="t5",
    architecture="T5ForConditionalGeneration",
    settings=(
        Field("vocab_size", "vocab_size"),
        Field("hidden_size", "d_model"),
        Field("head_dim", "d_kv"),
        Field("intermediate_size", "d_ff"),
        Field("num_heads", "num_heads"),
        Field("max_length", "n_positions", 512),
        Field("relative_buckets", "relative_attention_num_buckets", 32),
        Field("relative_max_distance", "relative_attention_max_distance", 128),
        Field("norm_epsilon", "layer_norm_epsilon", 1e-6),
        Field("decoder_start_id", "decoder_start_token_id", 0),
        Choice(
            "feed_forward_proj",
            (
                ("gated-gelu", {"ffn": "geglu", "gelu_approximate": True}),
                ("gated-silu", {"ffn": "swiglu"}),
            ),
        ),
        Always({"position": "relative", "norm": "rmsnorm", "tied_embeddings": False}),
        Stacks(),
    ),
    tensors=(
        tensor("shared.weight", "embedding/table"),
        *_stack("encoder", "encoder/", 1),
        *_stack("decoder", "", 2),
        *linear("lm_head", "head"),
    ),
    ignored=(
        r"^(encoder|decoder)\.embed_tokens\.weight$",
        r"EncDecAttention\.relative_attention_bias\.weight$",
    ),
    constants=(("is_encoder_decoder", True),),
)
