"""GPT-2's older files `vocab.json` and `merges.txt`, read as the `tokenizer.json` they make.

Other families have the same files with other rules for cutting text into words, and come with a
`tokenizer.json`; only GPT-2's own rules are applied here.
"""

import json
from pathlib import Path
from typing import Any

from jgpt.config import ConfigError
from jgpt.tokenizers import folder as folder_settings
from jgpt.tokenizers import huggingface

VOCABULARY_FILE = "vocab.json"
_MERGES_FILE = "merges.txt"
_CLASSES = ("", "GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizer", "GPTNeoXTokenizerFast")


def load(path: Path) -> huggingface.HuggingFaceTokenizer:
    """Reads a `vocab.json` and the files beside it.

    Raises:
        ConfigError: it is of another family, or a file is missing or broken.
    """
    folder = path.parent
    settings = folder_settings.read(folder)
    if settings.class_name not in _CLASSES:
        raise ConfigError(
            f"tokenizer.path: {str(folder)!r} is a {settings.class_name} without its "
            "tokenizer.json, which says how it cuts words; save it again with transformers"
        )
    vocabulary = folder_settings.read_json(path)
    if not (folder / _MERGES_FILE).is_file():
        raise ConfigError(f"tokenizer.path: {str(path)!r} has no {_MERGES_FILE} beside it")
    lines = (folder / _MERGES_FILE).read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise ConfigError(f"tokenizer.path: {_MERGES_FILE} beside {str(path)!r} is damaged")
    added = {token.content: token.id for token in settings.added}
    added |= {name: vocabulary[name] for name in settings.special_names if name in vocabulary}
    special = {token.content for token in settings.added if token.special} | settings.special_names
    content = json.dumps(_tokenizer_json(vocabulary, merges, added, special), ensure_ascii=False)
    return huggingface.from_content(content.encode(), path)


def _tokenizer_json(
    vocabulary: dict[str, int], merges: list[list[str]], added: dict[str, int], special: set[str]
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": name, "special": name in special, **flags}
            for name, token in sorted(added.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
