"""What a run shows while it goes on: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def summary(figures: Mapping[str, Any]) -> str:
    """The figures worth a glance, in one line."""
    parts = [f"loss {figures['loss']:.4f}"]
    if "learning_rate" in figures:
        parts.append(f"lr {figures['learning_rate']:.2e}")
    if "tokens_per_second" in figures:
        parts.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in figures:
        parts.append(f"MFU {figures['mfu']:.1%}")
    if "moe/max_load" in figures:
        parts.append(f"busiest expert {figures['moe/max_load']:.2f}x")
    if "data_wait_fraction" in figures:
        parts.append(f"data wait {figures['data_wait_fraction']:.1%}")
    return "  ".join(parts)


def closing(figures: Mapping[str, Any]) -> str:
    """The final figures that matter most, in one line."""
    forms = {
        "validation_loss": "validation loss {:.4f}",
        "trigram_loss": "Kneser-Ney trigram {:.4f}",
        "unigram_loss": "unigram {:.4f}",
        "validation_bits_per_character": "{:.4f} bits/character",
        "validation_f1": "macro F1 {:.3f}",
        "validation_pearson": "Pearson {:.3f}",
        "drift_kl": "moved by {:.4f} nats/token on old text",
        "checked_accuracy": "{:.1%} of questions answered rightly",
        "exchanges_dropped": "{:,} exchanges dropped",
        "prompts_cut": "{:,} prompts cut",
        "replies_cut": "{:,} replies cut",
        "wellformed_share": "{:.1%} of sentences well formed",
        "verbatim_share": "{:.1%} verbatim from training",
        "total_seconds": "{:.0f} s in all",
    }
    return "  ".join(form.format(figures[name]) for name, form in forms.items() if name in figures)


class Display:
    """Writes to standard output; silent in all processes but the first."""

    def __init__(self, steps: int, active: bool = True):
        self._steps = steps
        self._console = Console(
            highlight=False, soft_wrap=True, quiet=not active, force_jupyter=False
        )
        self._bar: Progress | None = None
        if active and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=steps, figures="")

    def __enter__(self) -> "Display":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False)

    def step(self, step: int, figures: Mapping[str, Any] | None = None) -> None:
        """Progress, with figures every so often."""
        if self._bar:
            shown = {"figures": summary(figures)} if figures else {}
            self._bar.update(self._task, completed=step, **shown)
        elif figures:
            self.say(f"step {step:>{len(str(self._steps))}}/{self._steps}  {summary(figures)}")
