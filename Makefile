# make quickstart   installs into .venv, then trains, evaluates and chats with the embedded tiny model
# make demo         the chat page of the quickstart's model
# make test         the whole test suite (2 processes)
# make lint         ruff and mypy
# make bench        the side-by-side measurements under benchmarks/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0

.PHONY: quickstart demo test lint bench install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[demo,dev]"
	touch $@

quickstart: install
	$(BIN)/vlm quickstart --seed $(SEED)

demo: install
	test -e output/quickstart/stage2/last || $(BIN)/vlm quickstart --seed $(SEED)
	$(BIN)/python demo.py --cfg-path output/quickstart/stage2

test: install
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.data_loader
	$(BIN)/python -m benchmarks.image_decode

clean:
	rm -rf output build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
