import pytest
import torch

from models.packing import cells_of, pack


@pytest.mark.parametrize("lengths", [[3, 1, 5], [2, 2], [1], []])
@pytest.mark.parametrize("spare", [0, 2])
def test_packed_tokens_are_the_real_ones_in_order(lengths, spare):
    t = max(lengths, default=0) + spare
    padding = torch.arange(t)[None, :] >= torch.tensor(lengths, dtype=torch.long)[:, None]
    tokens = torch.randn(len(lengths), t)
    real, cells = pack(padding)
    torch.testing.assert_close(tokens.flatten()[real], tokens[~padding])
    assert cells.lengths == lengths
    assert cells.longest == max(lengths, default=0)
    for i, (row, n) in enumerate(zip(tokens, lengths, strict=True)):
        here = slice(int(cells.offsets[i]), int(cells.offsets[i + 1]))
        assert torch.equal(tokens.flatten()[real][here], row[:n])


def test_offsets_are_what_the_kernel_reads():
    cells = cells_of([3, 1, 5])
    assert cells.offsets.dtype == torch.int32
    assert cells.offsets.tolist() == [0, 3, 4, 9]
    assert cells.first.tolist() == [0, 3, 4]
