"""Puts a head on a decoder and trains both on labelled texts of the embedded world: minutes.

    python -m jgpt.main --config=configs/dense_small.py
    python -m jgpt.main --config=configs/classify_small.py --config.init.workdir=runs/dense_small

Six kinds of text are told apart by two sentences. Without `init.workdir` it starts from random
weights. Numbers are predicted where there are no classes, as the similarity of the pairs of JSTS:

    JGPT_DATA=/path/to/data python -m jgpt.main --config=configs/classify_small.py \\
        --config.init.workdir=runs/dense_small --config.objective.name=regression \\
        --config.model.num_labels=1 --config.data.labels.classes='()' \\
        --config.data.labels.text=sentence1 --config.data.labels.pair=sentence2 \\
        --config.data.sources='labels:$JGPT_DATA/eval/jsts/train.jsonl'
"""

from configs import dense_small


def get_config():
    c = dense_small.get_config()
    c.name, c.objective.name = "classify_small", "classification"
    c.model.pooling, c.model.num_labels = "last", 6
    c.data.sources, c.data.packing = "microworld_labels:kind", "none"
    c.data.labels.classes = ("story", "dialogue", "encyclopedia", "qa", "arithmetic", "instruction")
    c.data.batch_size, c.data.sequence_length, c.data.virtual_shards = 16, 96, 8
    c.data.validation_documents = 512
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 5e-4, 20
    c.train.steps, c.train.eval_every, c.train.sample_every = 150, 50, 0
    c.checkpoint.every, c.sample.final_samples = 150, 0
    return c
