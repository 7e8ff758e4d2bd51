"""Stopping between steps: SIGTERM and SIGINT ask the loop to save and end."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """The run was asked to stop; it has saved, and the same command goes on from there."""

    def __init__(self, step: int, signum: int):
        self.signum = signum
        name = signal.Signals(signum).name
        super().__init__(
            f"stopped by {name} after step {step}, saved; the same command goes on from there"
        )


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered; the second one ends the process at once.

    With several processes JAX's coordination service has SIGTERM: it makes all of them stop after
    the same step, whichever was asked. SIGINT is handed on to it as SIGTERM.
    """

    def __init__(self):
        self.signum = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if jax.process_count() > 1:
            handlers = {signal.SIGINT: _as_termination}
        else:
            handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        for signum, handler in handlers.items():
            self._before[signum] = signal.signal(signum, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.signum:
            os._exit(128 + signum)
        self.signum = signum

    def after(self, step: int) -> bool:
        """Whether to stop now that this many steps are done."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signum = int(signal.SIGTERM)
        return self.signum != 0


def _as_termination(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
