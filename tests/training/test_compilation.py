import pytest
import torch

from models.rank_transformer import RankTransformerConfig
from training.compilation import compile_blocks

# Of the compiler's own looking at its inputs.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


def network_and_batch(n_cells: int = 3):
    torch.manual_seed(0)
    network = RankTransformerConfig(d_model=8, n_heads=2, dropout=0.0).build(
        n_vocabulary=21, n_classes=4, n_tokens=12, n_segments=1
    )
    batch = {
        "token_ids": torch.randint(4, 21, (n_cells, 12)),
        "counts": torch.ones(n_cells, 12),
        "library_size": torch.full((n_cells, 1), 100.0),
    }
    batch["token_ids"][0, 7:] = 0
    return network, batch


def test_compiled_blocks_keep_their_names_and_their_answers():
    network, batch = network_and_batch()
    names, expected = list(network.state_dict()), network(batch).logits
    seen = []

    def backend(graph, _):
        seen.append(graph)
        return graph.forward

    compile_blocks(network, backend=backend)
    found = network(batch).logits
    assert len(seen) >= 2  # the last block differs: it computes the first tokens only
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert all(p.grad is not None for p in network.encoder.parameters())
    assert list(network.state_dict()) == names
    assert [name for name, _ in network.named_parameters()] == names[: len(names)]


def test_another_number_of_cells_is_no_other_program():
    network, batch = network_and_batch(n_cells=20)
    seen = []

    def backend(graph, _):
        seen.append(graph)
        return graph.forward

    compile_blocks(network, backend=backend)
    network({name: rows[:7] for name, rows in batch.items()})
    n_programs = len(seen)
    for n_cells in (9, 12, 20):
        network({name: rows[:n_cells] for name, rows in batch.items()})
    assert len(seen) == n_programs


@pytest.mark.parametrize("n_cells", [0, 1, 40])
def test_other_shapes_are_served_too(n_cells):
    network, batch = network_and_batch(n_cells=max(n_cells, 1))
    batch = {name: rows[:n_cells] for name, rows in batch.items()}
    expected = network(batch).logits
    compile_blocks(network, backend="eager")
    torch.testing.assert_close(network(batch).logits, expected)
