"""Random `transformers` models, and their weights as parameter trees, written out name by name."""

import re


def random_llama(folder, noise, **sizes):
    """A small Llama in `folder`, every weight of it random."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        **sizes,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


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
