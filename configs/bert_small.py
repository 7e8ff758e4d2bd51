"""A Japanese BERT in the form of ModernBERT on the embedded corpus: 1 M parameters, 4 minutes.

    python -m jgpt.main --config=configs/bert_small.py

Trained to fill in hidden tokens, which both sides tell of. Its validation loss, near 1.8, is in
nats per hidden token and compares with no language model's.
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name, c.objective.name, c.objective.noise_density = "bert_small", "mlm", 0.25
    c.tokenizer.vocab_size = 1500
    m = c.model
    m.hidden_size, m.intermediate_size, m.init_std = 128, 320, 0.05
    m.ffn_pattern, m.moe.num_experts, m.num_kv_heads = ("dense",), 0, 0
    m.attention, m.attention_pattern = "bidirectional", ("global", "local", "local")
    m.window, m.rope_theta, m.local_rope_theta = 17, 160000.0, 10000.0
    m.norm, m.norm_bias, m.ffn, m.gelu_approximate = "layernorm", False, "geglu", False
    m.embedding_norm, m.first_attention_norm = True, False
    m.tied_embeddings = m.head_transform = m.head_bias = True
    c.data.batch_size, c.data.sequence_length = 32, 128
    c.optimizer.learning_rate = 4e-3
    c.train.steps, c.train.eval_every, c.checkpoint.every = 500, 250, 250
    c.train.sample_every, c.sample.final_samples = 0, 0
    return c
