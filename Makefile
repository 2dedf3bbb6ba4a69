# make serve: everything on a fresh machine, up to a running server.   make test: the whole test suite.
# Two processes run the tests, each whole modules; threads that wait for work leave the cores to the others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile
READY := $(VENV)/.installed

.PHONY: serve test test-fast test-e2e fuzz faults load sample-data accuracy clean

serve: sample-data
	$(BIN)/python main.py serve

test: $(READY)
	$(BIN)/python -m ruff check .
	$(PYTEST)

test-fast: $(READY)
	$(PYTEST) -m "not server"

test-e2e: $(READY)
	$(BIN)/python -m pytest tests/serving/test_ohif.py tests/serving/test_ohif_annotate.py tests/serving/test_ohif_folder.py tests/serving/ohif_live tests/deploy/test_path.py -rs

fuzz: $(READY)
	$(BIN)/python tests/fuzz/run.py

faults: $(READY)
	$(BIN)/python benchmarks/faults.py

load: $(READY)
	$(BIN)/python benchmarks/load.py

sample-data: $(READY)
	$(BIN)/python main.py sample-data

accuracy: sample-data
	$(BIN)/python benchmarks/accuracy.py --data sample-data

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) sample-data/nifti sample-data/dicom sample-data/reference sample-data/dataset.json
