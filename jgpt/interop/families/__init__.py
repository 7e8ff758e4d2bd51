"""The families that can be read and written, one small file of data each."""

from jgpt.interop.description import Family
from jgpt.interop.families.bert import BERT
from jgpt.interop.families.deberta import DEBERTA_V2
from jgpt.interop.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from jgpt.interop.families.gemma import GEMMA2, GEMMA3
from jgpt.interop.families.gpt2 import GPT2
from jgpt.interop.families.gpt_neox import GPT_NEOX
from jgpt.interop.families.llama import LLAMA
from jgpt.interop.families.mistral import MISTRAL, MIXTRAL
from jgpt.interop.families.modernbert import MODERNBERT
from jgpt.interop.families.phi3 import PHI3
from jgpt.interop.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from jgpt.interop.families.t5 import T5

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        MIXTRAL,
        QWEN3_MOE,
        GEMMA2,
        GEMMA3,
        GPT2,
        GPT_NEOX,
        PHI3,
        DEEPSEEK_V2,
        DEEPSEEK_V3,
        BERT,
        MODERNBERT,
        DEBERTA_V2,
        T5,
    )
}
"""By `model_type`; a model is exported as the first one that can express it."""
