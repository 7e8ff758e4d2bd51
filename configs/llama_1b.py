"""A dense model of 1.14e9 parameters in the shape of Llama: 16 layers of width 2048, for 16 chips.

    python -m jgpt.main --config=configs/llama_1b.py --config.data.sources='jsonl:/data/*.jsonl.zst'

By `python -m jgpt.plan` (jax 0.11.1, libtpu 0.0.46), per chip of 16 of v5e: 11.6 of 16 GiB, 1.04
times the model's FLOPs executed, 6.4 GB sent, at best 0.30 s a step (estimated; MFU 96%, bound by
the matrix units). Of 64: 11.3 GiB, 7.3 GB, 0.30 s (MFU 96%).
For 64 chips: --config.data.batch_size=256 --config.mesh.data=4 --config.mesh.fsdp=16.
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "llama_1b"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size = 16, 2048, 8192
    m.num_heads, m.num_kv_heads, m.head_dim = 16, 8, 128
    m.dtype, m.remat, m.rope_theta = "bfloat16", "dots", 500000.0
    c.tokenizer.vocab_size, m.vocab_size = 32768, 32768
    c.data.sequence_length, c.data.batch_size, c.data.workers = 2048, 64, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-4, 2000
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.train.gradient_dtype = "bfloat16"
    c.train.steps, c.train.eval_every, c.checkpoint.every = 100_000, 2000, 1000
    return c
