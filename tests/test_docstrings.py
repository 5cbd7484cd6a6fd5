"""Laws of the documentation: every public name says what it takes, what it raises, and shows an example that runs."""

import inspect

import pytest

import skalign
import skalign.baselines
import skalign.datasets
import skalign.losses
import skalign.metrics
import skalign.model_selection
import skalign.plotting

OBJECTS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (
        skalign,
        skalign.baselines,
        skalign.losses,
        skalign.metrics,
        skalign.model_selection,
        skalign.datasets,
        skalign.plotting,
    )
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
METHODS = [
    (name, method)
    for name, thing in OBJECTS.items()
    for method in (
        "fit",
        "partial_fit",
        "transform",
        "transform_y",
        "score",
        "kneighbors",
        "predict",
        "predict_proba",
        "decision_function",
        "from_estimator",
        "from_predictions",
    )
    if hasattr(thing, method)
]
RESULTS = {"skalign.losses.SinkhornResult"}  # what a function returns has attributes; its maker shows the example
DOCUMENTED = sorted(OBJECTS.keys() - RESULTS)


def parameters(thing):
    return [name for name in inspect.signature(thing).parameters if name not in ("self", "args", "kwargs")]


def documented(thing, section):
    """Names that stand left of " :" in a numpydoc section, in order."""
    doc = inspect.getdoc(thing)
    head = f"{section}\n{'-' * len(section)}\n"
    if head not in doc:
        return []
    lines = doc.split(head, 1)[1].split("\n")
    names = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following.startswith("---"):
            break
        if line and not line.startswith(" "):
            names += [name.strip(" *") for name in line.split(" :")[0].split(",")]
    return names


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_has_an_example(name):
    assert "\nExamples\n--------\n>>> " in inspect.getdoc(OBJECTS[name])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_parameters_are_documented_in_the_order_of_the_signature(name):
    assert documented(OBJECTS[name], "Parameters") == parameters(OBJECTS[name])


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_methods_say_what_they_take_give_and_raise(name, method):
    function = getattr(OBJECTS[name], method)
    assert documented(function, "Parameters") == parameters(function)
    assert documented(function, "Returns")
    assert "ValueError" in documented(function, "Raises")


@pytest.mark.parametrize("method", ["save", "to_torch", "to_onnx"])
def test_what_leaves_the_package_shows_how(method):
    function = getattr(skalign.SOTAlign, method)
    assert documented(function, "Parameters") == parameters(function)
    assert "NotFittedError" in documented(function, "Raises")
    assert "\nExamples\n--------\n>>> " in inspect.getdoc(function)
