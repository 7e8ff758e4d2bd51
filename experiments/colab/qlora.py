# %% [markdown]
# # QLoRA: fine-tuning on four bits per weight
#
# In LoRA the model itself is frozen, so nothing but memory is lost by keeping it exact. *QLoRA*
# (Dettmers et al. 2023) keeps it in NF4: each weight is one of 16 levels times the scale of its
# block of 64. Adapters on top are trained as always, and make up for what rounding lost.
#
# We look at the levels, count the bytes, train on the packed model, let it answer, and unpack it
# again. All cells together take about four minutes on two CPU cores; a GPU or TPU runtime is used
# as it is found. The cell below installs jgpt where it is not there yet. Put the address of your
# clone into it.

# %%
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/OWNER/jgpt"  # or the folder of a clone
if importlib.util.find_spec("jgpt") is None:
    has_tpu = Path("/dev/vfio").exists() or Path("/dev/accel0").exists()
    extra = "[gpu]" if shutil.which("nvidia-smi") else "[tpu]" if has_tpu else ""
    clone = Path("jgpt-clone").resolve()
    subprocess.run(["git", "clone", "-q", REPOSITORY, clone], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-e", f"{clone}{extra}"], check=True
    )
    sys.path.insert(0, str(clone))  # this process began before the installation

# %%
# The base: a dense model of 3.2 million parameters, trained on the embedded Japanese microworld.
# If the LoRA notebook ran in this folder, the base is there already and is only evaluated again.
from jgpt import notebook

STEPS = 400
settings = notebook.settings(
    "dense_small",
    {
        "train.steps": STEPS,
        "train.log_every": 40,
        "train.sample_every": 0,
        "sample.final_samples": 0,
    },
)
base = notebook.train(settings, "runs/base")

# %% [markdown]
# ## Sixteen levels
#
# Trained weights are distributed much like a bell curve, so NF4 puts its levels where such
# weights are: close together near 0, far apart outside. Equally spaced levels would spend half of
# their codes on the outer quarter of the weights.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jgpt.kernels.nf4_matmul.format import BLOCK, LEVELS
from jgpt.kernels.quantized import dequantize, quantize

kernel = base.model.variables["params"]["layers_0"]["ffn"]["down"]["kernel"]  # [in, out]
weight = jnp.asarray(kernel.T, jnp.float32)
blocks = np.asarray(weight).reshape(-1, BLOCK)
scales = abs(blocks).max(1, keepdims=True)
scaled = blocks / scales
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
left.hist(scaled.ravel(), bins=120, color="lightsteelblue")
left.vlines(LEVELS, 0, left.get_ylim()[1], color="tab:red", linewidth=1)
left.set(title="weights over the scale of their block, and the levels of NF4", yticks=[])
restored = np.asarray(dequantize(quantize(weight, "nf4")))
right.plot(scaled.ravel()[:6000], (restored.reshape(-1, BLOCK) / scales).ravel()[:6000], ".")
right.set(title="the same before and after packing", xlabel="before", ylabel="after")
plt.show()
linear = np.round(scaled * 7) / 7  # equally spaced levels, for comparison
print(f"weights beyond half of their block's scale: {(abs(scaled) > 0.5).mean():.0%}")
for name, error in (("NF4", restored - weight), ("linear", (linear - scaled) * scales)):
    print(f"{name}: relative error {np.linalg.norm(error) / np.linalg.norm(weight):.1%}")

# %%
# Bytes, counted from the shapes of every array: no memory is needed for models that are not
# there. Full fine-tuning in float32 holds weights, gradients and Adam's two moments: 16 bytes per
# parameter. LoRA holds the model once, in bfloat16, and those four only of its adapters; QLoRA
# packs the model.
from jgpt.config import from_config_dict
from jgpt.models import count_params
from jgpt.training.trainable import make_trainable
from jgpt.trees import size_in_bytes

LORA = {"peft.method": "lora", "peft.targets": ("all-linear",), "model.param_dtype": "bfloat16"}
table = {}
print(f"{'':12}{'full':>15}{'LoRA':>15}{'QLoRA':>15}")
for name in ("dense_small", "llama_1b", "llama_8b", "qlora_65b"):
    changes = {**LORA, "model.vocab_size": base.tokenizer.vocab_size} if "small" in name else LORA
    row = []
    for kept in ("none", "nf4"):
        config = from_config_dict(notebook.settings(name, {**changes, "peft.quantize": kept}))
        parts = make_trainable(config).abstract
        row.append(size_in_bytes(parts.frozen) + 4 * size_in_bytes(parts.params))
    table[name] = [16 * count_params(config.model)[0], *row]
    print(f"{name:12}" + "".join(f"{size / 1e9:12.3f} GB" for size in table[name]))
for i, (label, color) in enumerate([("full", "gray"), ("LoRA", "tab:blue"), ("QLoRA", "tab:red")]):
    sizes = [row[i] / 1e9 for row in table.values()]
    plt.bar(np.arange(len(table)) + 0.27 * i, sizes, 0.25, label=label, color=color)
for device, size in (("T4: 16 GB", 16), ("H100: 80 GB", 80)):
    plt.axhline(size, color="black", linewidth=0.8, linestyle="--")
    plt.text(-0.2, size * 1.1, device)
plt.xticks(np.arange(len(table)) + 0.27, table)
plt.yscale("log")
plt.ylabel("GB, without activations")
plt.legend(loc="upper left")
plt.show()

# %%
# Adapters on the packed base. Every matrix is packed as soon as it is read.
settings = notebook.settings(
    "lora_small",
    {
        "init.workdir": "runs/base",
        "peft.quantize": "nf4",
        "train.steps": STEPS // 2,
        "train.log_every": 20,
        "train.eval_every": 50,
    },
)
qlora = notebook.train(settings, "runs/qlora")
packed, whole = qlora.model.variables["params"], base.model.variables["params"]
print(f"the base: {size_in_bytes(whole):,} bytes; packed: {size_in_bytes(packed):,}")

# %%
# Held-out instructions whose answer is known: some right replies, some wrong ones.
questions = [q for q in qlora.held_out_questions() if q.answer is not None][:64]
replies = qlora.reply(questions)
right = [question.is_right(reply) for question, reply in zip(questions, replies)]
print(f"{sum(right)} of {len(right)} are right")
ordered = sorted(zip(right, questions, replies), key=lambda found: not found[0])
shown = ordered[:5] + ordered[5:][-3:]
for verdict, question, reply in shown:
    print(f"\n問い  {question.messages[-1]['content']}")
    print(f"答え  {reply}  {'○' if verdict else '× ' + question.answer}")

# %%
# Merged: every matrix unpacked, its update added. It is the packed base with its update, not the
# original weights with it, so the model that answers is the one that was trained.
from jgpt import adapters

adapters.main(["merge", "--adapters=runs/qlora", "--folder=runs/qlora_merged"])
merged = qlora.model.merged()["params"]
print(f"merged: {size_in_bytes(merged):,} bytes")
for path in sorted(Path("runs/qlora_merged").iterdir()):
    print(f"{path.stat().st_size:>12,} bytes  {path}")

# %% [markdown]
# ## What to try
#
# - `"peft.method": "loftq"`: adapters begin as the best correction of what NF4 loses.
# - `"peft.quantize": "int8"`: twice the bytes, nearly no loss.
# - A model from Hugging Face by `"init.hf_folder"`, whose bytes matter: `configs/qlora_65b.py` is a
#   Llama of 65 billion parameters on one chip. `docs/qlora.md` says what is packed and why.
