"""Memory of attention and of the loss grows with the length of the text, not with its square."""

import pytest

from experiments.benchmarks.memory import attention_bytes, loss_bytes


@pytest.mark.parametrize(
    "measure, lengths",
    [(attention_bytes, (2048, 4096, 8192)), (loss_bytes, (8192, 16384, 32768))],
)
def test_memory_is_linear_in_length(measure, lengths):
    """Twice the length asks for at most about twice; the materialised form for far more."""
    used = [measure("blockwise", length) for length in lengths]
    assert used[1] < 2.2 * used[0] and used[2] < 2.2 * used[1], used
    assert used[2] < measure("reference", lengths[2]) / 8, used
