# %% [markdown]
# # LoRA: teach a model to answer
#
# A model that has only read continues texts; it does not answer. *LoRA* (Hu et al. 2021) teaches
# it to, and leaves its weights as they are: beside a matrix W it learns a product of two thin
# ones, `y = W x + s B A x`. The result is a small file, which can also be added into W for good.
#
# We train a small base, ask it, train adapters on Japanese instructions, ask again, and put them
# to use. All cells together take about four minutes on two CPU cores; a GPU or TPU runtime is
# used as it is found. The cell below installs jgpt where it is not there yet. Put the address of
# your clone into it.

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

# %% [markdown]
# ## The base
#
# A dense model of 3.2 million parameters, trained on the embedded microworld. It has seen
# questions and answers in passing, but not this form of conversation.

# %%
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
print(*base.write(["ある春の日、"]), sep="\n")

# %% [markdown]
# ## The adapters
#
# `microworld_chat:instruction` are the world's instructions, each with a reply; one token in ten
# is replayed from the base's own text, so that it is not forgotten. For conversations of your own
# name a JSONL file, `SOURCES = "chat:mine.jsonl@9,microworld@1"`, with a record such as this in
# each line:
#
#     {"instruction": "春に咲く花を一つ教えてください。", "output": "桜です。"}
#
# Every linear map of the layers gets adapters of rank 8: 3.5% of all parameters. What is learned
# is the reply alone, not the question.

# %%
SOURCES = "microworld_chat:instruction@9,microworld@1"
settings = notebook.settings(
    "lora_small",
    {
        "init.workdir": "runs/base",
        "data.sources": SOURCES,
        "train.steps": STEPS // 2,
        "train.log_every": 20,
        "train.eval_every": 50,
        "peft.rank": 8,
    },
)
lora = notebook.train(settings, "runs/lora")

# %%
# Instructions that were held out, before and after. The form is learned at once, facts slowly,
# and copying hardly at all by so small a model: ○ marks a right answer, × a wrong one, where
# there is one.
questions = lora.held_out_questions()[:64]
replies = lora.reply(questions)
checked = [(q.is_right(r), q, r) for q, r in zip(questions, replies) if q.answer is not None]
right, wrong = ([found for found in checked if found[0] is verdict] for verdict in (True, False))
free = [(None, q, r) for q, r in zip(questions, replies) if q.answer is None]
print(f"{len(right)} of {len(checked)} are right. Some right, some wrong, some free ones:")
shown = right[:4] + wrong[:3] + free[:3]
for (verdict, question, after), before in zip(shown, base.reply([q for _, q, _ in shown])):
    print(f"\n問い  {question.messages[-1]['content']}\n  前  {' '.join(before.split())[:50]} ...")
    print(f"  後  {after}  {'' if verdict is None else '○' if verdict else '× ' + question.answer}")

# %%
# What was learned, as a change of the weights. Left: its size in every matrix, relative to W.
# Right: the singular values of one change. From the ninth on they are zero: that is what rank 8
# means.
import matplotlib.pyplot as plt
import numpy as np

from jgpt.trees import leaves_by_path

old = leaves_by_path(base.model.variables["params"])
new = leaves_by_path(lora.model.merged()["params"])
names = [n for n in new if n.startswith("layers_") and n.endswith("/kernel")]
change = {n.removesuffix("/kernel"): np.asarray(new[n] - old[n]) for n in names}
layers = sorted({n.split("/")[0] for n in change})
places = sorted({n.split("/", 1)[1] for n in change})
norm = np.linalg.norm
size = [[norm(change[f"{i}/{p}"]) / norm(old[f"{i}/{p}/kernel"]) for i in layers] for p in places]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
figure.colorbar(left.imshow(size, aspect="auto", vmin=0), ax=left, label="|change| / |W|")
left.set_xticks(range(len(layers)), layers)
left.set_yticks(range(len(places)), places)
values = np.linalg.svd(change[f"{layers[-1]}/ffn/up"], compute_uv=False)
right.bar(range(1, 25), values[:24])
right.set(title=f"singular values of the change of {layers[-1]}/ffn/up", xlabel="number")
plt.show()

# %%
# Three ways on: what the adapters are; a folder that `peft` reads; and a plain model with the
# adapters in its weights, in the format of Hugging Face, which needs jgpt no more.
from jgpt import adapters

adapters.main(["inspect", "--adapters=runs/lora"])
adapters.main(["export", "--adapters=runs/lora", "--folder=runs/lora_for_peft"])
adapters.main(["merge", "--adapters=runs/lora", "--folder=runs/lora_merged"])
for folder in ("runs/lora_for_peft", "runs/lora_merged"):
    for path in sorted(Path(folder).iterdir()):
        print(f"{path.stat().st_size:>12,} bytes  {path}")

# %% [markdown]
# ## What to try
#
# - `"peft.method"`: `"dora"`, `"vera"`, `"ia3"`, `"pissa"`, ... (`docs/peft.md` says when which).
# - `"peft.rank": 1`, or `64`; more steps.
# - `SOURCES` without the replay: does `lora.write(["ある春の日、"])` still tell stories?
# - A real model: `"init.hf_folder": "/path/to/a/llama"` in the place of `init.workdir`
#   (`docs/interop.md`).
