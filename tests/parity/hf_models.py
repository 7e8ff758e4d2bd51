"""Weights of random `transformers` models as parameter trees, written out name by name."""

import re

import numpy as np

LLAMA = {
    "embedding/table": "model.embed_tokens.weight",
    "layers_{i}/attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "layers_{i}/attention/query": "model.layers.{i}.self_attn.q_proj",
    "layers_{i}/attention/key": "model.layers.{i}.self_attn.k_proj",
    "layers_{i}/attention/value": "model.layers.{i}.self_attn.v_proj",
    "layers_{i}/attention/output": "model.layers.{i}.self_attn.o_proj",
    "layers_{i}/attention/query_norm/scale": "model.layers.{i}.self_attn.q_norm.weight",
    "layers_{i}/attention/key_norm/scale": "model.layers.{i}.self_attn.k_norm.weight",
    "layers_{i}/ffn_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/ffn/gate": "model.layers.{i}.mlp.gate_proj",
    "layers_{i}/ffn/up": "model.layers.{i}.mlp.up_proj",
    "layers_{i}/ffn/down": "model.layers.{i}.mlp.down_proj",
    "final_norm/scale": "model.norm.weight",
    "head": "lm_head",
}
"""Llama, Mistral, Qwen2, Qwen3. A name without its last part is a linear map."""

MIXTRAL = LLAMA | {"layers_{i}/moe/router": "model.layers.{i}.mlp.gate"}
"""Experts are fused in memory; `mixtral_params` takes them apart."""

GEMMA2 = LLAMA | {
    "layers_{i}/attention_post_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "layers_{i}/ffn_norm/scale": "model.layers.{i}.pre_feedforward_layernorm.weight",
    "layers_{i}/ffn_post_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
}

GPT_NEOX = {
    "embedding/table": "gpt_neox.embed_in.weight",
    "layers_{i}/attention_norm": "gpt_neox.layers.{i}.input_layernorm",
    "layers_{i}/ffn_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
    "layers_{i}/attention/output": "gpt_neox.layers.{i}.attention.dense",
    "layers_{i}/ffn/up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "layers_{i}/ffn/down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "lm_head",
}

GPT2 = {
    "embedding/table": "transformer.wte.weight",
    "position/table": "transformer.wpe.weight",
    "layers_{i}/attention_norm": "transformer.h.{i}.ln_1",
    "layers_{i}/ffn_norm": "transformer.h.{i}.ln_2",
    "layers_{i}/attention/output": "transformer.h.{i}.attn.c_proj",
    "layers_{i}/ffn/up": "transformer.h.{i}.mlp.c_fc",
    "layers_{i}/ffn/down": "transformer.h.{i}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
}


def tensors(model, gradients=False):
    """numpy arrays of a model's parameters, or of their gradients, by name."""
    return {
        name: (x.grad if gradients else x).detach().numpy() for name, x in model.named_parameters()
    }


def params_like(template, arrays, names, fused):
    """A tree shaped as `template`, filled from `arrays`.

    Args:
        template: {path: abstract leaf} of our tree, by `/`-joined path.
        arrays: theirs, by name.
        names: our path (or that of a linear map or norm) -> their name.
        fused: (path, arrays) -> array for what has no one name there; None otherwise.
    """
    return {path: _find(path, leaf, arrays, names, fused) for path, leaf in template.items()}


def _find(path, leaf, arrays, names, fused):
    found = fused(path, arrays) if fused else None
    if found is None:
        found = _named(path, arrays, names)
    if found.shape != tuple(leaf.shape):
        raise ValueError(f"{path}: {found.shape} there, {tuple(leaf.shape)} here")
    return found


def _named(path, arrays, names):
    found = re.search(r"(?<=layers_)\d+", path)
    index = found.group() if found else ""
    generic = path.replace(f"layers_{index}/", "layers_{i}/")
    if generic in names:
        return arrays[names[generic].format(i=index)]
    parent, last = generic.rsplit("/", 1)
    suffix = {"kernel": "weight", "scale": "weight", "bias": "bias"}[last]
    found = arrays[f"{names[parent]}.{suffix}".format(i=index)]
    return found.T if last == "kernel" else found


def mixtral_experts(path, arrays):
    """Our [E, D, F] and [E, F, D] kernels from the fused tensors (out, in) per expert."""
    layer, *rest = path.split("/")
    if rest[:1] != ["moe"] or rest[1] == "router":
        return None
    prefix = f"model.layers.{layer.removeprefix('layers_')}.mlp.experts"
    if rest[1] == "down":
        return arrays[f"{prefix}.down_proj"].transpose(0, 2, 1)
    gate, up = np.split(arrays[f"{prefix}.gate_up_proj"], 2, axis=1)
    return (gate if rest[1] == "gate" else up).transpose(0, 2, 1)


def neox_query_key_value(num_heads):
    """NeoX stores one map whose rows are ordered head, then query/key/value, then width."""

    def find(path, arrays):
        layer, *rest = path.split("/")
        if rest[:1] != ["attention"] or rest[1] == "output":
            return None
        which = ("query", "key", "value").index(rest[1])
        prefix = f"gpt_neox.layers.{layer.removeprefix('layers_')}.attention.query_key_value"
        suffix = "weight" if rest[2] == "kernel" else "bias"
        whole = arrays[f"{prefix}.{suffix}"]
        part = whole.reshape(num_heads, 3, -1, *whole.shape[1:])[:, which]
        part = part.reshape(-1, *whole.shape[1:])
        return part.T if rest[2] == "kernel" else part

    return find


def gpt2_maps(path, arrays):
    """GPT-2 stores its maps (in, out), query, key and value side by side."""
    layer, *rest = path.split("/")
    if not layer.startswith("layers_") or rest[0] not in ("attention", "ffn"):
        return None
    prefix = f"transformer.h.{layer.removeprefix('layers_')}"
    suffix = "weight" if rest[2] == "kernel" else "bias"
    if rest[1] in ("query", "key", "value"):
        whole = arrays[f"{prefix}.attn.c_attn.{suffix}"]
        return np.split(whole, 3, axis=-1)[("query", "key", "value").index(rest[1])]
    name = {"output": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}[rest[1]]
    return arrays[f"{prefix}.{name}.{suffix}"]
