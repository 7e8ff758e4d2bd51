"""Mixtral 8x7B (Jiang et al. 2024): 32 layers, 8 experts of which 2 per token, 46.7e9 parameters.

python -m jgpt.main --config=configs/mixtral_8x7b.py --config.data.sources='jsonl:/data/*.jsonl.zst'

By `python -m jgpt.plan --topology=v5p-128` (64 chips; jax 0.11.1, libtpu 0.0.46), per chip, fsdp 8
x expert 8: 32.3 of 95 GiB, 1.26 times the model's FLOPs executed (a layer computed again), 79.1 GB
sent, at best 3.58 s a step (estimated, loads taken to be even; MFU 80%, bound by the matrix units).

By `python -m jgpt.plan --topology=v6e-256` (jax 0.11.1, libtpu 0.0.46), per chip of 256 of v6e,
fsdp 32 x expert 8: 10.2 of 32 GiB, 1.84 times the model's FLOPs executed (a layer is computed
again, and rows without a token are counted: buffers have 1.56 times the rows of an even load),
66.9 GB sent, at best 0.65 s a step (estimated; MFU 54%, bound by the matrix units). Of what was
sent 25.6 GB were all-reduces; since then gradients of experts' matrices go by reduce-scatters,
which send half.
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "mixtral_8x7b"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size = 32, 4096, 14336
    m.num_heads, m.num_kv_heads, m.max_length, m.rope_theta = 32, 8, 32768, 1e6
    m.ffn_pattern, m.moe.num_experts, m.moe.top_k = ("moe",), 8, 2
    m.dtype, m.remat = "bfloat16", "full"
    c.tokenizer.vocab_size = 32000
    c.data.sequence_length, c.data.batch_size, c.data.workers = 4096, 256, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-4, 2000
    c.mesh.data, c.mesh.expert, c.mesh.fsdp = 1, 8, -1
    c.train.gradient_dtype = "bfloat16"
    c.train.steps, c.train.eval_every, c.checkpoint.every = 100_000, 2000, 500
    return c
