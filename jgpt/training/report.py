"""The report of a run: one HTML page that needs nothing beside itself.

It is made from the files of the workdir alone, so it can be written at any time, also of a run that
is still going on or was stopped.
"""

import html
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jgpt.data.stats import CUTS
from jgpt.training import charts, manifest
from jgpt.training.charts import Level, Series, heat_map, line_chart
from jgpt.training.metrics import last_per_step, read_json_lines
from jgpt.training.report_style import STYLE
from jgpt.training.workdir import Workdir, read_json, write_text

MAX_LAYERS = 8
"""Heat maps shown; of more layers, evenly spaced ones."""
SHOWN_SAMPLES = 12
BASELINES = (("trigram_loss", "Kneser-Ney trigram"), ("unigram_loss", "unigram"))


def write(files: Workdir) -> None:
    """Writes `report.html` of the run whose files these are."""
    write_text(files.report, page(files))


def page(files: Workdir) -> str:
    """The whole page."""
    facts = read_json(files.run)
    final = read_json(files.final) or {}
    records = read_json_lines(files.metrics)
    train, validation = last_per_step(records, "train"), last_per_step(records, "validation")
    windows = [r for r in train if "tokens_per_second" in r]
    name = facts["config"]["name"]
    sections = [
        _head(facts, train, final),
        _tiles(train, validation, windows, final),
        _section("Loss", _loss(train, validation, final)),
        _section("Training", _curves(train, windows)),
        _section("Load of the experts", _experts(windows)),
        _section("Baselines", _baselines(validation, final)),
        _section("Ranks", _ranks(final)),
        _section("Forgetting", _forgetting(final)),
        _section("Samples", _samples(files)),
        _section("Data and tokenizer", _data(facts, final)),
        _section("Checkpoints and time", _checkpoints(files, final)),
        _section("Settings", _settings(facts)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(name)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _section(title: str, body: str) -> str:
    return f"<h2>{_escape(title)}</h2>{body}" if body else ""


def _table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """A card with a table; all but the first column are numbers where there is a head."""
    mark = ' class="number"' if head else ""
    lines = []
    if head:
        lines.append(
            f"<tr><th>{_escape(head[0])}</th>"
            + "".join(f"<th{mark}>{_escape(h)}</th>" for h in head[1:])
            + "</tr>"
        )
    lines += [
        f"<tr><td>{_escape(row[0])}</td>"
        + "".join(f"<td{mark}>{_escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    return f'<div class="card"><table>{"".join(lines)}</table></div>'


def _head(facts: dict, train: list[dict], final: dict) -> str:
    config, model, device = facts["config"], facts["model"], facts["device"]
    at, steps = (train[-1]["step"] if train else 0), config["train"]["steps"]
    status = "finished" if final.get("step") == at and final else f"at step {at:,} of {steps:,}"
    experts = config["model"]["moe"]["num_experts"]
    kind = f"{experts} experts, top-{config['model']['moe']['top_k']}" if experts else "dense"
    total, trained = model["parameters"], model["trained_parameters"]
    part = f"{trained:,} trained ({trained / total:.3%}), " if trained != total else ""
    return (
        f"<h1>{_escape(config['name'])}</h1><p class=lead>{total:,} parameters, {part}"
        f"{model['active_parameters']:,} per token ({kind}) · {device['count']} × "
        f"{_escape(device['kind'])} · {status}</p>"
    )


def _tiles(train: list[dict], validation: list[dict], windows: list[dict], final: dict) -> str:
    last = validation[-1] if validation else {}
    tiles = []

    def tile(value: float | None, name: str, form: str = "{:.3f}") -> None:
        if value is not None:
            tiles.append(f'<div class="tile"><b>{form.format(value)}</b><span>{name}</span></div>')

    tile(last.get("validation_loss"), "validation loss, nats/token")
    tile(last.get("validation_bits_per_character"), "bits per character")
    tile(final.get("checked_accuracy"), "questions answered rightly", "{:.0%}")
    tile(final.get("trigram_loss"), "Kneser-Ney trigram loss")
    tile(final.get("wellformed_share"), "sentences well formed", "{:.0%}")
    tile(final.get("verbatim_share"), "sentences verbatim from training", "{:.0%}")
    if windows:
        rate = statistics.median(r["tokens_per_second"] for r in windows)
        tile(rate, "tokens/s, median", "{:,.0f}")
        flops = statistics.median(r["model_flops_per_second"] for r in windows)
        tile(flops / 1e9, "model GFLOP/s, median", "{:,.0f}")
        shares = [r["mfu"] for r in windows if r.get("mfu")]
        tile(statistics.median(shares) if shares else None, "MFU, median", "{:.1%}")
        wait = statistics.median(r["data_wait_fraction"] for r in windows)
        tile(wait, "of the time waiting for data, median", "{:.2%}")
        tile(windows[-1]["goodput"], "goodput", "{:.0%}")
    if train:
        tile(train[-1]["skipped"], "steps skipped (not finite)", "{:.0f}")
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _column(records: list[dict], name: str) -> list[float | None]:
    return [r.get(name) for r in records]


def _smoothed(values: list[float | None], weight: float) -> list[float | None]:
    """Exponential moving average over the values that there are."""
    found, average = [], None
    for value in values:
        if value is not None:
            average = value if average is None else average + weight * (value - average)
        found.append(average)
    return found


def _loss(train: list[dict], validation: list[dict], final: dict) -> str:
    steps, losses = _column(train, "step"), _column(train, "loss")
    smooth = _smoothed(losses, 2 / (1 + max(len(losses) / 50, 1)))
    series = [
        Series("training", steps, losses, "series-1", 1.0, faint=True),
        Series("smoothed", steps, smooth, "series-1"),
        Series(
            "validation",
            _column(validation, "step"),
            _column(validation, "validation_loss"),
            "series-2",
            dots=True,
        ),
    ]
    levels = [Level(label, final[name]) for name, label in BASELINES if final.get(name)]
    bits = Series(
        "bits per character",
        _column(validation, "step"),
        _column(validation, "validation_bits_per_character"),
        "series-2",
        dots=True,
    )
    found = [
        line_chart("Loss, nats per token", series, levels=levels),
        line_chart("Validation, bits per character", [bits]),
    ]
    return f'<div class="charts">{"".join(found)}</div>' if any(found) else ""


def _curves(train: list[dict], windows: list[dict]) -> str:
    steps, seen = _column(train, "step"), _column(windows, "step")

    def every(name: str) -> Series:
        return Series(name, steps, _column(train, name), "series-1", 1.5)

    def window(name: str) -> Series:
        return Series(name, seen, _column(windows, name), "series-3", 1.5)

    def moe(name: str) -> Series:
        return Series(name, steps, _column(train, f"moe/{name}"), "series-2", 1.5)

    def chart(title: str, series: Series, **kwargs: bool) -> str:
        return line_chart(title, [series], size=charts.SMALL, **kwargs)

    found = [
        chart("Learning rate", every("learning_rate"), zero=True),
        chart("Gradient norm, before clipping", every("grad_norm"), log=True),
        chart("Tokens per second", window("tokens_per_second"), zero=True),
        chart("Time waiting for data", window("data_wait_fraction"), zero=True, percent=True),
        chart("Goodput", window("goodput"), zero=True, percent=True),
        chart("MFU", window("mfu"), zero=True, percent=True),
        chart("Busiest expert over the mean", moe("max_load")),
        chart("Balance loss (1 is even)", moe("balance")),
        chart("Entropy of the routers, nats", moe("entropy")),
        chart("Router z-loss", moe("z"), zero=True),
        chart("Assignments dropped", moe("dropped"), zero=True, percent=True),
    ]
    return f'<div class="charts small">{"".join(found)}</div>' if any(found) else ""


def _experts(windows: list[dict]) -> str:
    loads = [(r["step"], r["load"]) for r in windows if r.get("load")]
    if not loads:
        return ""
    steps, load = [s for s, _ in loads], np.array([x for _, x in loads])
    num_layers, num_experts = load.shape[1:]
    layers = np.unique(np.linspace(0, num_layers - 1, min(num_layers, MAX_LAYERS)).astype(int))
    parts = np.array_split(
        np.arange(len(steps)), min(len(steps), charts.columns_for(len(layers) * num_experts))
    )
    top = 3 / num_experts
    maps = [
        heat_map(
            f"Expert layer {layer}",
            [steps[part[-1]] for part in parts],
            np.array([load[part, layer].mean(0) for part in parts]).T.tolist(),
            top,
        )
        for layer in layers
    ]
    note = (
        f'<p class="lead">Share of the assignments of each expert (rows) over time; even is '
        f"{1 / num_experts:.1%}, the strongest colour three times that.</p>"
    )
    return f'{note}<div class="charts">{"".join(maps)}</div>'


def _baselines(validation: list[dict], final: dict) -> str:
    if not validation or not final.get("trigram_loss"):
        return ""
    last = validation[-1]
    rows = [("this model", last["validation_loss"], last.get("validation_bits_per_character"))]
    rows += [
        (label, final[name], final.get(name.replace("loss", "bits_per_character")))
        for name, label in BASELINES
    ]
    note = (
        f'<p class="lead">Fitted on exactly the {final["tokens_seen"]:,} target tokens that '
        "training saw, scored on the same validation tokens as the model.</p>"
    )
    shown = [(n, f"{loss:.4f}", f"{bits:.4f}" if bits else "–") for n, loss, bits in rows]
    return note + _table(shown, ("", "nats per token", "bits per character"))


def _ranks(final: dict) -> str:
    """A row per layer and a column per module; of a layer of experts the mean."""
    rows: dict[str, dict[str, str]] = {}
    for path, rank in final.get("ranks", {}).items():
        layer, module = re.fullmatch(r"(.*layers_\d+/)?(.*)", path).groups()
        rows.setdefault((layer or "").rstrip("/"), {})[module] = f"{np.mean(rank):.3g}"
    if not rows:
        return ""
    modules = list(dict.fromkeys(module for row in rows.values() for module in row))
    table = [
        (layer, *(rows[layer].get(module, "") for module in modules))
        for layer in sorted(rows, key=lambda name: re.sub(r"\d+", lambda n: n[0].zfill(4), name))
    ]
    note = '<p class="lead">What the method has left each module of its budget.</p>'
    return note + _table(table, ("", *modules))


def _forgetting(final: dict) -> str:
    if "drift_kl" not in final:
        return ""
    rows = [
        (name, *(f"{final[f'drift_{key}_{when}']:.4f}" for when in ("before", "after")))
        for key, name in (
            ("loss", "loss, nats per token"),
            ("perplexity", "perplexity"),
            ("bits_per_character", "bits per character"),
        )
        if f"drift_{key}_after" in final
    ]
    note = (
        f'<p class="lead">On {final["drift_tokens"]:,.0f} tokens of held-out text that the first '
        "model knew, the model has moved by KL(before ‖ after) = "
        f"{final['drift_kl']:.4f} nats per token (at most {final['drift_kl_max']:.2f} at one).</p>"
    )
    return note + _table(rows, ("", "before", "after"))


def _samples(files: Workdir) -> str:
    records = read_json_lines(files.samples)
    if not records:
        return ""
    newest = records[-1]["step"]
    # A resumed run may have written the same round twice.
    shown = {(r["prompt"], r["text"]): r for r in records if r["step"] == newest}
    cards = [_sample(record) for record in list(shown.values())[:SHOWN_SAMPLES]]
    return f'<p class="lead">After step {newest:,}.</p>{"".join(cards)}'


def _sample(record: dict[str, Any]) -> str:
    text = _escape(record["text"])
    verdict = ""
    if "sentences" in record:
        good = sum(ok for _, ok in record["sentences"])
        total = len(record["sentences"])
        for sentence, ok in record["sentences"]:
            if not ok:
                wrong = _escape(sentence)
                text = text.replace(wrong, f'<span class="wrong">{wrong}</span>', 1)
        kind = "good" if good == total else "bad"
        verdict = (
            f'<small><span class="verdict {kind}">{good} of {total}</span> sentences well formed'
            f"{'' if record['finished'] else '; cut off by the limit of tokens'}</small>"
        )
    prompt = f"<b>{_escape(record['prompt'])}</b>"
    body = (prompt + text).replace("\n", "<br>")
    return f'<div class="card sample"><div lang="ja">{body}</div>{verdict}</div>'


def _data(facts: dict, final: dict) -> str:
    tokenizer, corpus, data = facts["tokenizer"], facts["corpus"], facts["config"]["data"]
    rows = [
        ("tokenizer", f"{tokenizer['kind']}, {tokenizer['vocab_size']:,} pieces"),
        ("tokens per character", f"{tokenizer['tokens_per_character']:.4f}"),
        ("bytes per token", f"{tokenizer['bytes_per_token']:.3f}"),
        ("unknown tokens", f"{tokenizer['unk_share']:.4%}"),
        ("sources", data["sources"]),
        ("documents in the corpus", _count(corpus["documents"])),
        ("characters in the corpus", _count(corpus["characters"])),
        ("unreadable records skipped", _count(corpus["bad_records"])),
    ]
    if final.get("replayed"):
        rows += [
            ("tokens trained on", f"{final['tokens_seen']:,}"),
            ("documents read", f"{final['documents_seen']:,}"),
            ("times the corpus was read", ", ".join(f"{e:.2f}" for e in final["epochs"])),
            ("padding", f"{final['padding_share']:.2%} of all positions"),
        ]
        rows += [(name.replace("_", " "), f"{final[name]:,}") for name in CUTS if name in final]
    filters = [
        (name, f"{f['documents']:,}", f"{f['changed']:,}", f"{f['characters']:,}")
        for name, f in corpus["cleaning"]["filters"].items()
    ]
    head = ("cleaning", "documents removed", "changed", "characters removed")
    examples = "".join(f"<li>{_escape(x)}</li>" for x in corpus["bad_examples"])
    return (
        f'<div class="pair">{_table(rows)}{_table(filters, head) if filters else ""}</div>'
        + (f"<details><summary>Unreadable records</summary><ul>{examples}</ul></details>" * bool(
            examples
        ))
    )  # fmt: skip


def _count(value: int | None) -> str:
    return "not counted (streamed or generated)" if value is None else f"{value:,}"


def _checkpoints(files: Workdir, final: dict) -> str:
    rows = []
    for folder in sorted((files.path / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name)):
        if not manifest.exists(folder):
            continue
        loss = (read_json(folder / "metrics.json") or {}).get("validation_loss")
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        rows.append((f"{int(folder.name):,}", f"{loss:.4f}" if loss else "–", f"{size / 1e6:,.1f}"))
    seconds = final.get("seconds", {})
    spent = [(name, f"{s:,.1f}") for name, s in sorted(seconds.items(), key=lambda x: -x[1])]
    if spent:
        spent.append(("all of the last process", f"{final['total_seconds']:,.1f}"))
    found = [
        _table(rows, ("step", "validation loss", "MB")) if rows else "",
        _table(spent, ("part", "seconds")) if spent else "",
    ]
    return f'<div class="pair">{"".join(found)}</div>' if any(found) else ""


def _settings(facts: dict) -> str:
    blocks = {
        "Config": facts["config"],
        "Versions": facts["versions"],
        "Devices": facts["device"],
    }
    return "".join(
        f"<details><summary>{name}</summary><pre>"
        f"{_escape(json.dumps(block, ensure_ascii=False, indent=1))}</pre></details>"
        for name, block in blocks.items()
    )
