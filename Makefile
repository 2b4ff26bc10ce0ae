# make book   install, execute every notebook, render the book into _build/html
# make lab    install, and open the notebooks in JupyterLab
# make pdf    print the book into _build/book.pdf; needs Chromium
# make test   lint, types, the book with warnings as errors, unit tests, every notebook against its stored outputs
#
# All take these, as `make book NAME=value` or from the environment:
#   PYTHON       the interpreter that .venv is made with (3.11 or later)                     python3
#   TORCH_INDEX  package index with the PyTorch build to use; empty: the one that PyPI has
#   JOBS         notebooks and tests that run at a time, each with one thread                2
#   VBANK_DATA   folder with data sets on this machine
#   VBANK_SCALE  cpu or gpu                                                                  cpu

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' requirements.lock)

# A notebook runs in its own folder: a relative path would not lead there.
ifneq ($(VBANK_DATA),)
override VBANK_DATA := $(or $(shell cd '$(VBANK_DATA)' 2>/dev/null && pwd),$(error VBANK_DATA: no folder '$(VBANK_DATA)'))
export VBANK_DATA
endif

export JOBS
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help book lab pdf test
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

book: $(VENV)/installed
	@$(BIN)/python scripts/book.py

# JupyterLab is no part of the pins: nothing here imports it. Those of the pins stay as they are.
lab: $(VENV)/installed
	@test -x $(BIN)/jupyter-lab || $(PIP) install 'jupyterlab>=4,<5' --constraint requirements.lock
	@$(BIN)/jupyter-lab book/index.ipynb

pdf: book
	@$(BIN)/python scripts/pdf.py

# Tests ask nothing of the Hugging Face Hub; HF_HUB_OFFLINE=0 lets them.
test: export HF_HUB_OFFLINE ?= 1
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/book.py --committed
	$(BIN)/pytest tests book -n $(JOBS) --dist loadfile --nbval --nbval-sanitize-with tests/book/nbval.cfg --nbval-cell-timeout 900 --durations 15

# The environment is made again when the pins, the package's metadata or the chosen PyTorch change.
$(VENV)/installed: requirements.lock pyproject.toml $(if $(TORCH_INDEX),$(VENV)/torch-index)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: '$(PYTHON)' is not Python 3.11 or later; name one that is: make book PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(if $(TORCH_INDEX),$(PIP) install --no-deps --force-reinstall --index-url $(TORCH_INDEX) $(TORCH))
	$(PIP) install -r requirements.lock $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/torch-index: FORCE
	@mkdir -p $(VENV)
	@echo '$(TORCH_INDEX)' | cmp -s - $@ || echo '$(TORCH_INDEX)' > $@

.PHONY: FORCE
FORCE:
