"""The report says what the files say, needs nothing else, and shows strange text harmlessly."""

import html.parser
import math
import re
from pathlib import Path

import numpy as np
import pytest

from jgpt.config import Config, to_dict
from jgpt.training import charts, report
from jgpt.training.metrics import JsonLines
from jgpt.training.workdir import Workdir, read_json, write_json

LAYERS, EXPERTS, STEPS = 2, 4, 300


def fake_run(folder: Path, steps: int = STEPS) -> Workdir:
    """The files of a run of a small mixture of experts, with made-up figures."""
    rng = np.random.default_rng(0)
    files = Workdir(folder)
    config = to_dict(Config())
    config["name"], config["train"]["steps"] = "<b>name</b>", steps
    config["model"]["moe"]["num_experts"] = EXPERTS
    facts = {
        "config": config,
        "versions": {"jax": "0.10.2"},
        "device": {"kind": "cpu", "count": 1, "mesh": {"data": 1}, "peak_flops": None},
        "model": {
            "parameters": 6_700_000,
            "trained_parameters": 6_700_000,
            "active_parameters": 3_100_000,
            "flops_per_token": 1e7,
        },
        "tokenizer": {
            "kind": "unigram",
            "vocab_size": 4000,
            "tokens_per_character": 0.61,
            "bytes_per_token": 4.5,
            "unk_share": 0.0,
        },
        "corpus": {
            "documents": 1234,
            "characters": None,
            "bad_records": 2,
            "bad_examples": ["a.jsonl:3: <bad>"],
            "cleaning": {"filters": {"nfkc": {"documents": 0, "changed": 7, "characters": 9}}},
        },
    }
    write_json(files.run, facts)
    metrics = JsonLines(files.metrics)
    for step in range(1, steps + 1):
        loss = 2 + 6 * math.exp(-step / 60) + rng.normal(0, 0.08)
        record = {
            "kind": "train",
            "step": step,
            "loss": loss,
            "learning_rate": 1e-3 * min(1, step / 50),
            "grad_norm": math.exp(rng.normal(0, 0.4)),
            "skipped": 0.0,
            "moe/balance": 1 + 0.4 * math.exp(-step / 40),
            "moe/max_load": 1 + math.exp(-step / 40),
        }
        if step % 5 == 0:
            load = rng.dirichlet([4 + step / 5] * EXPERTS, LAYERS)
            record |= {
                "tokens_per_second": 3000 + rng.normal(0, 200),
                "model_flops_per_second": 3e10,
                "data_wait_fraction": abs(rng.normal(0, 0.004)),
                "goodput": 0.8,
                "load": load.tolist(),
            }
        metrics.write(record)
        if step % 100 == 0:
            metrics.write(
                {
                    "kind": "validation",
                    "step": step,
                    "validation_loss": loss,
                    "validation_bits_per_character": loss * 0.9,
                }
            )
    metrics.close()
    samples = JsonLines(files.samples)
    for text, good in (("猫は魚を食べた。", True), ("猫魚に<script>が。", False)):
        samples.write(
            {
                "step": steps,
                "prompt": "ある朝、",
                "text": text,
                "finished": True,
                "dropped_bytes": 0,
                "sentences": [("ある朝、" + text if good else text, good)],
            }
        )
    samples.close()
    write_json(
        files.final,
        {
            "step": steps,
            "trigram_loss": 3.25,
            "unigram_loss": 6.5,
            "trigram_bits_per_character": 2.5,
            "unigram_bits_per_character": 5.0,
            "wellformed_share": 0.75,
            "verbatim_share": 0.1,
            "replayed": True,
            "tokens_seen": 123456,
            "documents_seen": 999,
            "epochs": [0.5],
            "padding_share": 0.011,
            "seconds": {"step": 90.0, "compile": 10.0},
            "total_seconds": 120.0,
        },
    )
    return files


class Checker(html.parser.HTMLParser):
    """Notes elements, and that each one is closed in its turn."""

    VOID = {"meta", "br", "line", "rect", "polyline"}

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    files = fake_run(tmp_path_factory.mktemp("run"))
    report.write(files)
    return files.report.read_text(encoding="utf-8")


def test_it_is_well_formed_and_loads_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.links
    assert "script" not in checker.seen
    assert not re.search(r"url\(|@import|http", page)


def test_curves_of_everything_are_drawn(page):
    titles = re.findall(r'<svg[^>]*aria-label="([^"]+)"', page)
    for title in ("Loss, nats per token", "Learning rate", "Tokens per second", "Expert layer 1"):
        assert title in titles
    assert page.count('class="heat"') == LAYERS
    assert "Kneser-Ney trigram 3.250" in page


def test_samples_are_shown_with_verdicts_and_wrong_sentences_marked(page):
    assert '<div lang="ja"><b>ある朝、</b>猫は魚を食べた。</div>' in page
    assert '<span class="wrong">猫魚に&lt;script&gt;が。</span>' in page
    assert ">1 of 1</span>" in page and ">0 of 1</span>" in page


def test_an_adapter_run_says_how_much_it_trains_and_what_ranks_were_left(tmp_path):
    files = fake_run(tmp_path, steps=5)
    assert " trained (" not in report.page(files) and "Ranks" not in report.page(files)
    facts, final = read_json(files.run), read_json(files.final)
    facts["model"]["trained_parameters"] = 13_400
    ranks = {
        "layers_10/attention/query": 3,
        "layers_9/ffn/up": [1, 2],
        "layers_9/attention/query": 0,
    }
    write_json(files.run, facts)
    write_json(files.final, {**final, "ranks": ranks})
    page = report.page(files)
    assert "6,700,000 parameters, 13,400 trained (0.200%), 3,100,000 per token" in page
    table = page[page.index("<h2>Ranks</h2>") :].partition("</table>")[0]
    rows = [re.findall(r"<t[dh][^>]*>([^<]*)<", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["", "attention/query", "ffn/up"],
        ["layers_9", "0", "1.5"],
        ["layers_10", "3", ""],
    ]


def test_names_from_outside_are_escaped(page):
    assert "<b>name</b>" not in page and "&lt;b&gt;name&lt;/b&gt;" in page
    assert "&lt;bad&gt;" in page


def test_a_run_without_any_step_has_a_report_too(tmp_path):
    files = fake_run(tmp_path, steps=0)
    files.final.unlink()
    files.samples.unlink()
    assert "at step 0 of 0" in report.page(files)


def test_ticks_are_round_and_inside():
    for low, high in ((0, 1), (2.13, 7.9), (0, 0.0031), (120, 125_000)):
        found = charts.ticks(low, high)
        assert 3 <= len(found) <= 8
        assert all(low - 1e-9 <= t <= high * (1 + 1e-9) for t in found)


def test_long_series_are_averaged_down_and_gaps_left_out():
    y = [1.0, None, math.nan, *np.linspace(0, 1, 5000)]
    points = charts.Series("s", range(len(y)), y).points()
    assert len(points) <= charts.MAX_POINTS
    assert all(math.isfinite(v) for p in points for v in p)
