from dataset.cut_list import cut_list


def test_a_short_list_is_whole():
    assert cut_list([]) == ""
    assert cut_list(["A", 2, "C"], most=3) == "A, 2, C"


def test_a_long_list_and_a_long_name_are_cut():
    assert cut_list(range(40), most=3) == "0, 1, 2 and 37 more"
    assert cut_list(["x" * 41]) == "x" * 39 + "…"
