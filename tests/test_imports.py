"""Who may import whom: the layers of the code base, walked from its import statements."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODEL_ORDER = (
    ("typing", "trees", "config", "sharding", "cluster", "malloc", "command_line"),
    ("kernels",),
    ("layers",),
    ("models",),
    ("peft",),
    ("inference",),
    ("objectives", "evals"),
    ("training",),
    ("planning",),
    ("apps", "interop", "plan", "main", "generate", "convert", "adapters", "fisher", "class_texts"),
)
TEXT_ORDER = (("typing", "config"), ("tokenizers",), ("data",))
COMMANDS = {
    "main",
    "generate",
    "convert",
    "adapters",
    "fisher",
    "class_texts",
    "notebook",
    "plan",
    "tokenizers.__main__",
}
HOST_PATH = ("tokenizers", "data")


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names of every module that the file imports, at any depth in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def module_name(path: pathlib.Path) -> str:
    """Name below `jgpt` of one of its files."""
    parts = path.relative_to(ROOT / "jgpt").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(order: tuple[tuple[str, ...], ...], part: str) -> int | None:
    return next((i for i, names in enumerate(order) if part in names), None)


def allowed(importer: str, imported: str) -> bool:
    """Whether module `importer` may import module `imported` (both below `jgpt`)."""
    mine, theirs = importer.split(".")[0], imported.split(".")[0]
    if mine == theirs or theirs in ("", "__version__"):
        return True
    if importer in COMMANDS:
        return theirs not in COMMANDS
    if mine in HOST_PATH:
        mine_rank, their_rank = rank(TEXT_ORDER, mine), rank(TEXT_ORDER, theirs)
        return their_rank is not None and their_rank < mine_rank
    if theirs in HOST_PATH:
        return mine in ("objectives", "evals", "training", "apps", "interop")
    mine_rank, their_rank = rank(MODEL_ORDER, mine), rank(MODEL_ORDER, theirs)
    return (
        mine_rank is not None
        and their_rank is not None
        and (their_rank < mine_rank or (their_rank == mine_rank == 0))
    )


FILES = sorted((ROOT / "jgpt").rglob("*.py"))


def test_imports_follow_the_order():
    broken = []
    for path in FILES:
        importer = module_name(path)
        for name in imports_of(path):
            if name.startswith("jgpt.") and not allowed(importer, name.removeprefix("jgpt.")):
                broken.append(f"jgpt.{importer} imports {name}")
    assert not broken, "\n".join(broken)


def test_the_order_refuses_what_it_should():
    assert not allowed("kernels.attention", "layers.linear")
    assert not allowed("models", "training.loop")
    assert not allowed("data.pipeline", "models")
    assert not allowed("tokenizers.base", "data.sources")
    assert not allowed("inference.generate", "objectives")
    assert allowed("training.loop", "data.pipeline")
    assert allowed("tokenizers.__main__", "data.sources")


def test_the_host_path_never_imports_jax():
    broken = [
        f"{path}: {name}"
        for path in FILES
        if module_name(path).split(".")[0] in HOST_PATH
        for name in imports_of(path)
        if name.split(".")[0] in ("jax", "flax", "optax")
    ]
    assert not broken, "\n".join(broken)


def test_configs_import_ml_collections_and_other_configs_only():
    for path in (ROOT / "configs").glob("*.py"):
        for name in imports_of(path):
            assert name.split(".")[0] in ("ml_collections", "configs"), f"{path}: {name}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["jgpt.training.loop", "jgpt.generate", "jgpt.convert", "jgpt.tokenizers.report"]
)
def test_nothing_imports_torch_or_tensorflow(module):
    code = (
        f"import sys, {module}\n"
        "bad = {'torch', 'tensorflow', 'transformers'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
