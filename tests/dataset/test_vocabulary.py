import json

import numpy as np
import pytest

from dataset.vocabulary import CLS, MASK, N_SPECIALS, PAD, SEP, Vocabulary, without_version


@pytest.fixture
def vocabulary():
    return Vocabulary(("ENSG01", "ENSG02", "ENSG03", "ENSG04"), ("INS", "GCG", "TWIN", "TWIN"))


def test_the_specials_come_first():
    assert (PAD, CLS, SEP, MASK, N_SPECIALS) == (0, 1, 2, 3, 4)


def test_a_saved_vocabulary_is_read_back(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    assert content["specials"] == ["<pad>", "<cls>", "<sep>", "<mask>"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"specials": []}', "\x00"])
def test_what_is_no_vocabulary_is_refused(text, tmp_path):
    path = tmp_path / "vocabulary.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"vocabulary\.json"):
        Vocabulary.load(path)


def test_other_specials_are_refused(vocabulary, tmp_path):
    path = tmp_path / "vocabulary.json"
    vocabulary.save(path)
    path.write_text(path.read_text().replace("<sep>", "<eos>"))
    with pytest.raises(ValueError, match="special tokens"):
        Vocabulary.load(path)


def test_one_gene_is_in_it_once():
    with pytest.raises(ValueError, match="twice: A"):
        Vocabulary(("A", "B", "A"), ("a", "b", "c"))


def test_ids_are_16_bits_wide_while_they_fit():
    genes = tuple(map(str, range(2**16 - 4)))
    assert Vocabulary(genes, genes).token_dtype == np.uint16
    genes = (*genes, "one more")
    assert Vocabulary(genes, genes).token_dtype == np.int32


def test_genes_are_matched_by_id_whatever_the_order_and_the_version(vocabulary):
    match = vocabulary.match(["ENSG03.7", "unknown", "ENSG01"])
    assert match.columns.tolist() == [2, -1, 0]
    assert match.match_rate == 0.5
    assert match.missing == ["ENSG02", "ENSG04"]


def test_genes_are_matched_by_symbol_where_no_id_is_known(vocabulary):
    assert vocabulary.match(["GCG", "INS"]).columns.tolist() == [1, 0]
    match = vocabulary.match(["x1", "ENSG01"], ["GCG", "INS"])
    assert match.columns.tolist() == [1, 0]


def test_an_id_wins_over_a_symbol(vocabulary):
    assert vocabulary.match(["x1", "ENSG01"], ["INS", "other"]).columns.tolist() == [-1, 0]


def test_a_symbol_of_two_genes_matches_neither(vocabulary):
    assert vocabulary.match(["TWIN"]).columns.tolist() == [-1]


def test_columns_of_one_id_share_its_place(vocabulary):
    assert vocabulary.match(["ENSG02.1", "ENSG02.2"]).columns.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("gene", "stem"),
    [("ENSG00000139618.2", "ENSG00000139618"), ("Y74C9A.3", "Y74C9A.3"), ("AL627309.1",) * 2],
)
def test_only_ensembl_ids_have_versions(gene, stem):
    assert without_version(gene) == stem
