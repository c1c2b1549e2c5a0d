import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from evaluation.plot_text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("T cell", "T cell"),
        (7.5, "7.5"),
        ("two\nlines\r\nor\tmore ", "two lines or more"),
        ("costs $5", r"costs \$5"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 39 + "…"),
        ("$" * 50, r"\$" * 39 + "…"),
    ],
)
def test_a_text_is_one_line_of_bounded_length_without_mathematics(text, shown):
    assert plain(text) == shown


def test_the_length_can_be_chosen():
    assert plain("pancreatic D cell", max_length=12) == "pancreatic…"


@pytest.mark.parametrize("name", [r"$\frac{$", "$", "$$", r"\$x$", r"a\\$b_{$", "_^{}"])
def test_matplotlib_draws_any_name(name):
    figure = Figure()
    with mpl.rc_context({"text.usetex": False}):
        figure.text(0.5, 0.5, plain(name))
        figure.canvas.draw()
