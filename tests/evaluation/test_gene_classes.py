import gzip

import numpy as np
import pandas as pd
import pytest

from evaluation import token_query
from evaluation.annotated_file import AnnotationError
from evaluation.gene_classes import classify_genes, gene_features, main, read_gene_list
from evaluation.token_query import TokenQuery
from evaluation.trained_model import TrainedModel


def test_unseen_genes_are_told_apart_where_features_tell_and_nowhere_else(rng):
    genes = [f"G{i}" for i in range(200)]
    is_member = np.arange(200) % 4 == 0
    telling = rng.normal(size=(200, 5)) + 4 * is_member[:, None]
    tables = {"telling": telling, "noise": rng.normal(size=(200, 5)), "names": np.eye(200)}
    tables = {name: pd.DataFrame(table, index=genes) for name, table in tables.items()}
    members = [g for g, m in zip(genes, is_member, strict=True) if m] + ["unknown"]
    found = classify_genes(tables, members)
    assert found["mean"]["telling"] > 0.98
    # who knows each train gene by name knows nothing of another one
    assert found["mean"][["noise", "names"]].between(0.35, 0.65).all()
    folds = found[[f"fold {i}" for i in range(1, 6)]]
    np.testing.assert_allclose(folds.mean(axis=1), found["mean"])
    pd.testing.assert_frame_equal(classify_genes(tables, members), found)
    with pytest.raises(AnnotationError, match="3 of the 200 genes"):
        classify_genes(tables, genes[:3])


def test_features_are_of_the_same_genes(planted_run, planted_cells, tmp_path, capsys, monkeypatch):
    found = gene_features(TokenQuery(planted_run, planted_cells))
    assert list(found) == ["statistics", "svd", "input", "in context"]
    assert {len(table) for table in found.values()} == {60}
    statistics = found["statistics"].loc["G0"]
    assert statistics[0] == 0.5  # of the cells
    assert statistics[3] == pytest.approx(2 * statistics[1])
    (tmp_path / "list.txt").write_text("".join(f"G{i}\n" for i in range(0, 60, 2)))
    opened = []

    def counted(*given, **more):
        opened.append(given)
        return TrainedModel(*given, **more)

    monkeypatch.setattr(token_query, "TrainedModel", counted)
    words = [str(planted_run), str(planted_cells), str(tmp_path / "list.txt")]
    assert main([*words, "--device", "cpu"]) == 0
    assert len(opened) == 1
    assert "in context" in capsys.readouterr().out
    (tmp_path / "list.gmt").write_text("ODD\tlink\tG1\tG3\n")
    assert main([*words[:2], str(tmp_path / "list.gmt")]) == 2
    assert "name one with --set" in capsys.readouterr().err


def test_gene_lists_are_read(tmp_path):
    with gzip.open(tmp_path / "sets.gmt.gz", "wt") as file:
        file.write("ONE\tlink\tA\tB\nTWO\tlink\tC\n")
    assert read_gene_list(tmp_path / "sets.gmt.gz", "TWO") == ["C"]
    with pytest.raises(AnnotationError, match="has no set 'TREE'"):
        read_gene_list(tmp_path / "sets.gmt.gz", "TREE")
    with pytest.raises(AnnotationError, match="no set is named; .* sets: ONE, TWO"):
        read_gene_list(tmp_path / "sets.gmt.gz")
    (tmp_path / "genes.csv").write_text('gene,class\nA,x\n"B",y, z\n\nC\n')
    assert read_gene_list(tmp_path / "genes.csv") == ["gene", "A", "B", "C"]
    (tmp_path / "genes.tsv").write_text("A\tx\n\tx\nB\ty\n")
    assert read_gene_list(tmp_path / "genes.tsv") == ["A", "B"]
