"""Adapters as peft saves them: `adapter_model.safetensors` and `adapter_config.json`.

| ours | theirs |
| --- | --- |
| lora, rslora, lora_plus, lora_fa | LORA |
| pissa, olora, loftq | LORA of twice the rank, for the original model |
| dora | LORA with `use_dora` |
| adalora | ADALORA, rows that were cut left out (`rank_pattern`) |
| vera, ia3 | VERA with its projections, IA3 |
| prefix_tuning, p_tuning_v2 | PREFIX_TUNING, computed |
| prompt_tuning, p_tuning | PROMPT_TUNING, computed |

Names of modules come from the tables of `jgpt.interop.families`. What `peft.train_also` trained is
saved whole (`modules_to_save`). The serving form, for vLLM, is plain LoRA of one rank whose alpha
is that rank: no patterns, nothing else.
"""

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PREFIX, SHARED_PREFIX = "base_model.model.", "base_model."
PROJECTIONS = {"vera_A": "projection_a", "vera_B": "projection_b"}
"""Of shared tensors: their name and ours."""
