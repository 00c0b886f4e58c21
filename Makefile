# One environment (.venv), pinned by requirements.lock and requirements-dev.lock. `make help` lists the words.
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DOWNLOAD_READY := .venv-download/img2dataset.lock.sha256
ORACLES_READY := .oracles/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PATH := $(abspath $(BIN)):$(PATH)
.DEFAULT_GOAL := help
PAIR_SEED ?= 20
PAIR_TO ?= src/un2clip/sources/pairs/laptop-pair
.PHONY: help setup demo pair test wheel golden same-numbers rooms schema download-env oracles lock ceilings lint kfp-local images docker-e2e pipeline study clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## the environment: .venv with the pinned versions

$(READY): requirements.lock requirements-dev.lock pyproject.toml setup.py
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(PIP) --require-hashes -r requirements.lock -r requirements-dev.lock
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)  ## the whole laptop pipeline through DVC, then the table, the pictures and the MLflow command
	dvc repro
	@un2clip show

# One thread a process: two processes of two threads each would slow each other down fourfold. Three of them on two cores:
# a third of the time a test waits, for a server, a lock or a process that it has started. Files in their order, e2e first:
# xdist would begin with the files of most tests, and end with one process on the longest test.
test: $(READY) lint download-env oracles  ## every test, style and types
	OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

wheel: $(READY)  ## the program without its repository: a wheel, doctor, init and the first stages anywhere; FULL=1: all of it
	tests/wheel.sh

golden: $(READY)  ## write tests/golden/golden.json anew: losses of every method, and hashes of this machine
	python -m tests.golden.golden

rooms: $(READY)  ## draw docs/rooms.svg, the rooms of src/un2clip and what each stands on
	python -m tests.wiring.rooms

schema: $(READY)  ## params.schema.json and its like for editors, and docs/params.md, of the dataclasses and the comments
	python -m tests.wiring.schema

same-numbers: $(READY)  ## REV=main~3: run a small pipeline at that revision and here, and compare every byte of its numbers
	@test -n "$(REV)" || { echo "say which revision to compare with: make same-numbers REV=main~3"; exit 2; }
	python -m tests.same_numbers $(REV)

download-env: $(DOWNLOAD_READY)  ## img2dataset's own environment, for `un2clip download` and its tests

$(DOWNLOAD_READY): src/un2clip/sources/download/img2dataset.lock | $(READY)
	un2clip download
	touch $@

oracles: $(ORACLES_READY)  ## clip-benchmark in a folder of its own, for the tests that compare with it

$(ORACLES_READY): tests/oracles/clip-benchmark.lock | $(READY)
	rm -rf .oracles
	$(PIP) --require-hashes --no-deps --target .oracles -r tests/oracles/clip-benchmark.lock
	touch $@

lock: $(READY)  ## the locks anew, of pyproject.toml; UPGRADE=NAME, or UPGRADE=all, lets go of a version
	python -m tests.wiring.lock $(if $(UPGRADE),--upgrade $(filter-out all,$(UPGRADE)))

ceilings: $(READY)  ## which bounds of pyproject.toml keep us behind newer releases; asks the registry
	python -m tests.wiring.ceilings

lint: $(READY)  ## style and types
	ruff check .
	ruff format --check .
	mypy

kfp-local: $(READY)  ## the compiled pipeline on this machine, by kfp's own local runner
	python -m pipelines.run_local

# The tag is what components/image.py says. TORCH_INDEX: an index of CPU builds of torch, which spares `cpu` 4 GB; pip
# asks it besides. PYTHON: the base, with its digest.
images: VERSION = $(shell python -c "import un2clip; print(un2clip.__version__)")
images: BUILD = docker build --file docker/Dockerfile --network=host --build-arg VERSION=$(VERSION) \
	--build-arg REVISION=$(shell git rev-parse HEAD) $(if $(PYTHON),--build-arg PYTHON=$(PYTHON))
images: CPU = --build-arg PIP_EXTRA_INDEX_URL=$(TORCH_INDEX) --build-arg LOCK=requirements-cpu.lock
images: $(READY)  ## un2clip:VERSION for processors, VERSION-cuda for GPUs, VERSION-download for img2dataset
	$(if $(TORCH_INDEX),python -m tests.wiring.lock --torch-index $(TORCH_INDEX))
	$(BUILD) --target cpu --tag un2clip:$(VERSION) $(if $(TORCH_INDEX),$(CPU)) .
	$(BUILD) --target cuda --tag un2clip:$(VERSION)-cuda .
	$(BUILD) --target download --tag un2clip:$(VERSION)-download .

docker-e2e: $(READY)  ## on Debian, as root: the image, and the pipeline in containers against dvc repro
	tests/docker_e2e.sh

pipeline: $(READY)  ## compile pipelines/un2clip.yaml
	python -m pipelines.un2clip

pair: $(READY)  ## the laptop pair anew: a CLIP and the unCLIP that inverts it (about two hours of one core; goes on)
	OMP_NUM_THREADS=1 un2clip pair --seed $(PAIR_SEED) --overlay configs/laptop-pair.yaml --to $(PAIR_TO)

study: $(READY)  ## all methods over seeds 0-4, UniLIP, and assistants (hours); goes on from the runs that docs/study keeps
	un2clip study --to docs/study/pair
	un2clip study --overlay configs/unilip-laptop.yaml --to docs/study/unilip
	un2clip study --overlay configs/laptop-assistants.yaml --to docs/study/assistants

clean:  ## remove what runs made (the environment and DVC's cache stay)
	rm -rf data/world data/shards data/latents models scores reports local_outputs study
