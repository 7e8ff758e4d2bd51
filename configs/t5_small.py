"""A Japanese T5 (version 1.1) on the embedded corpus: 4 M parameters, 3 minutes on two CPU cores.

    python -m jgpt.main --config=configs/t5_small.py

Trained to write what was cut out of a text: the encoder reads it with a sentinel in place of every
hidden span, the decoder writes the spans. `docs/encoders.md` shows how to fill in holes with it.
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name, c.objective.name = "t5_small", "span_corruption"
    m = c.model
    m.ffn_pattern, m.moe.num_experts, m.num_kv_heads = ("dense",), 0, 0
    m.num_layers, m.encoder_layers = 3, 3
    m.position, m.attention_scale = "relative", (m.hidden_size / m.num_heads) ** 0.5
    m.ffn, m.intermediate_size, m.norm_epsilon = "geglu", 512, 1e-6
    c.objective.num_sentinels = 32
    c.optimizer.learning_rate = 2e-3
    c.train.steps, c.train.sample_every, c.sample.final_samples = 500, 0, 0
    return c
