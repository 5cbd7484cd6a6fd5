"""How sphinx builds the pages. `make docs` runs it; it reads the package and the examples, and needs no network."""

import inspect
import os
import re

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import skalign

project = "skalign"
author = "The skalign developers"
copyright = author
version = release = skalign.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
]
templates_path = ["_templates"]
nitpicky = True  # a link that leads nowhere is an error
default_role = "literal"  # `epsilon` is a name, as in docstrings

# Links into other libraries need their inventories, which sphinx fetches. So they are made on request, with a network:
# `make docs INTERSPHINX=1`. Without, such names stand as plain text.
intersphinx_mapping = {
    name: (address, None)
    for name, address in {
        "python": "https://docs.python.org/3/",
        "numpy": "https://numpy.org/doc/stable/",
        "sklearn": "https://scikit-learn.org/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }.items()
    if os.environ.get("INTERSPHINX")
}
nitpick_ignore_regex = [] if intersphinx_mapping else [("py:.*", r"(sklearn|numpy|torch)\..*")]

autosummary_generate = True
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"  # beside a page there is room for the name of a method alone
numpydoc_show_class_members = False  # the templates list them, each with its docstring
bibtex_bibfiles = ["references.bib"]

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("skalign",),
    "reference_url": {"skalign": None},
    "backreferences_dir": "generated/backreferences",
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,  # that page fetches scripts
}

html_math_renderer = "mathml"  # browsers draw it themselves; MathJax would be fetched by each reader
html_theme = "pydata_sphinx_theme"
html_title = "skalign"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_context = {
    "default_mode": "auto"
}  # light or dark as the reader has it; without, every page complains in the console
html_show_sourcelink = False
html_sidebars = {page: [] for page in ("install", "quickstart")}  # there are no pages below them to list
html_theme_options = {
    "logo": {"text": "skalign", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"},
    "header_links_before_dropdown": 6,
    "show_prev_next": True,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def skip_what_others_document(app, what, name, member, skip, options):
    """Leave out methods inherited from other libraries, such as scikit-learn's; `api.rst` says that they are there."""
    home = getattr(inspect.unwrap(member), "__module__", None) if callable(member) else None
    return True if what == "class" and home is not None and not home.startswith("skalign") else None


def write_mathml(as_block):
    """A visitor of formulas that writes them as MathML, with room between a function and what stands without brackets."""

    def visit(translator, node):
        formula = tex2mathml(node.astext(), as_block=as_block)
        formula = re.sub(
            r'<mo>(&ApplyFunction;</mo>)(?!\s*<mo stretchy="false">\()', r'<mo rspace="0.17em">\1', formula
        )
        translator.body.append(f'<div class="formula">{formula}</div>' if as_block else formula)
        raise SkipNode

    return visit, None


def setup(app):
    app.connect("autodoc-skip-member", skip_what_others_document)
    app.add_html_math_renderer("mathml", write_mathml(as_block=False), write_mathml(as_block=True))
