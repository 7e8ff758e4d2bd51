"""Exit status and the one line for each kind of wrong command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/default.py"
DENSE = "--config=configs/dense_small.py"

CASES = {
    "unknown section": ([CONFIG, "--config.modle.x=1"], "modle"),
    "unknown field": ([CONFIG, "--config.model.num_layer=1"], "num_layer"),
    "wrong type": ([CONFIG, "--config.train.steps=many"], "train.steps"),
    "no config": ([], "give --config=FILE"),
    "config not there": (["--config=configs/none.py"], "configs/none.py"),
    "unknown flag": ([CONFIG, "--wrokdir=x"], "wrokdir"),
    "stray word": ([CONFIG, "steps=3"], "'steps=3' is no flag"),
    "heads do not divide": ([CONFIG, "--config.model.num_heads=7"], "model.hidden_size"),
    "top_k above experts": (
        [CONFIG, "--config.model.ffn_pattern=('moe',)", "--config.model.moe.num_experts=2",
         "--config.model.moe.top_k=3"],
        "model.moe.top_k is 3",
    ),
    "choice": ([CONFIG, "--config.model.norm=batchnorm"], "model.norm is 'batchnorm'"),
    "steps": ([CONFIG, "--config.train.steps=0"], "train.steps is 0"),
    "workdir": ([DENSE, "--workdir=/dev/null/run"], "workdir '/dev/null/run' cannot be written"),
    "corpus": (
        [DENSE, "--config.data.sources=text:/nowhere.txt", "--workdir={tmp}"], "/nowhere.txt"
    ),
}  # fmt: skip

# One process imports the command once and forks for each case: seconds instead of a minute.
FORK = """
import os, sys
from absl import app
from jgpt import main
for number, arguments in enumerate(eval(sys.stdin.read())):
    child = os.fork()
    if not child:
        file = os.open(f"{sys.argv[1]}/{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv = ["jgpt.main", *arguments]
        try:
            app.run(main.main, flags_parser=main.parse)
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else 99)
        os._exit(98)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """(exit status, all that was printed) of every case."""
    folder = tmp_path_factory.mktemp("outcomes")
    arguments = [[a.format(tmp=folder / "run") for a in case] for case, _ in CASES.values()]
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(folder)],
        input=repr(arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "JGPT_CACHE": str(folder)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    statuses = map(int, done.stdout.split())
    return {
        name: (status, (folder / str(i)).read_text())
        for i, (name, status) in enumerate(zip(CASES, statuses))
    }


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_command_ends_with_one_clear_line(outcomes, case):
    status, output = outcomes[case]
    assert status == 2, output
    lines = output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), output
    assert CASES[case][1] in lines[0]
