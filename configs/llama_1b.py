"""The shape of Llama 3.2 1B: 16 layers of width 2048, 1.2e9 parameters, grouped-query attention.

    python -m jgpt.main --config=configs/llama_1b.py --config.data.sources='jsonl:/data/*.jsonl.zst'

For an accelerator: weights, gradients and AdamW take 20 GB, cut over `mesh.fsdp` devices.
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "llama_1b"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size = 16, 2048, 8192
    m.num_heads, m.num_kv_heads, m.head_dim, m.max_length = 32, 8, 64, 8192
    m.rope_theta, m.tied_embeddings = 500000.0, True
    m.dtype, m.remat = "bfloat16", "full"
    c.tokenizer.vocab_size = 50000
    c.data.sequence_length, c.data.batch_size, c.data.workers = 2048, 256, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-4, 2000
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.train.steps, c.train.eval_every, c.checkpoint.every = 100_000, 2000, 1000
    return c
