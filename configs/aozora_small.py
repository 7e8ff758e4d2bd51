"""Real Japanese from a path: the Aozora Bunko corpus, 25 MB of JSONL, 10 minutes on two CPU cores.

    JGPT_DATA=/path/to/data python -m jgpt.main --config=configs/aozora_small.py

Reads `$JGPT_DATA/corpus/aozora.jsonl.gz`; any other corpus is one override away, as in
`--config.data.sources='text:/path/to/*.txt'`.
"""

from configs import moe_small


def get_config():
    c = moe_small.get_config()
    c.name = "aozora_small"
    c.data.sources = "jsonl:$JGPT_DATA/corpus/aozora.jsonl.gz"
    c.data.validation_fraction, c.data.validation_documents = 0.03, 16
    c.tokenizer.vocab_size = 8000
    c.tokenizer.train_megabytes = 10.0
    c.train.steps = 1000
    c.sample.prompts = ("", "むかしむかし、", "私は")
    return c
