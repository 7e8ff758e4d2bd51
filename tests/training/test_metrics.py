"""Figures from sums, and files that survive being cut off."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from jgpt.training import metrics

ROOT = Path(__file__).parents[2]


def test_peak_of_known_devices_only():
    assert metrics.peak_flops("TPU v5 lite") == 197e12
    assert metrics.peak_flops("TPU v5p") == metrics.peak_flops("TPU v5") == 459e12
    assert metrics.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert metrics.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert metrics.peak_flops("NVIDIA L40S") == 362e12
    assert metrics.peak_flops("cpu") is None


def test_expert_load_sums_to_one_per_layer():
    counts = np.random.default_rng(0).integers(0, 100, (2, 6))
    load = metrics.expert_load(counts)
    np.testing.assert_allclose(load, counts / counts.sum(1, keepdims=True), atol=1e-5)
    assert metrics.expert_load(np.zeros((1, 4))) == [[0, 0, 0, 0]]


def test_floats_read_back_to_the_same_bits(tmp_path):
    losses = np.random.default_rng(1).normal(size=200).astype(np.float32)
    file = metrics.JsonLines(tmp_path / "m.jsonl")
    for step, loss in enumerate(losses):
        file.write({"kind": "train", "step": step, "loss": float(loss)})
    file.close()
    records = metrics.read_json_lines(tmp_path / "m.jsonl")
    read = np.array([r["loss"] for r in records], np.float32)
    np.testing.assert_array_equal(read.view(np.int32), losses.view(np.int32))


def test_what_is_not_finite_is_null_in_valid_json(tmp_path):
    file = metrics.JsonLines(tmp_path / "m.jsonl")
    file.write({"step": 1, "loss": math.nan, "inner": [math.inf, 1.0]})
    file.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {
        "step": 1,
        "loss": None,
        "inner": [None, 1.0],
    }


def test_a_line_cut_off_by_a_kill_harms_no_other(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    file = metrics.JsonLines(path)
    file.write({"step": 2})
    file.close()
    assert metrics.read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_the_last_record_of_a_step_counts():
    records = [
        {"kind": "train", "step": 2, "loss": 1.0},
        {"kind": "train", "step": 3, "loss": 2.0},
        {"kind": "validation", "step": 3, "validation_loss": 9.0},
        {"kind": "train", "step": 2, "loss": 5.0},
    ]
    found = metrics.last_per_step(records, "train")
    assert [(r["step"], r["loss"]) for r in found] == [(2, 5.0), (3, 2.0)]


def test_clock_adds_up_parts():
    clock = metrics.Clock()
    clock.add("step", 2.0)
    clock.add("step", 1.0)
    with clock.part("other"):
        pass
    assert clock.seconds["step"] == 3.0
    assert 0 <= clock.seconds["other"] < 1


def test_tensorboard_is_written_without_torch(tmp_path):
    code = (
        "import sys, pathlib\n"
        "from jgpt.training.metrics import TensorBoard\n"
        "board = TensorBoard(pathlib.Path(sys.argv[1]), 0)\n"
        "board.scalars(3, {'step': 3, 'loss': 2.5, 'load': [[0.25, 0.75]]}, 'train')\n"
        "board.text(3, 'samples', '猫が鳴く。')\n"
        "board.close()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    for written in ("train/loss", "load_0/1", "samples/text_summary", "猫が鳴く。"):
        assert written.encode() in content
