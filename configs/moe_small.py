"""The main job: a mixture-of-experts Japanese GPT, from text to samples, on a laptop.

python -m jgpt.main --config=configs/moe_small.py
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "moe_small"
    c.tokenizer.vocab_size = 4000
    c.tokenizer.train_megabytes = 4.0
    c.model.num_layers = 4
    c.model.hidden_size = 192
    c.model.num_heads = 4
    c.model.num_kv_heads = 2
    c.model.ffn_pattern = ("moe",)
    c.model.moe.num_experts = 8
    c.model.moe.top_k = 2
    c.model.moe.intermediate_size = 256
    c.optimizer.learning_rate = 2e-3
    c.train.steps = 500
    return c
