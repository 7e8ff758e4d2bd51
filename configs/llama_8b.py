"""Llama 3 8B (Dubey et al. 2024): 32 layers of width 4096, 8.03e9 parameters, for 32 chips of v5p.

    python -m jgpt.main --config=configs/llama_8b.py --config.data.sources='jsonl:/data/*.jsonl.zst'

By `python -m jgpt.plan --topology=v5p-64` (32 chips; jax 0.11.1, libtpu 0.0.46), per chip: 33.3 of
95 GiB, 1.04 times the model's FLOPs executed, 44.7 GB sent, at best 0.95 s a step (estimated; MFU
96%, bound by the matrix units).
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "llama_8b"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size = 32, 4096, 14336
    m.num_heads, m.num_kv_heads, m.max_length, m.rope_theta = 32, 8, 8192, 500000.0
    m.dtype, m.remat, m.vocab_size = "bfloat16", "dots", 128256
    c.tokenizer.vocab_size = 128000
    c.data.sequence_length, c.data.batch_size, c.data.workers = 8192, 32, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-4, 2000
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.train.gradient_dtype = "bfloat16"
    c.train.steps, c.train.eval_every, c.checkpoint.every = 100_000, 2000, 500
    return c
