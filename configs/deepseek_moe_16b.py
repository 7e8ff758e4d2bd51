"""DeepSeekMoE 16B (Dai et al. 2024): 64 narrow experts, 6 per token, and 2 shared; 16.4e9 parameters.

    python -m jgpt.main --config=configs/deepseek_moe_16b.py --config.data.sources='jsonl:/data/*.jsonl.zst'

By `python -m jgpt.plan --topology=v6e-64` (jax 0.11.1, libtpu 0.0.46), per chip of 64 of v6e: 16.5 of
32 GiB, 67 GB sent (47.6 of it rows to experts): 0.74 s on the links at their peak. 1.58 times the
model's FLOPs executed, those for rows without a token included. Planned before HBM bytes of slices in
nested fusions were counted as slices, so no time of a step is given.
"""  # noqa: E501

from configs import default


def get_config():
    c = default.get_config()
    c.name = "deepseek_moe_16b"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size = 28, 2048, 10944
    m.num_heads, m.num_leading_dense, m.ffn_pattern = 16, 1, ("moe",)
    m.moe.num_experts, m.moe.top_k, m.moe.num_shared_experts = 64, 6, 2
    m.moe.intermediate_size, m.moe.renormalize = 1408, False
    m.dtype, m.remat, m.vocab_size = "bfloat16", "full", 102400
    c.tokenizer.vocab_size = 100000
    c.data.sequence_length, c.data.batch_size, c.data.workers = 4096, 256, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 4.2e-4, 2000
    c.mesh.data, c.mesh.expert, c.mesh.fsdp = 1, 8, -1
    c.train.gradient_dtype = "bfloat16"
    c.train.steps, c.train.eval_every, c.checkpoint.every = 100_000, 2000, 500
    return c
