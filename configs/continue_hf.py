"""Goes on training a Hugging Face model on Japanese text; model and tokenizer are the folder's.

    python -m jgpt.main --config=configs/continue_hf.py --config.init.hf_folder=DIR \\
        --config.data.sources='jsonl:/data/*.jsonl.zst' --workdir=runs/continued

Then `python -m jgpt.convert to_hf --workdir=runs/continued --folder=OUT`. For an accelerator:
weights in float32, computed in bfloat16, cut over all devices; a lower learning rate than from
scratch.
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name = "continue_hf"
    c.model.dtype, c.model.remat = "bfloat16", "full"
    c.data.sequence_length, c.data.batch_size, c.data.workers = 2048, 64, 4
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 2e-5, 200
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.train.steps, c.train.eval_every, c.checkpoint.every = 5000, 500, 500
    return c
