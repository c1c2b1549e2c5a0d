"""Every measurement runs on tiny inputs and says what it should; no test looks at a time."""

import inspect
import json

import anndata as ad
import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    encode,
    end_to_end,
    infer,
    limits,
    load,
    measure,
    reference_like,
    scale,
    train_step,
)
from benchmarks.simulated_cells import write_cells
from dataset.sources import synthetic_cells
from models.flops import forward_flop

SHAPE = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_head": 4, "d_feed_forward": 16}
LIKE_BERT = SHAPE | {"d_head": 8}


@pytest.fixture(autouse=True)
def _small(monkeypatch, tmp_path):
    for module in (encode, load, end_to_end, scale):
        monkeypatch.setattr(module, "DATA", tmp_path)
    monkeypatch.setattr(train_step, "N_GENES", 400)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.h5ad"
    synthetic_cells(np.random.default_rng(0)).write_h5ad(path)
    return str(path)


@pytest.fixture
def cells(tmp_path, source):
    return str(write_cells(tmp_path / "cells.h5ad", 120, source=source))


def test_simulated_cells_are_thinned_real_ones_however_compressed(tmp_path, source, cells):
    slow = ad.read_h5ad(cells)
    fast = ad.read_h5ad(
        write_cells(tmp_path / "fast.h5ad", 120, source=source, compression="fast gzip")
    )
    assert slow.shape == (120, 200)
    assert (slow.X != fast.X).nnz == 0
    assert "cell_type" in slow.obs
    assert (slow.X.data > 0).all()
    assert (slow.X.data == np.round(slow.X.data)).all()
    most = ad.read_h5ad(source).X.sum(axis=1).max()
    assert slow.X.sum(axis=1).max() <= most


def test_the_matrix_product_and_its_flop():
    product, flop = limits.matrix_product()
    n = len(product())
    assert flop == 2 * n**3


def test_tokenizers_and_their_limit(tmp_path, cells):
    own = encode.ours(cells, "cell_type", n_tokens=32)
    output = tmp_path / "dense.npy"
    dense = reference_like.dense_tokenizer(cells, str(output), n_tokens=32)
    for found in (own, dense):
        assert found["cells_per_second"] > 0
        assert found["peak_mb"] >= 0
    assert len(np.load(output)) == 120
    for threads in (1, 2):
        assert limits.inflate(cells, threads)["cells_per_second"] > 0


def test_loaders(tmp_path, cells):
    folder = str(load.encoded(cells, "cell_type", n_tokens=32))
    for found in (
        load.ours(folder, rounds=1),
        load.plain_numpy(folder, rounds=1),
        load.widened(folder),
        load.ann_loader(cells, 50),
    ):
        assert found["cells_per_second"] > 0
    assert 0 <= load.step_share(folder, n_batches=1, batch_size=4)["share"] < 1


@pytest.mark.parametrize("part", [train_step, infer])
def test_networks(part):
    functions = [part.ours] + ([part.bert] if train_step.has_transformers() else [])
    for function in functions + ([train_step.naive] if part is train_step else []):
        found = function(LIKE_BERT, batch_size=2, n_cells=2, context=320)
        assert set(found) == {
            "cells_per_second",
            "tokens_per_second",
            "model_flop_per_second",
            "hardware_flop_per_second",
            "matmul_flop_per_second",
            "peak_mb",
        }
    twice = found | {"cells_per_second": found["cells_per_second"] / 2}
    row, other = train_step.compare("tiny", {"ours": [found], "theirs": [twice], "absent": []})
    assert (row["ours is"], other["ours is"]) == ("1.0x", "2.0x")
    assert {"cells/s", "peak MB", "model FLOP of matmul", "hardware FLOP of matmul"} <= set(row)


