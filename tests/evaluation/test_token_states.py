import anndata as ad
import numpy as np
import pytest
import torch

from dataset.batches import BatchReader, to_device
from evaluation.annotate import annotate
from evaluation.annotated_file import AnnotationError
from evaluation.embed import embed, main
from evaluation.perturb import look
from evaluation.token_query import TokenQuery
from evaluation.token_states import check_reads_tokens, second_to_last, token_states
from evaluation.trained_model import TrainedModel


@pytest.fixture(scope="module")
def model(planted_run):
    return TrainedModel(planted_run, device="cpu")


@pytest.fixture(scope="module")
def profile(planted_cells):
    counts = ad.read_h5ad(planted_cells).X.astype(np.int32)[:12]
    return counts, np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def test_the_states_are_those_before_the_last_block(model, profile):
    batch = to_device(BatchReader(model.encode([profile])).read(np.arange(12)), "cpu")
    network = model.learner.network
    with torch.no_grad():
        encoded, found = second_to_last(network, batch)
        x, cells, _ = network.embed(batch)
        for block in network.encoder.blocks[:-1]:
            x = block(x, cells)
    torch.testing.assert_close(found, x)
    assert not network.encoder.blocks[-1]._forward_pre_hooks
    assert encoded.token_states.shape == found.shape


def test_means_are_over_the_genes_of_each_cell_whatever_the_batch(model, profile):
    whole = {int(row): mean for part in token_states(model, *profile, batch_size=5)
             for row, mean in zip(part.rows, part.cell_means(), strict=True)}  # fmt: skip
    for row in range(12):
        alone = profile[0][row], profile[1][row : row + 1]
        (part,) = token_states(model, *alone)
        assert len(part.gene) == alone[0].nnz  # its genes, and no special token
        torch.testing.assert_close(part.states.mean(dim=0), whole[row])


def test_cells_and_genes_are_written(planted_run, planted_cells, tmp_path, model, profile):
    words = [str(planted_run), str(planted_cells), str(tmp_path / "out.h5ad")]
    assert main(words) == 0
    found, query = ad.read_h5ad(tmp_path / "out.h5ad"), ad.read_h5ad(planted_cells)
    assert found.obs_names.tolist() == query.obs_names.tolist()
    assert (found.obs["cell_type"] == query.obs["cell_type"]).all()
    n_cells = np.asarray((query[:, found.var_names].X > 0).sum(axis=0)).ravel()
    assert (found.var["n_cells"] == n_cells).all()
    counts = query[:, found.var_names].X.astype(np.int32)
    size = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    parts = [
        p for row in range(160) for p in token_states(model, counts[row], size[row : row + 1])
    ]
    of_g1 = [part.states[part.gene == found.var_names.get_loc("G1")] for part in parts]
    expected = torch.cat(of_g1).mean(dim=0).numpy()
    at = found.var_names.get_loc("G1")
    np.testing.assert_allclose(found.varm["X_nanocell"][at], expected, atol=1e-5)
    means = torch.cat([part.cell_means() for part in parts]).numpy()
    np.testing.assert_allclose(found.obsm["X_nanocell"], means, atol=1e-5)
    cls = embed(TokenQuery(planted_run, planted_cells), of="cls")
    expected = torch.cat([part.encoded.cell_embedding for part in parts]).numpy()
    np.testing.assert_allclose(cls.obsm["X_nanocell"], expected, atol=1e-5)


def test_a_network_is_told_the_conditions_as_in_04(told_donors, planted_cells, tmp_path, capsys):
    query = TokenQuery(told_donors, planted_cells, device="cpu")
    annotation = annotate(told_donors, planted_cells, tmp_path / "annotated.h5ad")
    found = embed(query, of="cls")
    np.testing.assert_allclose(found.obsm["X_nanocell"], annotation.embedding, atol=1e-5)
    rows = np.arange(3, 160, 20)  # two of each donor, of whom the run knows some
    assert len(np.unique(query.conditions[rows])) > 1
    seen = look(query.model, query.take(rows), query.conditions[rows])
    np.testing.assert_allclose(seen.probabilities, annotation.probabilities[rows], atol=1e-5)
    nobody = look(query.model, query.take(rows))
    assert np.abs(nobody.probabilities - seen.probabilities).max() > 1e-4
    words = [str(told_donors), str(planted_cells), str(tmp_path / "out.h5ad"), "--device", "cpu"]
    assert main(words) == 0
    (said,) = [m for m in annotation.messages if "condition 'donor'" in m]
    assert said in capsys.readouterr().out
    assert main([*words, "--min-match-rate", "1.1"]) == 2
    assert "at least 110% are needed" in capsys.readouterr().err


def test_runs_without_tokens_are_refused(
    planted_run, baseline_run, planted_cells, capsys, tmp_path
):
    with pytest.raises(AnnotationError, match="is no network; expected the run of one"):
        check_reads_tokens(TrainedModel(baseline_run))
    with pytest.raises(AnnotationError, match="of: found 'all'; expected one of genes, cls"):
        embed(TokenQuery(planted_run, planted_cells), of="all")
    assert main([str(tmp_path), str(planted_cells), str(tmp_path / "out.h5ad")]) == 2
    assert "error:" in capsys.readouterr().err
