"""A Japanese BERT on the embedded corpus: 2.0 M parameters, 2 minutes on two CPU cores.

    python -m jgpt.main --config=configs/bert_small.py

Trained to fill in hidden tokens (15 % of them), which both sides tell of: its validation loss, near
0.0 nats per hidden token, is no figure of a language model and compares with no such loss.
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name, c.objective.name = "bert_small", "mlm"
    m = c.model
    m.ffn_pattern, m.moe.num_experts, m.num_kv_heads = ("dense",), 0, 0
    m.attention, m.position, m.max_length = "bidirectional", "learned", 512
    m.norm, m.norm_placement, m.norm_epsilon = "layernorm", "post", 1e-12
    m.ffn, m.intermediate_size, m.gelu_approximate = "gelu", 768, False
    m.attention_bias = m.attention_output_bias = m.ffn_bias = True
    m.token_types, m.embedding_norm = 2, True
    m.tied_embeddings = m.head_transform = m.head_bias = True
    m.pooling = "mean"
    c.optimizer.learning_rate = 1e-3
    c.train.steps, c.train.sample_every, c.sample.final_samples = 400, 0, 0
    return c
