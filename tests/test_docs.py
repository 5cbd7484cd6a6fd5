"""Laws of the pages: every public name is in the reference, every command of the guide does what it says."""

import doctest
import re
import textwrap
from pathlib import Path

import pytest

import skalign

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [page for page in sorted([*DOCS.glob("*.rst"), *DOCS.glob("user_guide/*.rst")]) if ">>> " in page.read_text()]


def in_reference():
    """Full names listed in the reference, by its directives `currentmodule`, `module` and `autosummary`."""
    names, module = set(), None
    for line in (DOCS / "api.rst").read_text().splitlines():
        if found := re.match(r"\.\. (?:current)?module:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"   (\w+)$", line):
            names.add(f"{module}.{found[1]}")
    return names


def public():
    """Full names of what `skalign` and its public modules offer."""
    names = set()
    for name in skalign.__all__:
        inner = getattr(getattr(skalign, name), "__all__", None)
        names |= {f"skalign.{name}"} if inner is None else {f"skalign.{name}.{one}" for one in inner}
    return names


def test_the_reference_has_every_public_name_and_no_other():
    assert in_reference() == public()


def test_the_front_page_shows_the_example_of_the_readme():
    example = re.search(r"code-block:: python\n\n(.*?)\n\n\S", (DOCS / "index.rst").read_text(), re.DOTALL).group(1)
    assert f"```python\n{textwrap.dedent(example)}\n```" in (DOCS.parent / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_examples_of_a_page_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testfile(str(page), module_relative=False, optionflags=options).failed == 0
