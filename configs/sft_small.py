"""Fine-tunes a small model on conversations: instructions of the embedded world, a few minutes.

    python -m jgpt.main --config=configs/dense_small.py
    python -m jgpt.main --config=configs/sft_small.py --config.init.workdir=runs/dense_small

Without `init.workdir` it starts from random weights. One token in ten is replayed from the
pretraining corpus. The end shows the share of held-out questions that are answered rightly. On
other conversations, and with more of them per row:

    JGPT_DATA=/path/to/data python -m jgpt.main --config=configs/sft_small.py \\
        --config.init.workdir=runs/dense_small --config.data.sequence_length=512 \\
        --config.data.sources='chat:$JGPT_DATA/sft/dolly_15k_ja.jsonl@9,microworld@1'
"""

from configs import default, dense_small


def get_config():
    c = dense_small.get_config()
    c.name, c.objective.name = "sft_small", "sft"
    c.model = default.get_config().model  # what it starts from says how the model is made
    c.data.sources = "microworld_chat:instruction@9,microworld@1"
    c.data.virtual_shards, c.data.pack_open_rows = 8, 16
    c.data.validation_fraction, c.data.validation_documents = 0.05, 128
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 2e-3, 20
    c.train.steps, c.train.eval_every, c.train.sample_every = 300, 100, 0
    c.checkpoint.every = 300
    c.sample.prompts, c.sample.final_samples, c.sample.max_new_tokens = ("",), 8, 96
    return c
