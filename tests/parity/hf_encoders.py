"""Names of encoders' and encoder-decoders' weights in `transformers`; read by `params_like`."""

import numpy as np

BERT = {
    "embedding/table": "bert.embeddings.word_embeddings.weight",
    "position/table": "bert.embeddings.position_embeddings.weight",
    "token_type/table": "bert.embeddings.token_type_embeddings.weight",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "layers_{i}/attention/query": "bert.encoder.layer.{i}.attention.self.query",
    "layers_{i}/attention/key": "bert.encoder.layer.{i}.attention.self.key",
    "layers_{i}/attention/value": "bert.encoder.layer.{i}.attention.self.value",
    "layers_{i}/attention/output": "bert.encoder.layer.{i}.attention.output.dense",
    "layers_{i}/attention_post_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
    "layers_{i}/ffn/up": "bert.encoder.layer.{i}.intermediate.dense",
    "layers_{i}/ffn/down": "bert.encoder.layer.{i}.output.dense",
    "layers_{i}/ffn_post_norm": "bert.encoder.layer.{i}.output.LayerNorm",
    "head_transform/dense": "cls.predictions.transform.dense",
    "head_transform/norm": "cls.predictions.transform.LayerNorm",
    "head/bias": "cls.predictions.bias",
    "pooler/dense": "bert.pooler.dense",
    "classifier": "classifier",
}

DEBERTA = {
    **{ours: theirs.replace("bert.", "deberta.", 1) for ours, theirs in BERT.items()},
    "layers_{i}/attention/query": "deberta.encoder.layer.{i}.attention.self.query_proj",
    "layers_{i}/attention/key": "deberta.encoder.layer.{i}.attention.self.key_proj",
    "layers_{i}/attention/value": "deberta.encoder.layer.{i}.attention.self.value_proj",
    "relative_embedding/table": "deberta.encoder.rel_embeddings.weight",
    "relative_norm": "deberta.encoder.LayerNorm",
    "pooler/dense": "pooler.dense",
}

MODERNBERT = {
    "embedding/table": "model.embeddings.tok_embeddings.weight",
    "embedding_norm": "model.embeddings.norm",
    "layers_{i}/attention_norm": "model.layers.{i}.attn_norm",
    "layers_{i}/attention/output": "model.layers.{i}.attn.Wo",
    "layers_{i}/ffn_norm": "model.layers.{i}.mlp_norm",
    "layers_{i}/ffn/down": "model.layers.{i}.mlp.Wo",
    "final_norm": "model.final_norm",
    "head_transform/dense": "head.dense",
    "head_transform/norm": "head.norm",
    "head/bias": "decoder.bias",
    "pooler/dense": "head.dense",
    "pooler/norm": "head.norm",
    "classifier": "classifier",
}


def modernbert_maps(path, arrays):
    """Query, key and value are one map, and so are the halves of the gated layer."""
    layer, *rest = path.split("/")
    fused = {
        "query": ("attn.Wqkv", 3, 0),
        "key": ("attn.Wqkv", 3, 1),
        "value": ("attn.Wqkv", 3, 2),
        "gate": ("mlp.Wi", 2, 0),
        "up": ("mlp.Wi", 2, 1),
    }
    if not layer.startswith("layers_") or rest[1] not in fused:
        return None
    name, parts, index = fused[rest[1]]
    whole = arrays[f"model.layers.{layer.removeprefix('layers_')}.{name}.weight"]
    return np.split(whole, parts)[index].T


def _t5_stack(prefix, stack, ffn):
    block = f"{stack}.block.{{i}}.layer"
    attention = {"query": "q", "key": "k", "value": "v", "output": "o"}
    return {
        f"{prefix}relative_bias/table": f"{stack}.block.0.layer.0.SelfAttention"
        ".relative_attention_bias.weight",
        f"{prefix}final_norm": f"{stack}.final_layer_norm",
        f"{prefix}layers_{{i}}/attention_norm": f"{block}.0.layer_norm",
        **{
            f"{prefix}layers_{{i}}/attention/{ours}": f"{block}.0.SelfAttention.{theirs}"
            for ours, theirs in attention.items()
        },
        f"{prefix}layers_{{i}}/cross_attention_norm": f"{block}.1.layer_norm",
        **{
            f"{prefix}layers_{{i}}/cross_attention/{ours}": f"{block}.1.EncDecAttention.{theirs}"
            for ours, theirs in attention.items()
        },
        f"{prefix}layers_{{i}}/ffn_norm": f"{block}.{ffn}.layer_norm",
        f"{prefix}layers_{{i}}/ffn/gate": f"{block}.{ffn}.DenseReluDense.wi_0",
        f"{prefix}layers_{{i}}/ffn/up": f"{block}.{ffn}.DenseReluDense.wi_1",
        f"{prefix}layers_{{i}}/ffn/down": f"{block}.{ffn}.DenseReluDense.wo",
    }


T5 = {
    "embedding/table": "shared.weight",
    "head": "lm_head",
    **_t5_stack("", "decoder", 2),
    **_t5_stack("encoder/", "encoder", 1),
}
