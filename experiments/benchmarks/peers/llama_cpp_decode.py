"""llama.cpp's side of `decode.py`: all rows in one call per token, greedy, float32 throughout.

Started by the benchmark as `llama_cpp_decode.py SHAPE ROWS THREADS`; needs llama-cpp-python and
gguf. The model's file is written to a temporary folder, without a tokenizer.
"""

import ctypes
import pathlib
import sys
import tempfile
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

import gguf
import llama_cpp
import numpy as np

from experiments.benchmarks import decode
from experiments.benchmarks.peers import problem

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""From Hugging Face's names to GGUF's, without the layer's number in front."""


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query's or key's map in llama.cpp's order for rotation: halves side by side."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def write_model(path: pathlib.Path, shape: problem.Shape) -> None:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(decode.PROMPT + decode.NEW)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(problem.NORM_EPSILON)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(problem.ROPE_THETA)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("none")
    for name, tensor in problem.weights(shape).items():
        block, name = "", name.removesuffix(".weight")
        if name.startswith("model.layers."):
            number, name = name.removeprefix("model.layers.").split(".", 1)
            block = f"blk.{number}."
        if name in ("self_attn.q_proj", "self_attn.k_proj"):
            tensor = interleaved(tensor, tensor.shape[0] // shape.head_dim)
        writer.add_tensor(f"{block}{NAMES[name]}.weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """A loaded model with room for `rows` texts, each a sequence of its own in the cache."""

    def __init__(self, path: pathlib.Path, shape: problem.Shape, rows: int, threads: int):
        self.vocabulary = shape.vocab
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        options = llama_cpp.llama_context_default_params()
        options.n_seq_max, options.kv_unified = rows, False
        options.n_ctx = rows * -(-(decode.PROMPT + decode.NEW) // 256) * 256
        options.n_batch = max(512, rows * decode.PROMPT)
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.model or not self.context:
            raise RuntimeError("llama.cpp did not load the model")
        self.batch = llama_cpp.llama_batch_init(options.n_batch, 0, 1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def next_tokens(self, tokens: np.ndarray, first: int) -> np.ndarray:
        """[rows, n] tokens at positions from `first` to the likeliest after each row's last."""
        rows, count = tokens.shape
        for i, (row, position) in enumerate(np.ndindex(rows, count)):
            self.batch.token[i] = int(tokens[row, position])
            self.batch.pos[i], self.batch.n_seq_id[i] = first + position, 1
            self.batch.seq_id[i][0], self.batch.logits[i] = row, position == count - 1
        self.batch.n_tokens = tokens.size
        if llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError("llama.cpp did not decode the batch")
        return np.array([[self._likeliest((row + 1) * count - 1)] for row in range(rows)])

    def _likeliest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, place)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


def chunks(decoder: Decoder, prompts: np.ndarray) -> Iterator[np.ndarray]:
    """Texts' next tokens [rows, CHUNK], again and again from the prompts; prefill in the first."""
    while True:
        decoder.clear()
        token = decoder.next_tokens(prompts, 0)
        for start in range(0, decode.NEW, decode.CHUNK):
            found = []
            for i in range(start, start + decode.CHUNK):
                found.append(token)
                token = decoder.next_tokens(token, decode.PROMPT + i)
            yield np.concatenate(found, axis=1)


def main() -> None:
    name, rows, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    shape = problem.SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.gguf"
        write_model(path, shape)
        decoder = Decoder(path, shape, rows, threads)
        decode.serve(chunks(decoder, decode.prompts(shape, rows)))


if __name__ == "__main__":
    main()
