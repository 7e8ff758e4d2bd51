"""The families that can be read and written, one small file of data each."""

from jgpt.interop.description import Family
from jgpt.interop.families.llama import LLAMA

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA,
    )
}  # fmt: skip
"""By `model_type`; a model is exported as the first one that can express it."""
