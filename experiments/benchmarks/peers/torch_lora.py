"""PyTorch's side of `lora_step.py`: transformers' Llama with `peft`'s LoRA on it.

Started by the benchmark as `torch_lora.py CONTENDER SHAPE TARGETS DTYPE`; needs torch, transformers
and peft.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

import torch

from experiments.benchmarks.peers import problem
from experiments.benchmarks.peers.torch_train import Transformers, serve

PLAIN = "transformers + peft"
BFLOAT16_BASE = "transformers + peft, bfloat16 base"
COMPILED = "transformers + peft, torch.compile"


def adapted(shape: problem.Shape, targets: str, base_dtype: torch.dtype) -> Transformers:
    """The model whose frozen weights have `base_dtype`, with the shared float32 adapters."""
    import peft

    whole = Transformers(shape)
    settings = peft.LoraConfig(
        r=problem.RANK,
        lora_alpha=problem.ALPHA,
        target_modules=list(problem.TARGETS[targets]),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    whole.model = peft.get_peft_model(whole.model.to(base_dtype), settings)
    given = problem.adapters(shape, targets)
    trained = {n: p for n, p in whole.named_parameters() if p.requires_grad}
    assert len(trained) == len(given) and all(p.dtype == torch.float32 for p in trained.values())
    with torch.no_grad():
        for name, parameter in trained.items():
            ours = name.removeprefix("model.base_model.model.").replace(".default", "")
            parameter.copy_(torch.from_numpy(given[ours]))
    return whole


def main():
    contender, shape_name, targets, dtype = sys.argv[1:]
    shape = problem.SHAPES[shape_name]
    model = adapted(shape, targets, torch.bfloat16 if contender == BFLOAT16_BASE else torch.float32)
    run = torch.compile(model) if contender == COMPILED else model
    serve(run, [p for p in model.parameters() if p.requires_grad], shape, dtype)


if __name__ == "__main__":
    main()
