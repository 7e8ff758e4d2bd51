"""Tokens per character before and after a tokenizer learns the pieces of Japanese ones.

python experiments/vocabulary_extension/run.py --base=FOLDER_OR_FILE --input=SOURCES
"""

import argparse
import pathlib
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jgpt import tokenizers
from jgpt.config import TokenizerConfig
from jgpt.tokenizers import extend
from jgpt.tokenizers.__main__ import documents


def rate(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> float:
    return sum(map(len, tokenizer.encode_batch(texts))) / sum(map(len, texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=pathlib.Path)
    parser.add_argument("--input", required=True)
    parser.add_argument("--megabytes", type=float, default=6.0)
    parser.add_argument("--kinds", default="bpe:4000,bpe:8000,bpe:16000,unigram:8000")
    options = parser.parse_args()
    texts, size = [], 0
    for text in documents(options.input, "text"):
        texts.append(text)
        size += len(text.encode())
        if size > options.megabytes * 1e6:
            break
    held_out = texts[9::10]
    seen = [text for i, text in enumerate(texts) if i % 10 != 9]
    print(f"{len(held_out)} documents held out, {sum(map(len, held_out)):,} characters")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        suffix = ".json" if options.base.suffix == ".json" else ".model"
        shutil.copy(options.base, folder / f"tokenizer{suffix}")
        base = tokenizers.load(folder)
        print(f"base: {base.vocab_size:,} ids, {rate(base, held_out):.3f} tokens per character")
        for spec in options.kinds.split(","):
            kind, size = spec.split(":")
            config = TokenizerConfig(kind=kind, vocab_size=int(size))
            japanese = tokenizers.train(config, seen, None)
            started = time.process_time()
            found = extend.extend(folder, extend.wanted_pieces(base, japanese))
            seconds = time.process_time() - started
            pieces = len(found.added)
            print(
                f"{spec}: {pieces:,} new ids, {len(found.left_out)} pieces left out, "
                f"{rate(japanese, held_out):.3f} alone, {rate(found.tokenizer, held_out):.3f} "
                f"extended, {seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
