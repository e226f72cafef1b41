# make race   set up, race a few architectures on bundled real data, show the leaderboard and the report
# make test   set up, run the tests
# make lint   set up, check style
# make parity an environment of its own (some 1.5 GB): mixers and ops beside transformers, xlstm and fla, same results

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PARITY := .venv-parity
PARITY_STAMP := $(PARITY)/installed

.PHONY: race test lint parity clean setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "formwright needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $(STAMP)

race: setup
	$(BIN)/formwright race attention mamba2 gated_deltanet '2*(gla + swiglu) >> attention(position=rope) + swiglu' \
	  --data python-source --budget 4m --size 500k

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(PARITY_STAMP)
	FORMWRIGHT_PARITY=1 OMP_NUM_THREADS=1 $(PARITY)/bin/python -m pytest tests/parity

# torch and torchvision are a pair of versions; xlstm and mambapy ask for more than what is used of them needs.
$(PARITY_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PARITY)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(PARITY)/bin/python -m pip install --quiet --no-deps xlstm mambapy
	touch $(PARITY_STAMP)

clean:
	rm -rf $(VENV) $(PARITY) build *.egg-info
