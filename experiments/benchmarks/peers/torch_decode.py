"""transformers' side of `decode.py`: `generate` with its cache, greedy, float32.

Started by the benchmark as `torch_decode.py SHAPE ROWS THREADS`; needs torch and transformers.
"""

import os
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.benchmarks import decode
from experiments.benchmarks.peers import problem


def make_model(shape: problem.Shape) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=decode.PROMPT + decode.NEW,
        rms_norm_eps=problem.NORM_EPSILON,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": problem.ROPE_THETA},
    )
    model = LlamaForCausalLM(config).eval()
    tensors = {k: torch.from_numpy(v) for k, v in problem.weights(shape).items()}
    model.load_state_dict(tensors, strict=True)
    return model


@torch.no_grad()
def chunks(model: LlamaForCausalLM, prompts: np.ndarray) -> Iterator[np.ndarray]:
    """Texts' next tokens [rows, CHUNK], again and again from the prompts; prefill in the first."""
    fixed = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    fixed |= {"max_new_tokens": decode.CHUNK, "return_dict_in_generate": True}
    while True:
        ids, cache = torch.from_numpy(prompts.astype(np.int64)), None
        for _ in range(decode.NEW // decode.CHUNK):
            found = model.generate(ids, past_key_values=cache, **fixed)
            ids, cache = found.sequences, found.past_key_values
            yield ids[:, -decode.CHUNK :].numpy()


def main() -> None:
    name, rows, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    shape = problem.SHAPES[name]
    decode.serve(chunks(make_model(shape), decode.prompts(shape, rows)))


if __name__ == "__main__":
    main()
