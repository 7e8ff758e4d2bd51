"""LoRA+: B learns faster than A (Hayou, Ghosh and Yu 2024, section 4).

    y = W x + s B A x,    learning rate of B = ratio x that of A,    ratio = 16

With one rate for both, updates of B are too small by the order of the width for A and B to learn
features alike; the paper's theory asks for a ratio that grows with the width, and its experiments
settle on 2^4 or so. It is B's rate that is raised. Nothing but the optimizer differs from LoRA:
`peft.rate_ratio` is the ratio, for every method that has a B (`rates`).

Common code also multiplies the rate of every one-dimensional parameter, and gives embeddings a rate
of their own (1e-6). Here the ratio is that of `lora_b` and its bias, wherever they are.
"""

import dataclasses

from jgpt.peft.lora import LORA

LORA_PLUS = dataclasses.replace(LORA, defaults={"rate_ratio": 16.0})
