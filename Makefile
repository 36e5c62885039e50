# `make demo` and `make test` are all a new user needs; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint slow slurm cluster cluster-down bench drill clean

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/installed
	$(BIN)/univip demo

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not slurm"

slow: .venv/installed
	$(BIN)/python -m pytest -m "slow and not gpu and not slurm"

# A real SLURM of four nodes on this machine, for trials; needs root on Debian or Ubuntu.
cluster: .venv/installed
	$(BIN)/python tests/slurm/cluster.py up

cluster-down: .venv/installed
	$(BIN)/python tests/slurm/cluster.py down

slurm: cluster
	UNIVIP_NEED_CLUSTER=1 $(BIN)/python -m pytest -m slurm; \
	status=$$?; $(BIN)/python tests/slurm/cluster.py down; exit $$status

bench: .venv/installed
	$(BIN)/univip bench step
	$(BIN)/univip bench proposals

# The whole campaign; cut off, the same command goes on.
drill: .venv/installed
	$(BIN)/univip drill --trials 25 --resume

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info
