"""Laws of the package as a whole: light import, arrows that point down, a sentence on top of every file."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import skalign

PACKAGE = Path(skalign.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "sklearn", "ot", "scipy", "numpy", "pandas", "matplotlib"}

# what each room may import; the core's NumPy files know no torch, and nothing imports metrics, datasets or plotting
NUMPY_CORE = {"bridges", "hubness", "linear", "ranks", "rows", "search", "selection", "threads"}
CLOSED = {"baselines", "metrics", "model_selection", "datasets", "losses", "plotting"}


def imported(file):
    """Absolute names of the modules a file imports, relative ones resolved."""
    package = ("skalign", *file.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def loads(statement, modules):
    """Which of these modules a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*sorted(set(sys.modules) & {set(modules)!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert loads("import skalign; skalign.__version__; dir(skalign)", HEAVY) == set()


def test_a_procrustes_user_never_loads_torch():
    statement = (
        "import numpy as np; from skalign import CCATeacher, ProcrustesTeacher; from skalign.metrics import mean_recall; "
        "from skalign.baselines import ASIF, CSA, RelativeRepresentation; "
        "A, B = np.random.default_rng(0).standard_normal((2, 20, 5)); "
        "aligners = ProcrustesTeacher(), CCATeacher(), ASIF(), CSA(), RelativeRepresentation(); "
        "[aligner.fit(A, B).score(A, B) for aligner in aligners]"
    )
    assert loads(statement, {"torch", "ot"}) == set()


def test_an_installation_has_every_package():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    packages = {".".join(file.parent.relative_to(PACKAGE.parent).parts) for file in PACKAGE.rglob("__init__.py")}
    assert set(settings["tool"]["setuptools"]["packages"]) == packages


@pytest.mark.parametrize("name", skalign.__all__)
def test_every_public_name_is_there(name):
    assert getattr(skalign, name) is not None
    assert name in dir(skalign)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Sotalign'"):
        skalign.Sotalign  # noqa: B018


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_file_opens_with_a_sentence(file):
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert docstring.split("\n\n")[0].endswith(".")


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name == "_core"], ids=lambda file: file.name)
def test_the_core_knows_no_scikit_learn_and_nothing_above_it(file):
    names = imported(file)
    assert not {name for name in names if name.split(".")[0] == "sklearn"}
    assert not {name for name in names if name.startswith("skalign") and not name.startswith("skalign._core")}
    if file.stem in NUMPY_CORE:
        assert not {name for name in names if name.split(".")[0] == "torch"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_imports_what_only_reads(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the door to all rooms; what it loads is measured above
    others = {name for name in imported(file) for closed in CLOSED - {room} if name.startswith(f"skalign.{closed}")}
    assert not others
