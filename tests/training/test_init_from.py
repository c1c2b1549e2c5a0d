from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset.vocabulary import N_SPECIALS, Vocabulary
from models.learner import Learner
from models.objectives.classify import ClassifyConfig
from models.objectives.condition_adversary import ConditionAdversaryConfig
from models.objectives.masked_counts import MaskedCountsConfig
from models.objectives.masked_gene import MaskedGeneConfig
from models.objectives.whole_cell import WholeCellConfig
from models.rank_transformer import RankTransformerConfig
from models.value_transformer import ValueTransformerConfig
from tests import made_up
from training import init_from as module
from training.config import OptimConfig
from training.init_from import check_held_out, init_from, shared_rows


class OtherRun:
    """Stands for a finished run of a network with other genes."""

    is_network = True
    metrics = {"seconds": 2.5, "init_from": {"epochs": 3, "seconds": 20.0}}

    def __init__(self, model, gene_ids):
        self.config = SimpleNamespace(
            model=model.config, objectives=model.objectives, optim=OptimConfig(max_epochs=4)
        )
        self.facts = replace(model.facts, vocabulary=Vocabulary(gene_ids, gene_ids))
        self.arrays = {name: t.numpy().copy() for name, t in model.state_dict().items()}

    def weights(self):
        return self.arrays

    def model_key(self):
        return "the model of all its seeds"


@pytest.fixture
def small():
    """Return a function: settings -> a learner of genes gene0 ... of a vocabulary of 21 tokens."""

    def make(seed, **settings):
        torch.manual_seed(seed)
        values = {"d_model": 8, "n_heads": 2, "gene_init": "random"} | settings
        return made_up.learner(RankTransformerConfig(**values))

    return make


def taken_from(monkeypatch, run):
    monkeypatch.setattr(module, "Run", lambda path: run)


def test_rows_are_matched_by_name_and_those_without_one_by_place():
    rows, other = shared_rows(("a", "b", "c"), ("c", "x", "a"), 4)
    assert rows.tolist() == [0, 1, 2, 3, 4, 6]
    assert other.tolist() == [0, 1, 2, 3, 6, 4]
    rows, other = shared_rows(("a",), ("b",), 0)
    assert rows.tolist() == other.tolist() == []


def test_classes_and_donors_come_by_name_however_many_there_are(monkeypatch):
    """Of each run the cells are of other types and donors, in another order."""
    objectives = [
        ClassifyConfig(),
        ConditionAdversaryConfig(condition="donor"),
        MaskedCountsConfig(batch_key="donor", d_latent=3, n_components=2),
    ]
    config = ValueTransformerConfig(
        d_model=8, n_heads=2, gene_init="random", cls_init="learned", conditions=["sex", "donor"],
        batch_norm_by="donor",
    )  # fmt: skip
    values = {"tokenizer": {"kind": "gene_values", "values": "bins", "n_bins": 5}}

    def learner(seed, classes, donors, **settings):
        torch.manual_seed(seed)
        conditions = {"donor": donors, "sex": ["f", "m"]}
        facts = replace(made_up.facts(conditions=conditions, **values), class_names=classes)
        return Learner(config.model_copy(update=settings), objectives, facts)

    ours = learner(0, ["alpha", "beta", "delta"], ["d3", "d1"])
    theirs = learner(1, ["beta", "gamma", "alpha", "acinar"], ["d1", "d2", "d3"],
                     conditions=["donor", "sex"])  # fmt: skip
    for name, buffer in theirs.named_buffers():
        if "batch_norm" in name:
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    taken_from(monkeypatch, OtherRun(theirs, ours.facts.vocabulary.gene_ids))
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    report = init_from(ours, "runs/other", ours.facts)
    after, taken = ours.state_dict(), theirs.state_dict()

    head = "heads.classify.layers.3.weight"
    assert torch.equal(after[head][[0, 1]], taken[head][[2, 0]])
    assert torch.equal(after[head][2], before[head][2])
    for name, first in (
        ("heads.condition_adversary.layers.6.bias", 0),
        ("heads.masked_counts.batch_embedding.weight", 0),
        ("network.batch_norm.running_mean", 1),
        ("network.batch_norm.num_batches_tracked", 1),
    ):
        assert torch.equal(after[name][first:], taken[name][[first + 2, first]]), name
        assert torch.equal(after[name][:first], taken[name][:first]), name
    # At this place they had the donors and we have the sexes: only the row of what is unknown fits
    name = "network.condition_embeddings.0.weight"
    assert torch.equal(after[name][1:], before[name][1:])
    assert report["other_shape"] == report["not_found"] == []


