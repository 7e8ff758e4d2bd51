"""A mixture of 8 experts, 2 per token: 1.53e9 parameters, 16 layers of width 1024, for 16 chips.

    python -m jgpt.main --config=configs/moe_8x.py --config.data.sources='jsonl:/data/*.jsonl.zst'

By `python -m jgpt.plan` (jax 0.11.1, libtpu 0.0.46), per chip of 16 of v5e: 6.8 of 16 GiB, 1.22
times the model's FLOPs executed, 3.9 GB sent, at best 0.17 s a step (estimated, loads of experts
taken to be even; MFU 70%, bound by HBM). For 64 chips: --config.data.batch_size=256
--config.mesh.expert=8; 5.5 GiB, 4.6 GB sent (rows travel in padded blocks there), at best 0.15 s
(MFU 76%). For 256: --config.data.batch_size=1024 --config.mesh.expert=8 --config.mesh.data=4; the
same.
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "moe_8x"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size = 16, 1024, 3584
    m.num_heads, m.num_kv_heads, m.head_dim = 8, 4, 128
    m.ffn_pattern, m.moe.num_experts, m.moe.top_k = ("moe",), 8, 2
    m.dtype, m.remat, m.rope_theta = "bfloat16", "dots", 500000.0
    c.tokenizer.vocab_size, m.vocab_size = 32768, 32768
    c.data.sequence_length, c.data.batch_size, c.data.workers = 2048, 64, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-4, 2000
    c.mesh.data, c.mesh.expert, c.mesh.fsdp = 1, 4, -1
    c.train.gradient_dtype = "bfloat16"
    c.train.steps, c.train.eval_every, c.checkpoint.every = 100_000, 2000, 1000
    return c