def test_bert_stands_beside_networks_of_its_own_sizes_only(monkeypatch):
    assert train_step.is_like_bert(LIKE_BERT)
    assert not train_step.is_like_bert(SHAPE)
    with pytest.raises(ValueError, match="unlike sizes"):
        train_step.make_bert(SHAPE, 320)
    asked = []

    def alone(function, **arguments):
        asked.append((function.split(":")[1], train_step.is_like_bert(arguments["shape"])))
        return dict.fromkeys(
            ("cells_per_second", "tokens_per_second", "model_flop_per_second",
             "hardware_flop_per_second", "matmul_flop_per_second", "peak_mb"), 1.0
        )  # fmt: skip

    monkeypatch.setattr(train_step, "has_transformers", lambda: True)
    monkeypatch.setattr(infer, "has_transformers", lambda: True)
    for module in (train_step, infer):
        monkeypatch.setattr(module, "alone", alone)
        monkeypatch.setattr(module, "cuda_rows", lambda *_, **__: [])
        module.run(quick=True)
    assert ("bert", True) in asked
    assert ("bert", False) not in asked


def test_useful_work_is_that_of_the_real_tokens():
    sizes = train_step.lengths(3, context=320)
    found = train_step.ours(SHAPE, batch_size=2, n_cells=3, context=320)
    for i, name in enumerate(("model", "hardware")):
        per_cell = found[f"{name}_flop_per_second"] / found["cells_per_second"]
        assert per_cell * 3 == pytest.approx(3 * forward_flop(sizes, **SHAPE)[i])
    naive = train_step.naive(SHAPE, batch_size=2, n_cells=3, context=320)
    per_cell = naive["hardware_flop_per_second"] / naive["cells_per_second"]
    assert per_cell == pytest.approx(3 * forward_flop([320], **SHAPE).model)
    per_cell = naive["model_flop_per_second"] / naive["cells_per_second"]
    assert per_cell * 3 == pytest.approx(3 * forward_flop(sizes, **SHAPE).model)
    per_token = found["tokens_per_second"] / found["cells_per_second"]
    assert per_token * 3 == pytest.approx(sizes.sum())


@pytest.mark.parametrize("part", [train_step, infer])
def test_what_would_run_on_a_card(monkeypatch, capsys, part):
    speed = {"cells_per_second": 8590.0, "tokens_per_second": 1.0, "peak_mb": 1.0}
    speed |= {"model_flop_per_second": 4e14, "hardware_flop_per_second": 3e14}
    speed |= {"matmul_flop_per_second": 8e14}
    calls = []

    def alone(function, **arguments):
        bound = inspect.signature(part.ours).bind(**arguments).arguments
        if function == f"{part.__name__}:ours" and "device" in bound:
            calls.append(bound)
        return speed

    for module in (train_step, infer):
        monkeypatch.setattr(module, "alone", alone)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    part.run(quick=True)
    assert "bf16 on CUDA is not measured" in capsys.readouterr().out
    assert not calls
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    part.run(quick=True)
    printed = capsys.readouterr().out
    assert "12 x 768, 12 heads of 64, context 4,096" in printed
    assert ("2.0x the 4,295 cells/s" in printed) == (part is infer)
    shapes, checkpoints = 2, 1 + (part is train_step)
    assert len(calls) == 2 * shapes * checkpoints  # compiled or not
    assert {call["compiled"] for call in calls} == {False, True}
    assert {call["device"] for call in calls} == {"cuda"}


