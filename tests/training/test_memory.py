"""The most memory that a run took."""

from mmap import PAGESIZE, mmap

import torch

from workbook.training.devices import forget_peak, peak_bytes


def test_peak_memory_is_that_of_now() -> None:
    cpu = torch.device("cpu")
    forget_peak(cpu)
    before = peak_bytes(cpu)
    with mmap(-1, 2**28) as asked:  # from Linux itself: what tensors leave may be kept (see the Makefile)
        for page in range(0, len(asked), PAGESIZE):
            asked[page] = 1
        assert 0.9 * 2**28 <= peak_bytes(cpu) - before < 2**29
    assert peak_bytes(cpu) - before >= 0.9 * 2**28
    forget_peak(cpu)
    assert peak_bytes(cpu) - before < 0.5 * 2**28
