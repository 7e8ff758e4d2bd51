"""Real Japanese from a path: the Aozora Bunko corpus, 25 MB of JSONL, 10 minutes on two CPU cores.

    JGPT_DATA=/path/to/data python -m jgpt.main --config=configs/aozora_small.py

Reads `$JGPT_DATA/corpus/aozora.jsonl.gz`; any other corpus is one override away, as in
`--config.data.sources='text:/path/to/*.txt'`. Works are cut into pieces of 2,000 characters, so
that a batch mixes many of them.
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name = "aozora_small"
    c.data.sources = "jsonl:$JGPT_DATA/corpus/aozora.jsonl.gz"
    c.data.cleaning.max_characters = 2000
    c.tokenizer.vocab_size, c.tokenizer.train_megabytes = 8000, 5.0
    c.train.steps, c.train.eval_every, c.train.sample_every = 800, 200, 400
    c.checkpoint.every = 200
    c.sample.prompts = ("", "むかしむかし、", "私は")
    c.sample.temperature, c.sample.top_p = 0.8, 0.95
    return c
