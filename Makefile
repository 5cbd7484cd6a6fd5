# Three commands for a fresh clone: `make demo`, `make test` and `make docs`. Each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
SKLEARN ?= 1.6 1.7 1.8 1.9
VENVS ?= .venvs
ON_SKLEARN = $(SKLEARN:%=test-sklearn-%)
API_TESTS = $(addprefix tests/, test_common.py test_matrix.py test_folds.py test_model_selection.py test_pairs.py test_callbacks.py \
	test_files.py test_hubness.py test_retrieval.py test_zero_shot.py test_metrics.py test_sotalign.py test_teachers.py baselines)

.PHONY: demo test test-fast test-sklearn $(ON_SKLEARN) docs lint quality clean

demo: $(STAMP)  ## align emoji pictures and names; print the table, draw the picture
	MPLBACKEND=Agg $(BIN)/python examples/plot_02_emoji.py

test: $(STAMP)  ## lint and run every test, one process a core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-fast: $(STAMP)  ## leave the slow tests out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-sklearn: $(ON_SKLEARN)  ## scikit-learn's checks and all tests that meet its interface, on every version in SKLEARN

# before 1.9 scikit-learn gives pytest its checks in a way that pytest 9 warns of
$(ON_SKLEARN): test-sklearn-%: $(VENVS)/sklearn-%/.installed
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 $(VENVS)/sklearn-$*/bin/python -m pytest -n auto -W "ignore:Passing a non-Coll" $(API_TESTS)

docs: $(VENV)/.installed-docs  ## the pages, with every gallery page run: build/docs/index.html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -d build/doctrees docs build/docs
	$(BIN)/python docs/check_links.py build/docs

lint: $(STAMP)  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(STAMP)  ## every method on every data set, then their tables: make quality DATA=folder; resumes
	$(BIN)/python benchmarks/quality.py --data $(DATA) --jobs 2
	MPLBACKEND=Agg $(BIN)/python benchmarks/quality_report.py quality.jsonl --plot quality.png

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'skalign needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tests]"
	touch $(STAMP)

$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

$(VENVS)/sklearn-%/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	grep -v ^scikit-learn== constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt --editable ".[tests]" "scikit-learn==$*.*"
	touch $@

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(VENVS) build *.egg-info .pytest_cache .ruff_cache .hypothesis docs/generated docs/auto_examples examples/output
