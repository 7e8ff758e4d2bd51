"""GPT-2 small, 124 M parameters (Radford et al. 2019), on Japanese text from a path.

    python -m jgpt.main --config=configs/gpt2_small.py --config.data.sources='jsonl:$JGPT_DATA/corpus/*.jsonl.gz'

Needs an accelerator to be quick: 0.75 GFLOP per token forward and backward.
"""  # noqa: E501

from configs import default


def get_config():
    c = default.get_config()
    c.name = "gpt2_small"
    m = c.model
    m.num_layers, m.hidden_size, m.num_heads, m.intermediate_size = 12, 768, 12, 3072
    m.position, m.max_length, m.norm, m.ffn = "learned", 1024, "layernorm", "gelu"
    m.ffn_bias = m.attention_bias = m.attention_output_bias = m.tied_embeddings = True
    m.dtype = "bfloat16"
    c.tokenizer.vocab_size = 32000
    c.data.sequence_length, c.data.batch_size = 1024, 64
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 6e-4, 700
    c.train.steps, c.train.eval_every, c.checkpoint.every = 20000, 1000, 1000
    return c
