"""QLoRA of a 65B Llama on one chip: NF4 base, LoRA of rank 16 on all linear maps of its layers.

    JGPT_DATA=/path/to/data python -m jgpt.main --config=configs/qlora_65b.py \\
        --config.init.hf_folder=LLAMA_65B

Dettmers et al. 2023, with the optimizer's state in the host's memory. By `python -m jgpt.plan
--topology=v5p:1x1x1` (jax 0.10.2, libtpu 0.0.52): 38.4 GB (35.7 of 95 GiB), of which 34.5 are the
frozen model, and 1.6 GB on the host. `experiments/quantization/README.md` says where the rest goes.
"""

from configs import default


def get_config():
    c = default.get_config()
    c.name, c.objective.name = "qlora_65b", "sft"
    m = c.model
    m.num_layers, m.hidden_size, m.intermediate_size, m.num_heads = 80, 8192, 22016, 64
    m.max_length, m.vocab_size = 2048, 32000
    m.dtype, m.param_dtype, m.remat, m.scan_layers = "bfloat16", "bfloat16", "full", "on"
    c.tokenizer.vocab_size = 32000
    c.peft.method, c.peft.targets, c.peft.rank, c.peft.alpha = "lora", ("all-linear",), 16, 16.0
    c.peft.dropout, c.peft.quantize = 0.05, "nf4"
    c.data.sources = "chat:$JGPT_DATA/sft/dolly_15k_ja.jsonl"
    c.data.sequence_length, c.data.batch_size = 512, 1
    c.optimizer.learning_rate, c.optimizer.warmup_steps, c.optimizer.offload = 1e-4, 100, True
    c.train.steps, c.train.eval_every, c.checkpoint.every = 2000, 500, 500
    return c
