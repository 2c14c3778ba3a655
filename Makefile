# Every target makes .venv and installs what it needs first. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Test workers: one more than there are cores, since tests wait for processes too; at most five (1 GB of memory each).
WORKERS = --numprocesses $(shell $(BIN)/python -c 'import os; print(min(5, os.cpu_count() + 1))') --dist worksteal
# DeepSpeed's launcher finds its programs on PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## list of targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# An older Python is refused before anything is installed; so is a .venv that one has made.
OLD := import sys; seen = ".".join(map(str, sys.version_info[:3])); \
	sys.version_info >= (3, 11) or sys.exit( \
	"✗ 需要 Python 3.11 以上，這是 %s，請用 %s (Python 3.11 or newer is needed)" % (seen, sys.argv[1]))
PYTHONS := 3.11 3.12 3.13  # the promise of README.md

$(VENV)/.scripts: requirements.txt
	@$(PYTHON) -c '$(OLD)' 'make PYTHON=python3.12'
	@! test -x $(BIN)/python || $(BIN)/python -c '$(OLD)' 'rm -r $(VENV)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(wildcard requirements-*.txt) $(VENV)/.scripts
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# The pages of a report are tested in a browser: Chromium, Chrome or Edge, from apt where there is none.
$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/python tests/browser.py || ! command -v apt-get || \
		{ $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends chromium; }
	$(BIN)/python tests/browser.py
	touch $@

install: $(VENV)/.scripts ## make .venv with what the two scripts need

demo: $(VENV)/.scripts ## train and evaluate a small model on the built-in exam, then ask it a question
	$(BIN)/python fine_tuning_llm.py --demo
	$(BIN)/python inference.py --question "日本的首都是哪一座城市？" --options "A:首爾 B:東京 C:河內 D:曼谷"

test: $(VENV)/.browser ## all tests but those of `make nightly`
	$(BIN)/python -m pytest $(WORKERS)

check: $(VENV)/.browser ## lint, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(WORKERS) -m "not slow and not nightly"

nightly: $(VENV)/.browser ## the tests that repeat a law for many model families, engines and inputs
	$(BIN)/python -m pytest $(WORKERS) -m nightly
	MANY=10 $(BIN)/python -m pytest $(WORKERS) tests/robustness/test_properties.py

# From the index's metadata: nothing is installed. Four packages have no wheel anywhere; they are built on any Python.
pins: $(VENV)/.dev ## check that the pinned packages exist for every supported Python
	@for version in $(PYTHONS); do \
		$(BIN)/uv pip compile --quiet --no-python-downloads --python-version $$version --output-file /dev/null \
			--only-binary :all: $(foreach name,deepspeed jieba fontmeta rouge-score,--no-binary $(name)) requirements.txt \
			&& echo "Python $$version: ok" || exit 1; \
	done

# pyenv has a shim for every version it knows, which fails unless that version is switched on: so each is tried.
pythons: ## `make check` on every supported Python that is here, each in an environment of its own
	@for version in $(PYTHONS); do \
		python=; \
		for found in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python; do \
			$$found -c '' 2>/dev/null && python=$$found && break; \
		done; \
		test -n "$$python" || { echo "Python $$version: not here"; continue; }; \
		$(MAKE) VENV=.venv-$$version PYTHON=$$python check || exit 1; \
	done

bench: $(VENV)/.dev ## measure accuracy, time and memory: demo, 100,000 questions, response loss, adapting, speed beside others
	$(BIN)/python benchmarks/demo_seeds.py
	$(BIN)/python benchmarks/file_of_questions.py
	$(BIN)/python benchmarks/response_only.py
	$(BIN)/python benchmarks/adapting.py
	$(BIN)/python benchmarks/speed.py

.venv-parity/.done: benchmarks/requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet -r benchmarks/requirements-parity.txt
	touch $@

EXAM ?=
parity: $(VENV)/.scripts .venv-parity/.done ## hold prompts and log-likelihoods against lm-evaluation-harness itself (EXAM=folder)
	$(BIN)/python benchmarks/parity.py --lm_eval .venv-parity/bin/python $(if $(EXAM),--exam $(EXAM))

.PHONY: help install demo test check nightly pins pythons bench parity