def test_weights_come_by_name_and_genes_by_id(small, monkeypatch):
    ours, theirs = small(0), small(1)
    facts = made_up.facts()
    gene_ids = tuple(reversed(facts.vocabulary.gene_ids[3:])) + ("new1", "new2", "new3")
    taken_from(monkeypatch, OtherRun(theirs, gene_ids))
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    report = init_from(ours, "runs/other", facts)
    after = ours.state_dict()
    for name, weight in theirs.state_dict().items():
        if name != "network.gene_embedding.weight":
            assert torch.equal(after[name], weight), name
    genes, new = (m["network.gene_embedding.weight"] for m in (theirs.state_dict(), after))
    for row, gene in enumerate(facts.vocabulary.gene_ids, start=N_SPECIALS):
        if gene in gene_ids:
            assert torch.equal(new[row], genes[N_SPECIALS + gene_ids.index(gene)])
        else:
            assert torch.equal(new[row], before["network.gene_embedding.weight"][row])
    assert torch.equal(new[:N_SPECIALS], genes[:N_SPECIALS])
    n = len(before)
    assert (report["copied"], report["n_weights"]) == (n, n)
    assert (report["genes_matched"], report["n_genes"]) == (14, 17)
    assert (report["epochs"], report["seconds"]) == (7, 22.5)
    assert report["model_sha256"] == sha256(b"the model of all its seeds").hexdigest()
    assert report["not_found"] == report["other_shape"] == []


@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        (MaskedGeneConfig(), "masked_gene.bias"),
        (WholeCellConfig(), "whole_cell.bias.weight"),
        (MaskedCountsConfig(), "masked_counts.to_genes.weight"),
        (MaskedCountsConfig(), "masked_counts.log_theta"),
    ],
)
def test_what_a_head_knows_of_a_gene_comes_by_its_id(monkeypatch, objective, weight):
    config = RankTransformerConfig(d_model=8, n_heads=2, gene_init="random")
    ours, theirs = (made_up.learner(config, [objective]) for _ in range(2))
    name = f"heads.{weight}"
    with torch.no_grad():
        theirs.state_dict()[name].normal_()
    genes = ours.facts.vocabulary.gene_ids
    taken_from(monkeypatch, OtherRun(theirs, tuple(reversed(genes))))
    init_from(ours, "runs/other", ours.facts)
    new, taken = ours.state_dict()[name], theirs.state_dict()[name]
    assert torch.equal(new[N_SPECIALS:], taken[N_SPECIALS:].flip(0))
    assert torch.equal(new[:N_SPECIALS], taken[:N_SPECIALS])


def test_what_has_no_match_keeps_its_start_and_is_named(small, monkeypatch):
    ours = small(0, n_layers=3, d_feed_forward=12)
    theirs = small(1)
    taken_from(monkeypatch, OtherRun(theirs, made_up.facts().vocabulary.gene_ids))
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    report = init_from(ours, "runs/other", made_up.facts())
    kept = report["not_found"] + report["other_shape"]
    assert any("blocks.2" in name for name in report["not_found"])
    assert any("feed_forward" in name for name in report["other_shape"])
    for name, weight in ours.state_dict().items():
        expected = before if name in kept else theirs.state_dict()
        assert torch.equal(weight, expected[name]), name


def test_a_run_that_nothing_can_come_from_is_refused(small, monkeypatch):
    run = OtherRun(small(1), made_up.facts().vocabulary.gene_ids)
    run.arrays = {"something": np.zeros(3)}
    taken_from(monkeypatch, run)
    with pytest.raises(module.ConfigError, match="no weight of runs/other"):
        init_from(small(0), "runs/other", made_up.facts())
    run.is_network = False
    with pytest.raises(module.ConfigError, match="expected the run of a network"):
        init_from(small(0), "runs/other", made_up.facts())


def meta(cells="cells", split="split", files=("file",)):
    hashes = {"data_sha256": cells, "split_sha256": split}
    return hashes | {"source": {"files": [{"sha256": name} for name in files]}}


def held_out(monkeypatch, of_run, test):
    """Check cells "a" and "b" as test against a run with those test cells; None: test: false."""

    def predictions(split):
        assert split == "test"
        return SimpleNamespace(cell_names=np.array(test))

    run = SimpleNamespace(
        metrics=of_run, meta=of_run, config=SimpleNamespace(test=test is not None),
        predictions=predictions,
    )  # fmt: skip
    monkeypatch.setattr(module, "Run", lambda path: run)
    split = SimpleNamespace(cell_names=np.array(["a", "b"]))
    data = SimpleNamespace(meta=meta(), path="data/cells", split={"test": split}.get)
    check_held_out("runs/other", data)


def test_weights_that_have_seen_a_test_cell_are_refused(monkeypatch):
    held_out(monkeypatch, meta(), None)  # the same split
    held_out(monkeypatch, meta(split="other"), ["b", "c", "a"])
    held_out(monkeypatch, meta(cells="other", files=["another"]), ["c"])
    said = "1 of the 2 test cells of data/cells, such as a, are no test cells of runs/other, which"
    for of_run in (meta(split="other"), meta(cells="unlabeled", files=["more", "file"])):
        with pytest.raises(module.ConfigError, match=said):
            held_out(monkeypatch, of_run, ["b", "c"])
    with pytest.raises(module.ConfigError, match="with test: false it has none; train that run"):
        held_out(monkeypatch, meta(split="other"), None)
