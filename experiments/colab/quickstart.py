# %% [markdown]
# # A Japanese GPT in a few minutes
#
# We train a small mixture-of-experts GPT from nothing, watch it learn, and let it write. The text
# comes from jgpt itself: a *microworld* told in grammatical Japanese, with 148 people, 12 towns,
# prices, seasons and animals. Nothing is downloaded, and a CPU is enough: all cells together take
# about five minutes on two cores. A GPU or TPU runtime is used as it is found.
#
# The cell below installs jgpt where it is not there yet. Put the address of your clone into it.

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
# ## What it will read
#
# Stories and dialogues, entries about people and things, questions about a passage, sums in
# worked steps, instructions. Every document is made from its number, 240,000 of them if asked
# for.

# %%
from jgpt.data import microworld

for number in (0, 3, 7):
    document = microworld.document(number)
    print(f"--- {document.kind}\n{document.text}\n")

# %% [markdown]
# ## Training
#
# A tokenizer of 4,000 pieces is trained first, then the model: 4 layers of width 192, in each of
# them 8 experts, of which every token uses two. One step reads 8 rows of 256 tokens. Interrupt
# the cell if you like: everything is saved, and run again it goes on from where it was.
#
# The last steps matter most: with a learning rate that has almost ended, the model settles.

# %%
from jgpt import notebook

STEPS = 560
settings = notebook.settings(
    "moe_small",
    {
        "train.steps": STEPS,
        "train.log_every": 20,
        "train.eval_every": 70,
        "train.sample_every": 140,
        "sample.num_samples": 1,
    },
)
run = notebook.train(settings, "runs/quickstart")

# %%
# Loss in nats per token. The dashed lines are models that only count: how often each token occurs
# (unigram), or each after the two before it (trigram), fitted on exactly what our model has read.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
left.plot(*run.curve("loss"), linewidth=1, alpha=0.5, label="training")
left.plot(*run.curve("validation_loss", "validation"), "o-", label="held-out text")
for name in ("unigram", "trigram"):
    left.axhline(run.figures[f"{name}_loss"], linestyle="--", color="gray", linewidth=1)
    left.annotate(name, (1, run.figures[f"{name}_loss"]), va="bottom", color="gray")
left.set(xlabel="step", ylabel="nats per token", title="Loss")
left.legend()
right.plot(*run.curve("learning_rate"), color="tab:green")
right.set(xlabel="step", title="Learning rate: warm-up, then a cosine")
plt.show()

# %%
# The same beginnings at three temperatures: 0 always takes the likeliest token, 1 draws as the
# model believes. ○ marks a sentence that the microworld's own grammar accepts, × one that it does
# not.
for temperature in (0.0, 0.4, 1.0):
    print(f"\n=== temperature {temperature}")
    for text in run.write(["ある春の日、", "【指示】", "【問題】"], temperature=temperature):
        for sentence in microworld.recogniser.sentences(text):
            print("○" if microworld.recogniser.accepts(sentence) else "×", sentence)
        print()

# %% [markdown]
# Sentences soon have the right form, while what they say is made up: form is cheap to learn,
# facts and sums are not. Here is the report that every run writes, with all curves and samples
# (`runs/quickstart/report.html`).

# %%
run.report()
