import pytest
import torch

from models.packing import cells_of


def test_offsets_are_what_the_kernel_reads():
    cells = cells_of([3, 1, 5])
    assert cells.offsets.dtype == torch.int32
    assert cells.offsets.tolist() == [0, 3, 4, 9]
    assert cells.first.tolist() == [0, 3, 4]
    assert cells.longest == 5


@pytest.mark.parametrize("lengths", [[3, 1], []])
def test_offsets_that_a_device_has_are_not_made_again(lengths):
    offsets = cells_of(lengths).offsets
    cells = cells_of(lengths, offsets)
    assert cells.offsets is offsets
    assert cells.longest == max(lengths, default=0)
