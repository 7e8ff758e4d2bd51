"""A dense Japanese GPT on the embedded corpus: 3.7 M parameters, 4 minutes on two CPU cores.

    python -m jgpt.main --config=configs/dense_small.py

The dense counterpart of `moe_small`: the same width, depth, data and steps, and about the same
compute per token (one feed-forward layer as wide as the experts that a token uses there).
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name = "dense_small"
    c.model.ffn_pattern = ("dense",)
    c.model.intermediate_size = 2 * c.model.moe.intermediate_size
    c.model.moe.num_experts = 0
    return c
