# make setup   what a user needs, in .venv; TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch for CPUs
# make demo    from nothing to a trained Backpack, its samples, its senses and a page of them, in minutes on a CPU
# make dev     setup, and the tools for changing nanobackpack
# make test    every check: lint, format, types, tests
# make notebooks   those in notebooks/, run in short, a minute or two
# make docs    the reference of all modules, in site/
# make screenshots   the explorer's pages, in docs/; it needs chromium
# make bench   speed and memory next to the plain formula and to a GPT, a quarter of an hour

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Where to take PyTorch from; empty: PyPI, whose build for Linux brings 3 GB of CUDA.
TORCH_INDEX ?=
# A copy of Tiny Shakespeare beside the repository saves the download.
SHAKESPEARE := $(wildcard ../shared/data/tinyshakespeare/input.txt)

.PHONY: setup dev demo test lint types notebooks docs screenshots bench clean

setup: $(VENV)/installed
dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) -e '.[data,analysis]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev,trackio]'
	touch $@

demo: setup
	@if $(BIN)/python data/shakespeare_char/prepare.py $(if $(SHAKESPEARE),--input=$(SHAKESPEARE)); then \
	  data=shakespeare_char; \
	else \
	  echo "Shakespeare cannot be downloaded: the demo trains on Python's own help texts instead."; \
	  data=pydocs_char; $(BIN)/python data/pydocs_char/prepare.py; \
	fi && \
	$(BIN)/python train.py config/demo.py --dataset=$$data $(DEMO_FLAGS) && \
	$(BIN)/python sample.py --out_dir=out-demo --num_samples=2 --max_new_tokens=300 && \
	$(BIN)/python experiments/sense_vector.py --out_dir=out-demo && \
	$(BIN)/python -m nanobackpack report out-demo/report.html --out_dir=out-demo && \
	echo && echo "Next: open out-demo/report.html, then $(BIN)/python sample.py --out_dir=out-demo --start='The ', and README.md."

test: dev lint types
	$(BIN)/python -m pytest -n 3

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

notebooks: dev
	$(BIN)/python -m pytest notebooks -n 0

# A page for each module of each room, but for the programs.
ROOMS := $(filter-out nanobackpack/commands/ nanobackpack/bench/,$(dir $(wildcard nanobackpack/*/__init__.py)))
docs: dev
	$(BIN)/pdoc nanobackpack $(patsubst nanobackpack/%/,nanobackpack.%,$(ROOMS)) \
	  nanobackpack.config nanobackpack.errors nanobackpack.runtime -o site

screenshots: dev
	$(BIN)/python docs/screenshots.py

bench: setup
	$(BIN)/python bench.py

clean:
	rm -rf $(VENV) out-demo site .mypy_cache .pytest_cache .ruff_cache .hypothesis
