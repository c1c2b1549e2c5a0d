import dataset.compiled
from dataset.compiled import compiled


def double(x):
    return x + x


def test_a_function_is_compiled_even_where_its_code_cannot_be_kept(monkeypatch):
    asked = []

    def njit(**options):
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(dataset.compiled, "njit", njit)
    assert compiled(double)(2) == 4
    assert [options.get("cache") for options in asked] == [True, None]
    assert all(options["nogil"] for options in asked)
    assert not any("fastmath" in options for options in asked)
