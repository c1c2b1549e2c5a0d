from dataset.nearest_names import nearest, shortened


def test_the_nearest_names_come_first():
    assert nearest("donr", ["cell_type", "donor"]) == (
        "; did you mean 'donor'? columns: cell_type, donor"
    )
    assert nearest("Donor", ["cell_type", "donor"]).startswith("; did you mean 'donor'?")
    assert nearest("zzz", ["cell_type"], "layers") == "; layers: cell_type"
    assert nearest("zzz", []) == "; columns: none"


def test_a_long_list_ends_where_nobody_reads_on():
    text = shortened([f"column_{i}" for i in range(10_000)])
    assert len(text) < 400
    assert text.endswith(", ... (10,000 in all)")
    assert shortened(["x" * 100_000]) == "x" * 300 + "..."
