# `make help` lists what there is. All of it runs in .venv, which is made when needed.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python on the path that kdlite supports; `make PYTHON=python3.12 ...` to choose.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	"$$p" -c '$(SUPPORTED)' 2>/dev/null && echo "$$p" && break; done)
ARGS ?= --out out
# A file stays together, as its tests share models; those of few tests, some of which
# take long, do not come last.
IN_PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo dataset test android docs notebooks lint format

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) dataset ## distil on Fashion-MNIST, ten minutes (ARGS="--quick --out DIR")
	$(BIN)/kdlite demo $(ARGS)

test: $(STAMP) ## run all tests (ARGS="tests/test_datasets.py -x")
	$(BIN)/pytest $(if $(filter command line,$(origin ARGS)),$(ARGS),$(IN_PARALLEL))

android: $(STAMP) dataset ## prove the Android app alone, as `make test` does where Java is
	KDLITE_ANDROID_REQUIRED=1 $(BIN)/pytest -s tests/test_android_demo.py

docs: $(STAMP) ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or: $(BIN)/mkdocs serve"

notebooks: $(STAMP) dataset ## run the notebooks anew, a quarter of an hour (ARGS="notebooks/01*")
	$(BIN)/python notebooks/run.py $(if $(filter command line,$(origin ARGS)),$(ARGS))

lint: $(STAMP) ## check style and types, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the code in its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "kdlite needs Python 3.11, 3.12 or 3.13." \
		"Received: no such python3 on the PATH. Install one, or name it:" \
		"make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/pip || "$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); \
		echo "No virtual environment could be made with $(PYTHON)." \
		"On Debian and Ubuntu: apt-get install -y python3-venv" >&2; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Fashion-MNIST, from Debian where nothing nearer has it. Where this fails the demo goes on:
# Keras downloads the files, or says why it cannot.
dataset: $(STAMP)
	@$(BIN)/python -c 'import sys; from kdlite import datasets; \
		sys.exit(datasets.find_fashion_mnist() is None)' \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& echo "Fashion-MNIST is not here: installing Debian's dataset-fashion-mnist." \
		&& apt-get update -q && apt-get install -y -q dataset-fashion-mnist; } \
	|| echo "Fashion-MNIST is not here, and apt could not bring it. On Debian:" \
		"apt-get install dataset-fashion-mnist. Or name a folder with the four .gz files:" \
		"KDLITE_DATA_DIR=/path/to/fashion-mnist. Trying Keras's download." >&2
