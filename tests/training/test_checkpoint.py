import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from dataset.store.atomic import WriteError
from training import checkpoint
from training.optim import make_optimizer


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"a/b": torch.arange(3.0), "c": torch.ones(2, 2, dtype=torch.int64).T}
    checkpoint.save_tensors(tmp_path / "x.safetensors", tensors, {"step": 3, "best": [0.5, -1.0]})
    found, header = checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert header == {"step": 3, "best": [0.5, -1.0]}
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in tensors.items()}
    assert checkpoint.without_prefix(found, "a/").keys() == {"b"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_optimizer_goes_on_as_if_never_saved(tmp_path, model):
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.1)
    update(model, optimizer, 0)
    checkpoint.save_tensors(
        tmp_path / "x.safetensors",
        {f"model/{k}": v for k, v in model.state_dict().items()}
        | checkpoint.optimizer_tensors(optimizer, model, "optimizer/"),
    )
    update(model, optimizer, 1)

    other = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    other_optimizer = make_optimizer(other, lr=0.1, weight_decay=0.1)
    tensors, _ = checkpoint.load_tensors(tmp_path / "x.safetensors")
    checkpoint.load_weights(other, checkpoint.without_prefix(tensors, "model/"), tmp_path)
    checkpoint.initialize_optimizer_state(other_optimizer)
    started = checkpoint.optimizer_tensors(other_optimizer, other, "optimizer/")
    assert started.keys() == {name for name in tensors if name.startswith("optimizer/")}
    for name, state in started.items():
        state.copy_(tensors[name])
    update(other, other_optimizer, 1)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_a_damaged_checkpoint_is_one_clear_sentence(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    if damage != "missing":
        checkpoint.save_tensors(path, {"a": torch.ones(1000)})
        content = {"empty": b"", "cut": path.read_bytes()[:-100], "text": b"hello " * 50}
        path.write_bytes(content[damage])
    with pytest.raises(checkpoint.CheckpointError, match="not a readable safetensors file"):
        checkpoint.load_tensors(path)


def test_weights_of_another_model_are_refused(tmp_path, model):
    with pytest.raises(checkpoint.CheckpointError, match="another model"):
        checkpoint.load_weights(model, {"0.weight": torch.ones(9, 9)}, tmp_path)
    partial = dict(list(model.state_dict().items())[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="another model"):
        checkpoint.load_weights(model, partial, tmp_path)


def test_a_full_disk_is_a_sentence_that_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "x.bin"

    def full(*_, **__):  # it renames a file of its own to the one it is given
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(WriteError, match=f"{path}: .*the disk is full") as error:
        checkpoint.save_tensors(path, {"a": torch.ones(10)})
    assert isinstance(error.value, OSError)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_any_changed_bit_of_tensors_or_header_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(path, {"a": torch.ones(5), "b": torch.arange(3)}, {"step": 3})
    whole = path.read_bytes()
    for place in range(8, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(checkpoint.CheckpointError):
            checkpoint.load_tensors(path)
