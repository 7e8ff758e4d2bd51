"""A small generated corpus, and the settings of the tokenizers that tests train on it."""

import random

from jgpt.config import TokenizerConfig

_PEOPLE = ["猫", "犬", "先生", "子ども", "旅人", "花子", "太郎", "おばあさん"]
_PLACES = ["東京", "山", "川", "海辺", "図書館", "学校", "古い町", "駅"]
_VERBS = [
    "歩いた",
    "走った",
    "待っていた",
    "本を読んだ",
    "歌を歌った",
    "眠った",
    "雪を見た",
    "カメラを直した",
]
_TAILS = ["", "「どうして」と聞いた。", "１２３円だった。", "　そして、夜になった。", " in the end"]


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        f"{draw.choice(_PEOPLE)}は{draw.choice(_PLACES)}で{draw.randint(1, 999)}回"
        f"{draw.choice(_VERBS)}。{draw.choice(_TAILS)}"
        for _ in range(count)
    ]


CONFIGS = {
    "unigram": TokenizerConfig(kind="unigram", vocab_size=400),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=400),
    "char": TokenizerConfig(kind="char", vocab_size=480),
    "identity": TokenizerConfig(kind="unigram", vocab_size=400, normalization="identity"),
    "no_bytes": TokenizerConfig(kind="char", vocab_size=80, byte_fallback=False),
    "word": TokenizerConfig(kind="word", vocab_size=200),
    "byte": TokenizerConfig(kind="byte"),
}
LOSSLESS = ("unigram", "bpe", "char", "identity", "byte")
LOSSY = ("no_bytes", "word")
