# Two commands for a fresh clone: `make demo` and `make test`. Each makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: demo test test-fast lint quality clean

demo: $(STAMP)  ## align emoji pictures and names; print the table, draw the picture
	MPLBACKEND=Agg $(BIN)/python examples/plot_1_emoji.py

test: $(STAMP)  ## lint and run every test, one process a core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-fast: $(STAMP)  ## leave the slow tests out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

lint: $(STAMP)  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(STAMP)  ## every method on every data set, then the README's table: make quality DATA=folder; resumes
	$(BIN)/python benchmarks/quality.py --data $(DATA) --jobs 2
	MPLBACKEND=Agg $(BIN)/python benchmarks/quality_report.py quality.jsonl --plot quality.png --readme README.md

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'skalign needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[tests]"
	touch $(STAMP)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
