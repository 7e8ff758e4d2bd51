"""Every method of fine-tuning on the same small model and task, over several seeds.

    python -m jgpt.main --config=configs/dense_small.py
    python experiments/peft_comparison/run.py --base=runs/dense_small --seeds=0,1,2

A method is run with the first seed at each of its learning rates (`methods.py`); the one of lowest
validation loss counts, and is used for the other seeds. Each seed leaves a JSON file in
`--results`, so the same command goes on where it was stopped. `--report` writes `table.md` and the
pictures from what is there.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import pictures
import table
import task
from methods import METHODS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def run(options: argparse.Namespace, method: str, seeds: list[int]) -> None:
    """A process for the runs of a method that are not there yet."""
    files = {seed: options.results.absolute() / f"{method}-{seed}.json" for seed in seeds}
    wanted = {seed: str(file) for seed, file in files.items() if not file.exists()}
    if not wanted:
        return
    rates = METHODS[method].rates
    if (first := files[seeds[0]]).exists():
        rates = (json.loads(first.read_text())["rate"],)
    data = options.results / "task.jsonl"
    if not data.exists():
        task.write(data)
    work = {
        "method": method,
        "base": str(options.base.absolute()),
        "data": str(data.absolute()),
        "rates": rates,
        "runs": wanted,
    }
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(options.results.absolute() / "compiled"),
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    command = [sys.executable, str(HERE / "worker.py"), json.dumps(work)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **cache})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=pathlib.Path, default=pathlib.Path("runs/dense_small"))
    parser.add_argument(
        "--results", type=pathlib.Path, default=pathlib.Path("runs/peft_comparison")
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--report", action="store_true", help="only the table and the pictures")
    parser.add_argument("--output", type=pathlib.Path, default=HERE, help="of the report")
    options = parser.parse_args()
    chosen = options.methods.split(",")
    if unknown := set(chosen) - set(METHODS):
        parser.error(f"no method {unknown.pop()!r}; choose from {', '.join(METHODS)}")
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for method in chosen:
            run(options, method, [int(seed) for seed in options.seeds.split(",")])
    results = table.read(options.results)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "table.md").write_text(table.markdown(results))
    pictures.draw(results, options.output)


if __name__ == "__main__":
    main()
