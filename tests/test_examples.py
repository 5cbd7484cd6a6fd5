"""Every gallery page runs, cut short; `make docs` runs them whole."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import sklearn

PAGES = sorted((Path(__file__).parents[1] / "examples").glob("plot_*.py"))
# What a page repeats and trains for stands on lines of its own, such as `max_iter = 200`, which are replaced here.
SHORT = {"n_draws": 1, "max_iter": 5}


def cut_short(page):
    """The code of a page, every line of it, with fewer repetitions and training steps."""
    tree = ast.parse(page.read_text(encoding="utf-8"))
    for line in tree.body:
        if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", None) in SHORT:
            line.value = ast.copy_location(ast.Constant(SHORT[line.targets[0].id]), line.value)
    return compile(tree, page, "exec")


@pytest.fixture
def no_window(monkeypatch):
    """Figures are drawn on nothing, and closed when they are shown."""
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: (plt.gcf().canvas.draw(), plt.close("all")))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_gallery_page_runs(page, tmp_path, monkeypatch, no_window):
    monkeypatch.chdir(tmp_path)
    with sklearn.config_context():  # what a page switches on ends with it
        exec(cut_short(page), {"__name__": "__main__"})
