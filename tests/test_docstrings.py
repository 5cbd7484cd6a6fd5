"""Laws of the documentation: every public name and method says what it is, takes, gives and raises, and is shown at work."""

import ast
import builtins
import inspect
import re
import textwrap

import pytest
import sklearn.exceptions
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate
from sklearn.utils.validation import check_is_fitted

import skalign

MODULES = [skalign, *(getattr(skalign, name) for name in skalign.__all__ if inspect.ismodule(getattr(skalign, name)))]
OBJECTS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
RESULTS = {"skalign.losses.SinkhornResult"}  # a function makes it: it has attributes instead of parameters
MADE_OF_OTHERS = {  # whose formulas they name
    "skalign.metrics.make_retrieval_scorer",
    "skalign.metrics.retrieval_report",
}
HARMLESS = {"get_n_splits", "log2_plan"}  # take arguments, and refuse none

# what numpydoc asks for and we do not
NUMPYDOC_LEAVE = {
    "ES01",  # one sentence may say it all
    "EX01",  # a method may be shown in the example of its class: a law of its own below
    "RT02",  # results have names
    "SA01",  # links stand in the text
    "SS05",  # takes a plural at the start for a verb
}


def is_ours(member):
    function = member.fget if isinstance(member, property) else member
    return (getattr(inspect.unwrap(function), "__module__", None) or "").startswith("skalign")


MEMBERS = {
    f"{name}.{member}": getattr(thing, member)
    for name, thing in OBJECTS.items()
    if inspect.isclass(thing)
    for member in dir(thing)
    if not member.startswith("_") and is_ours(getattr(thing, member))
}
METHODS = {name: member for name, member in MEMBERS.items() if not isinstance(member, property)}
PROPERTIES = sorted(MEMBERS.keys() - METHODS.keys())
FUNCTIONS = {name: thing for name, thing in OBJECTS.items() if not inspect.isclass(thing)}
CALLED = FUNCTIONS | METHODS
ALL = OBJECTS | METHODS
METHODICAL = sorted(  # follow a paper or a formula
    name
    for name, thing in OBJECTS.items()
    if name.startswith(("skalign.losses.", "skalign.metrics.", "skalign.baselines.")) or hasattr(thing, "fit")
    if name not in RESULTS | MADE_OF_OTHERS
)


def sections(thing):
    return NumpyDocString(inspect.getdoc(thing))


def examples(thing):
    return "\n".join(sections(thing)["Examples"])


def errors_said(thing):
    """Classes of the errors under "Raises"."""
    names = [error.type for error in sections(thing)["Raises"]]
    return {getattr(builtins, name, None) or getattr(sklearn.exceptions, name) for name in names}


def errors_raised(function, owner=None, depth=1):
    """Classes of the errors that a function of ours raises, and the functions it calls by name or on `self`."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.add(eval(ast.unparse(node.exc.func), function.__globals__))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).removeprefix("self.").removeprefix("cls.")
            called = function.__globals__.get(called) or getattr(owner, called, None)
            if called is check_is_fitted:
                found.add(sklearn.exceptions.NotFittedError)
            elif depth and inspect.isroutine(called) and is_ours(called):
                found |= errors_raised(called, owner, depth - 1)
    return found


@pytest.mark.parametrize("name", sorted(ALL))
def test_docstrings_keep_the_rules_of_numpydoc(name):
    leave = NUMPYDOC_LEAVE | ({"PR01"} if name in RESULTS else set())
    assert [error for error in validate(name)["errors"] if error[0] not in leave] == []


@pytest.mark.parametrize("name", sorted(ALL))
def test_arrays_have_their_shape(name):
    doc = sections(ALL[name])
    entries = [*doc["Parameters"], *doc["Attributes"], *doc["Returns"], *doc["Yields"]]
    arrays = [entry for entry in entries if re.match(r".*\b(array|array-like|ndarray|csr_array|Tensor)\b", entry.type)]
    assert [entry.name for entry in arrays if "shape" not in entry.type and not entry.type.startswith("dict ")] == []


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_say_their_shape(name):
    assert ", shape (" in inspect.getdoc(MEMBERS[name])


@pytest.mark.parametrize("name", METHODICAL)
def test_methods_of_science_have_a_formula_and_a_reference(name):
    doc = sections(OBJECTS[name])
    assert "math:" in "\n".join(doc["Extended Summary"] + doc["Notes"])
    assert doc["References"]


@pytest.mark.parametrize("name", sorted(CALLED))
def test_every_error_raised_is_documented(name):
    owner, method = name.rsplit(".", 1)
    said = errors_said(CALLED[name])
    assert errors_raised(CALLED[name], OBJECTS.get(owner)) <= said
    takes_nothing = not inspect.signature(CALLED[name]).parameters.keys() - {"self"}
    assert said or takes_nothing or method in HARMLESS


@pytest.mark.parametrize("name", sorted(OBJECTS.keys() - RESULTS))
def test_every_public_name_has_an_example(name):
    assert ">>> " in examples(OBJECTS[name])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_shown_at_work(name):
    owner, method = name.rsplit(".", 1)
    assert f".{method}(" in examples(OBJECTS[owner]) + examples(METHODS[name])
