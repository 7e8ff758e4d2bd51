"""The main job: a mixture-of-experts Japanese GPT, from text to samples, on a laptop.

    python -m jgpt.main --config=configs/moe_small.py

6.7 M parameters, 3.2 M per token (4 layers of width 192, 8 experts of which 2 per token), trained
on 560 steps of 2,048 tokens (1.15 M in all) of the embedded corpus: under five minutes on two CPU
cores, of which four are steps. It ends with a validation loss near 1.0 bits per character, far
below the n-gram models in its report, and 50 samples: eight openings of stories, and free starts.
"""

from configs import default

OPENINGS = """
ある春の日、 土曜日の夕方、 十一月のある木曜日、 ある夏の日、
金曜日の昼、 七月の終わり、 ある秋の午後、 水曜日の朝、
"""


def get_config():
    c = default.get_config()
    c.name = "moe_small"
    c.tokenizer.vocab_size, c.tokenizer.train_megabytes = 4000, 2.0
    c.tokenizer.split_scripts = False  # 2.4 characters per token, else 1.7
    m = c.model
    m.num_layers, m.hidden_size, m.num_heads, m.num_kv_heads = 4, 192, 4, 2
    m.ffn_pattern, m.moe.num_experts, m.moe.top_k = ("moe",), 8, 2
    m.moe.intermediate_size = 256
    c.data.batch_size, c.data.sequence_length = 8, 256
    c.data.validation_fraction, c.data.validation_documents = 0.02, 256
    c.optimizer.learning_rate, c.optimizer.warmup_steps = 3e-3, 50
    c.optimizer.final_fraction = 0.03
    c.train.steps, c.train.eval_every, c.train.sample_every = 560, 280, 280
    c.checkpoint.every = 280
    c.sample.temperature, c.sample.top_p, c.sample.max_new_tokens = 0.4, 0.9, 160
    c.sample.prompts = (*OPENINGS.split(), "", "")
    return c
