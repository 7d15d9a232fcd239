# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
# pip alone knows no order: torch first, so that nothing else chooses its version.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two tests at a time, each on one core: a file's tests stay together, because they share what they prepare.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
NPROC ?= 1
# Two wheels own the module faiss: the one for GPUs where there is one. FAISS=cpu where that does not suit.
FAISS ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

.PHONY: help train test test-slow test-all test-floor bench headline peers evidence genpoe scratch lint clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo "no venv module: on Debian and Ubuntu, apt-get install python3-venv" >&2; rm -rf .venv; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	$(PIP) torch
	$(PIP) setuptools wheel ninja
	$(PIP) --no-build-isolation -e '.[$(FAISS),offline,report,test,bench,lint]'
	@touch $@

train: .venv/installed  ## the main job: train, evaluate and index; NPROC=2 for two processes, ARGS='...' for flags
	$(BIN)/torchrun --standalone --nproc-per-node $(NPROC) -m moe_retrieval.train $(ARGS)

test: .venv/installed  ## the test suite, without what is marked slow
	$(PYTEST) -m 'not slow'

test-slow: .venv/installed  ## what is marked slow: each kernel's compilation, killed and resumed runs, real collections
	$(PYTEST) --dist worksteal -m slow  # the longest ones are of a few files

test-all: test test-slow  ## both

.venv-floor/installed: pyproject.toml setup.py constraints.txt .ci/floor.py
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python .ci/floor.py
	@touch $@

test-floor: .venv-floor/installed  ## the test suite with the oldest versions that pyproject.toml allows; ARGS='...' for some
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -n 2 --dist loadfile -m 'not slow' $(ARGS)

bench: .venv/installed  ## memory, throughput and latency against the eager baseline and the peers
	$(BIN)/python -m pytest bench/ --benchmark $(ARGS)

headline: .venv/installed  ## the README's table of speed and memory, over five processes a case
	$(BIN)/python -m bench.headline $(ARGS)
	$(BIN)/python -m bench.table

peers: .venv/installed  ## ONNX Runtime, OpenVINO and CTranslate2, which python -m bench.cpu_encoder compares with
	$(PIP) onnx onnxruntime openvino nncf ctranslate2

evidence: .venv/installed  ## variants trained alike on docs, with their controls: bench/results/evidence.md; ARGS='--seeds 3'
	$(BIN)/python -m bench.evidence $(ARGS)

genpoe: .venv/installed  ## generated passage experts on made-up facts: bench/results/genpoe.json, docs/genpoe.md; ARGS='...'
	$(BIN)/python -m bench.genpoe $(ARGS)

scratch: .venv/installed  ## a retriever from nothing: bench/results/scratch.json, docs/scratch.md; ARGS='...'
	$(BIN)/python -m bench.scratch $(ARGS)

lint: .venv/installed  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv and everything that was built
	rm -rf .venv .venv-floor build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