def test_the_naive_peer_is_the_same_function_in_logits_and_gradients():
    torch.manual_seed(0)
    shape = SHAPE | {"n_layers": 3}
    ours = train_step.make_model(shape, n_vocabulary=404, row_length=320)
    naive = reference_like.NaiveTransformer(n_vocabulary=404, n_classes=5, **shape)
    ours, head = ours.network, torch.nn.Linear(16, 5)
    pairs = [(naive.embedding, ours.gene_embedding), (naive.norm, ours.encoder.norm)]
    pairs.append((naive.head, head))
    for theirs, block in zip(naive.blocks, ours.encoder.blocks, strict=True):
        pairs += [(theirs.norm1, block.norm_attention), (theirs.norm2, block.norm_feed_forward)]
        pairs += [(theirs.out, block.attention.to_out)]
        pairs += [(theirs.ff[0], block.feed_forward[0]), (theirs.ff[2], block.feed_forward[3])]
    with torch.no_grad():
        ours.position_embedding.weight.zero_()  # the peer has none
        for theirs, own in pairs:
            theirs.load_state_dict(own.state_dict())
        for theirs, block in zip(naive.blocks, ours.encoder.blocks, strict=True):
            for name in ("weight", "bias"):
                own = [getattr(to, name) for to in (block.attention.to_q, block.attention.to_kv)]
                getattr(theirs.to_qkv, name).copy_(torch.cat(own))
    (ids,) = train_step.make_batches(4, 4, 320, bucketed=True)
    ids[0, 20:] = ids[1, 250:] = 0  # ragged
    found = head(ours(train_step.make_batch(ids)).cell_embedding)
    expected = naive(torch.from_numpy(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    for theirs, own in pairs:
        for a, b in zip(theirs.parameters(), own.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm()
    ids[0, 20:] = 9  # what was padding is seen
    changed = head(ours(train_step.make_batch(ids)).cell_embedding)
    assert (changed - expected)[0].abs().max() > 1e-3


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_model_of_the_benchmark_is_the_projects(checkpoint):
    model = train_step.make_model(SHAPE, row_length=320, checkpoint=checkpoint).network
    assert model.config.encoder_shape() == SHAPE
    assert model.encoder.checkpoint_activations == checkpoint


def test_end_to_end(cells):
    found = end_to_end.encode_train_predict(cells, "cell_type", n_tokens=32, batch_size=16)
    assert found["n_cells"] == 120
    assert {"encode_seconds", "train_seconds", "predict_seconds", "encode_mb", "model_mb"} <= set(
        found
    )


def test_scale_compares_with_the_first_size_and_leaves_nothing(
    monkeypatch, tmp_path, source, capsys
):
    fake = dict.fromkeys(
        ("encode_seconds", "train_seconds", "predict_seconds", "encode_mb", "model_mb"), 2.0
    )
    monkeypatch.setattr(scale, "alone", lambda *_, **__: fake | {"n_cells": 60, "accuracy": 1.0})
    monkeypatch.setattr(scale, "SPARE_BYTES", 0)
    write = scale.write_cells
    monkeypatch.setattr(scale, "write_cells", lambda path, n, **_: write(path, n, source=source))
    first, second = scale.run([60, 80])
    assert first["cost of a cell"] == second["cost of a cell"] == 1
    assert "| cells" in capsys.readouterr().out
    assert not list(tmp_path.glob("scale_*"))
    monkeypatch.setattr(scale, "SPARE_BYTES", 1e18)
    with pytest.raises(OSError, match="GB free"):
        scale.measure(60)


def test_a_measurement_has_a_process_of_its_own():
    assert measure.alone("benchmarks.measure:own_memory") > 0
    with pytest.raises(RuntimeError, match="own_memory"):
        measure.alone("benchmarks.measure:own_memory", n="many")


def test_command_prints_and_writes_json(monkeypatch, tmp_path, capsys):
    def run(*, quick):
        measure.show("Quick", [{"a": 1, "b": 0.5}, {"a": 2_000}])
        return [{"quick": quick}]

    monkeypatch.setattr(encode, "run", run)
    path = tmp_path / "found.json"
    assert command.main(["encode", "--quick", "--json", str(path)]) == 0
    assert "| 2,000 |" in capsys.readouterr().out
    assert json.loads(path.read_text())["encode"] == [{"quick": True}]
    with pytest.raises(SystemExit):
        command.main(["coffee"])
