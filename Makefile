# make quickstart   from a fresh clone to a table of two runs, on a CPU
# make test         everything that needs no GPU and no minutes
# make test-slurm   the job graph on a real Slurm of this machine
# make study        five methods, three seeds: does distillation pay? Hours on a CPU; resumable
# make study-slice  one seed of it on a quarter of the tokens
# make lint         ruff, basedpyright, import directions, spelling
# PYTHON=... chooses the interpreter (3.11) that .venv is made with.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.made-from

.DEFAULT_GOAL := help
.PHONY: help env quickstart study study-slice test test-full test-slurm lint format bench clean

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

# The stamp is written last: an interrupted installation is repeated.
env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "env: making .venv with $(PYTHON); pip installs about 240 packages, 3 to 8 minutes"
	@"$(PYTHON)" -c 'import sys; sys.exit("make: Python 3.11 or 3.12 is needed; PYTHON=/path/to/python3.11 names one") \
	  if not (3, 11) <= sys.version_info < (3, 13) else None'
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
	  torch==2.13.0 -e '.[train,eval,report,dev]'
	@cp constraints.txt $(STAMP)
	@echo "env: .venv is ready"

quickstart: env
	@$(BIN)/python tools/quickstart.py

# TASK_DATA=FOLDER with bbh/*.json and gsm8k/*.jsonl adds their tasks to the full study.
study: env
	@$(BIN)/python tools/make_teacher.py
	@$(BIN)/python -m tools.study full $(if $(TASK_DATA),--task-data "$(TASK_DATA)")

study-slice: env
	@$(BIN)/python tools/make_teacher.py
	@$(BIN)/python -m tools.study slice

test: env
	$(BIN)/python -m pytest -m "not gpu and not slurm and not slow"

test-full: env
	EKD_TEST_CASES=$${EKD_TEST_CASES:-10000} $(BIN)/python -m pytest -m "not gpu and not slurm"

# Needs Debian's slurm-wlm, munge, libslurm-dev and gcc; skips, saying so, without. Minutes.
test-slurm: env
	$(BIN)/python -m pytest -m "slurm and not slow" tests/slurm

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell .
	$(BIN)/basedpyright

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env
	@for file in tools/bench/*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

# What tools left behind. Runs, data, models and .venv stay.
clean:
	rm -rf build dist htmlcov .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage ekd_nemo.egg-info
	find ekd_nemo tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
