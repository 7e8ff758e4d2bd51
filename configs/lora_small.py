"""LoRA on every linear map of a small model, on instructions of the embedded world: a few minutes.

    python -m jgpt.main --config=configs/dense_small.py
    python -m jgpt.main --config=configs/lora_small.py --config.init.workdir=runs/dense_small

`sft_small` with 3.5% of the parameters trained; checkpoints hold these alone. Any other method by
`--config.peft.method=dora`, and on a base in four bits with `--config.peft.quantize=nf4`.
"""

from configs import sft_small


def get_config():
    c = sft_small.get_config()
    c.name = "lora_small"
    c.peft.method, c.peft.targets, c.peft.rank, c.peft.alpha = "lora", ("all-linear",), 8, 16.0
    c.optimizer.learning_rate = 5e-3
    return c
