"""Mixtral 8x7B (Jiang et al. 2024): 32 layers, 8 experts of which 2 per token, 46.7e9 parameters.

python -m jgpt.main --config=configs/mixtral_8x7b.py --config.data.sources='jsonl:/data/*.jsonl.zst'
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
