# One environment (.venv), pinned by requirements.lock. `make help` lists the words.
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
export PATH := $(abspath $(BIN)):$(PATH)
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint kfp-local pipeline study clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the environment: .venv with the pinned versions

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)  ## the whole laptop pipeline through DVC, then the table, the pictures and the MLflow command
	dvc repro
	@un2clip show

# One thread a process: two processes of two threads each would slow each other down fourfold.
test: $(READY) lint  ## every test, style and types
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## style and types
	ruff check .
	ruff format --check .
	mypy

kfp-local: $(READY)  ## the compiled pipeline on this machine, by kfp's own local runner
	python -m pipelines.run_local

pipeline: $(READY)  ## compile pipelines/un2clip.yaml
	python -m pipelines.un2clip

study: $(READY)  ## all methods over seeds 0-4 (about two hours); tables for docs/LOG.md, files for docs/study
	un2clip study

clean:  ## remove what runs made (the environment and DVC's cache stay)
	rm -rf data/world data/shards data/latents models scores reports local_outputs study
