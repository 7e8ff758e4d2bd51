# %% [markdown]
# # What a router does
#
# In a mixture of experts every layer has several feed-forward networks, and a small *router*
# sends each token to a few of them. Nobody tells it how. Here we train such a model on Japanese,
# watch how the load spreads over the experts, and then look where each kind of character goes.
#
# All cells together take about two minutes on two CPU cores; a GPU or TPU runtime is used as it
# is found. The cell below installs jgpt where it is not there yet. Put the address of your clone
# into it.

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
# ## A model with eight experts per layer, two of them per token
#
# It is `configs/moe_small.py` with one change: a token is a character. That makes tokens easy to
# sort, into kanji, hiragana, katakana, digits.

# %%
from jgpt import notebook

STEPS = 200
settings = notebook.settings(
    "moe_small",
    {
        "train.steps": STEPS,
        "tokenizer.kind": "char",
        "sample.final_samples": 0,
    },
)
run = notebook.train(settings, "runs/moe_routing")

# %% [markdown]
# ## The load of the experts
#
# Each row of a panel is an expert, each column a moment of training; the brighter, the more
# tokens. Even would be 1/8 everywhere. At first the router chooses by chance, and some experts
# get far more than others; a *balance loss* then pushes the loads together. Below: the busiest
# expert of all layers over the mean (1 is even, 8 a collapse), and how undecided the router is
# (at most ln 8 = 2.08 nats).

# %%
import matplotlib.pyplot as plt
import numpy as np

steps, load = run.curve("load")  # [times, layers, experts]
layers, experts = load.shape[1:]
half = layers // 2
mosaic = [list(range(layers)), ["busiest"] * half + ["entropy"] * (layers - half)]
figure, panels = plt.subplot_mosaic(mosaic, figsize=(3 * layers, 5.2), layout="constrained")
extent = (steps[0], steps[-1], experts - 0.5, -0.5)
style = {"aspect": "auto", "extent": extent, "vmin": 0, "vmax": 3 / experts, "cmap": "magma"}
for layer in range(layers):
    image = panels[layer].imshow(load[:, layer].T, **style)
    panels[layer].set(title=f"layer {layer}", yticks=range(experts), xlabel="step")
panels[0].set_ylabel("expert")
figure.colorbar(image, ax=[panels[layer] for layer in range(layers)], label="share of tokens")
panels["busiest"].plot(*run.curve("moe/max_load"))
panels["busiest"].set(title="busiest expert / mean", xlabel="step")
panels["entropy"].plot(*run.curve("moe/entropy"), color="tab:green")
panels["entropy"].set(title="entropy of the router, nats", xlabel="step")
for name, even in (("busiest", 1), ("entropy", np.log(experts))):
    panels[name].axhline(even, color="gray", linestyle="--")
plt.show()

# %%
# Where does each kind of character go? 1 (white) is what chance would give, violet is more,
# orange less. Nothing but the loss taught the model that scripts differ. Particles are written
# with some of the hiragana, which are counted by themselves.
import unicodedata

from matplotlib.colors import TwoSlopeNorm


def kind(character):
    if character in "はがをにでともへの":
        return "particle"
    script = unicodedata.name(character, "?").split()[0].split("-")[0]
    names = {"CJK": "kanji", "HIRAGANA": "hiragana", "KATAKANA": "katakana", "DIGIT": "digit"}
    return names.get(script, "punctuation")


KINDS = ["kanji", "hiragana", "particle", "katakana", "digit", "punctuation"]
routed = run.route(run.held_out_texts()[:200])
counts = np.zeros((layers, len(KINDS), experts))
for text in routed:
    for i, piece in enumerate(text.pieces):
        if len(piece) == 1:
            number = KINDS.index(kind(piece))
            counts[np.arange(layers)[:, None], number, text.experts[:, i]] += 1
shares = counts / counts.sum(2, keepdims=True).clip(1)  # of each kind, over the experts
lift = shares / (counts.sum(1) / counts.sum((1, 2))[:, None]).clip(1e-9)[:, None]
figure, panels = plt.subplots(1, layers, figsize=(3.2 * layers, 3), layout="constrained")
for layer, panel in enumerate(panels):
    image = panel.imshow(lift[layer], norm=TwoSlopeNorm(1, 0, 4), cmap="PuOr")
    panel.set(title=f"layer {layer}", xticks=range(experts), xlabel="expert")
    panel.set_yticks(range(len(KINDS)), KINDS if layer == 0 else [""] * len(KINDS))
figure.colorbar(image, ax=panels.tolist(), label="times chance")
plt.show()

# %%
# The favourites of every expert: characters that go there far more often than the others do.
from collections import Counter

LAYER = layers - 1
everywhere, of_expert = Counter(), [Counter() for _ in range(experts)]
for text in routed:
    for piece, first in zip(text.pieces, text.experts[LAYER, :, 0]):
        everywhere[piece] += 1
        of_expert[first][piece] += 1
print(f"layer {LAYER}")
for expert, found in enumerate(of_expert):
    often = [piece for piece in found if everywhere[piece] >= 10 and piece.strip("·\n")]
    best = sorted(often, key=lambda piece: -found[piece] / everywhere[piece] * found[piece] ** 0.3)
    print(f"expert {expert} ({found.total() / everywhere.total():.0%}):  {'  '.join(best[:14])}")

# %%
# One sentence through all layers, each token in the colour of its first expert. Hold the mouse
# over a token to see both experts and their weights.
run.route(["春になると、健太は駅前のパン屋で120円のメロンパンを三つ買いました。"])[0]

# %% [markdown]
# ## What to try
#
# - `"model.moe.balance_coefficient": 0.0`: no balance loss. Watch the busiest expert.
# - `"model.moe.selection_bias": True` beside it: balance by a bias alone (DeepSeek-V3).
# - `"model.moe.num_shared_experts": 1`: an expert for what all tokens need.
# - `"model.moe.top_k": 1` with `"model.moe.renormalize": False`: Switch Transformer.
#
# `docs/moe.md` has every setting and what healthy figures look like.
