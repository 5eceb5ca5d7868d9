# Everything happens in .venv; every target is safe to repeat.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0
DATA := data/phantom
DEMO := runs/demo

.PHONY: setup demo test test-all test-crash lint docs pictures wheelhouse clean

setup: $(READY)

# torch comes first: on its own it is the build that `make TORCH=...` or pip's index configuration asks for.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

# The main job on the embedded default, and what it is held against: four sites of an MR heart phantom, one labelled.
demo: $(READY)
	@test -d $(DATA)/manifests || $(BIN)/garda phantom --out $(DATA)
	$(BIN)/garda compare pipelines/phantom.yaml --methods source_only,garda --seeds 0 --data $(DATA) --out $(DEMO)
	@echo "compare both in MLflow: $(BIN)/garda ui --out $(DEMO)"

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --cov=garda --cov-report=term:skip-covered

test-all: $(READY)
	$(BIN)/python -m pytest --cov=garda --cov-report=term:skip-covered

# Every operation on files is made the last one of a run, a hop and a prediction: most of an hour.
test-crash: $(READY)
	$(BIN)/python -m pytest tests/runs/test_crash.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The generated pages: settings, commands, results, and the README's table; a test says when they are stale.
docs: $(READY)
	$(BIN)/python -m benchmarks.docs

# The README's strip, from the demo's runs.
pictures: $(READY)
	@test -d $(DATA)/manifests || $(BIN)/garda phantom --out $(DATA)
	$(BIN)/python -m benchmarks.pictures --data $(DATA) --out $(DEMO)

# On a connected machine: every wheel that `pip install --no-index --find-links wheelhouse garda` needs.
wheelhouse: $(READY)
	mkdir -p wheelhouse
	$(BIN)/python -m pip download --quiet --dest wheelhouse "$(TORCH)"
	$(BIN)/python -m pip wheel --quiet --find-links wheelhouse --wheel-dir wheelhouse --constraint constraints.txt ".[test]"

clean:
	rm -rf $(VENV) wheelhouse build *.egg-info
