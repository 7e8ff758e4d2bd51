"""A Japanese T5 (version 1.1) on the embedded corpus: 1.7 M parameters, 5 minutes on two CPU cores.

    python -m jgpt.main --config=configs/t5_small.py

Trained to write what was cut out of a text: the encoder reads it with a sentinel in place of every
hidden span, the decoder writes the spans. Its validation loss, near 3.8 nats per target token, is
still falling at the end. `docs/encoders.md` shows how to fill in holes with it.
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name, c.objective.name, c.objective.noise_density = "t5_small", "span_corruption", 0.25
    c.objective.num_sentinels, c.tokenizer.vocab_size = 32, 1500
    m = c.model
    m.num_layers, m.encoder_layers, m.hidden_size, m.intermediate_size = 3, 3, 128, 320
    m.ffn_pattern, m.moe.num_experts, m.num_kv_heads = ("dense",), 0, 0
    m.position, m.attention_scale = "relative", (m.hidden_size / m.num_heads) ** 0.5
    m.ffn, m.norm_epsilon, m.init_std = "geglu", 1e-6, 0.05
    c.data.batch_size, c.data.sequence_length = 32, 128
    c.optimizer.learning_rate = 4e-3
    c.train.steps, c.train.eval_every, c.checkpoint.every = 500, 250, 250
    c.train.sample_every, c.sample.final_samples = 0, 0
    return c
