"""Runs that hide tokens and spans: trained, validated on the same holes, resumed exactly."""

import shutil

import pytest

from jgpt.config import from_config_dict
from jgpt.training import loop
from jgpt.training.metrics import last_per_step, read_json_lines
from tests.training.tiny import settings

OPTIONS = {
    "train__sample_every": 0,
    "sample__final_samples": 0,
    "train__steps": 8,
    "model__num_layers": 1,
    "optimizer__learning_rate": 1e-2,
}
KINDS = {
    "mlm": {"model__attention": "bidirectional"},
    "span_corruption": {"model__encoder_layers": 1, "model__position": "relative"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_repeats_what_was_lost(kind, tmp_path):
    options = OPTIONS | KINDS[kind] | {"objective__name": kind}
    config = from_config_dict(settings(tmp_path / "cache", **options))
    workdir = tmp_path / "run"

    def losses(records="train", name="loss"):
        lines = read_json_lines(workdir / "metrics.jsonl")
        return {r["step"]: r[name] for r in last_per_step(lines, records)}

    final = loop.run(config, workdir)
    first, validated = losses(), losses("validation", "validation_loss")
    assert first[8] < first[1] - 0.2
    assert validated[8] < validated[6]
    assert "trigram_loss" not in final
    assert "wellformed_share" not in final
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "metrics.jsonl").unlink()
    assert loop.run(config, workdir)["validation_loss"] == final["validation_loss"]
    again = losses()
    assert set(again) == {5, 6, 7, 8}
    assert again == {step: first[step] for step in again}
