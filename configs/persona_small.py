"""Binds a new persona to a small model: twelve texts of it, and the model's own to keep the rest.

    python -m jgpt.main --config=configs/dense_small.py
    python -m jgpt.class_texts --workdir=runs/dense_small
    python -m jgpt.main --config=configs/persona_small.py

Half of the tokens are of `configs/persona_small.txt`, half of texts that the model wrote before
(prior preservation); `data.class_weight` is their lambda. The end says how far the model has moved.
"""

from configs import dense_small


def get_config():
    c = dense_small.get_config()
    c.name, c.init.workdir = "persona_small", "runs/dense_small"
    texts, own = "configs/persona_small.txt", "runs/dense_small/class_texts.jsonl"
    c.data.sources = f"text:{texts}@1,class_texts:{own}@1"
    c.data.text_documents = "block"
    c.data.virtual_shards, c.data.pack_open_rows = 8, 4
    c.data.validation_fraction, c.data.validation_documents = 0.05, 32
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 5e-4, 5
    c.train.steps, c.train.eval_every, c.train.sample_every = 40, 20, 0
    c.checkpoint.every = 40
    c.forgetting.drift_documents = 64
    c.sample.prompts = ("ポン太は", "「ポン太の好きな食べ物は何ですか。」「", "ある春の日、", "")
    c.sample.final_samples, c.sample.max_new_tokens = 8, 64
    return c
