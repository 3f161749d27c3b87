# `make run` and `make test` each do all of their own set-up, and do it again only when a requirements file changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test coverage lint format accuracy documents bench screenshots pictures programs gpu-check clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The last line makes the command will-it-fit; what it needs is there by then.
$(VENV)/.installed: requirements.txt requirements-plan.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

run: $(VENV)/.installed
	$(BIN)/python -m pages.shared.server

# Traces take one core for minutes, so they run beside the others, and the browser tests after them. Those start servers
# and a browser of their own, so they get a pytest of their own.
test: $(VENV)/.installed-dev
	@(failed=0; for part in trace e2e; do $(BIN)/python -m pytest tests/$$part || failed=1; done; exit $$failed) \
		>$(VENV)/beside.log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest tests --ignore tests/e2e --ignore tests/trace; others=$$?; \
	wait $$beside; beside=$$?; cat $(VENV)/beside.log; test $$beside -eq 0 -a $$others -eq 0

# Which lines the tests below unit/ and ui/ never run. What only a browser, a worker or a GPU runs counts as missing.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/unit tests/ui --cov --cov-report=term-missing:skip-covered -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Prints how far off every run that ships is, and fails where that is more than it should be.
accuracy: $(VENV)/.installed-dev
	$(BIN)/python -m tests.accuracy

# Writes anew what the documents show of the output of commands. CI does not: its tests compare what is committed.
documents: $(VENV)/.installed-dev
	$(BIN)/python -m tests.documents

bench: $(VENV)/.installed-dev
	$(BIN)/python -m tests.bench

screenshots: $(VENV)/.installed-dev
	$(BIN)/python -m tests.bench.screenshots

pictures: $(VENV)/.installed-dev
	$(BIN)/python -m tests.bench.pictures

# For new pinned versions: the files that ship are made from what is installed.
programs: $(VENV)/.installed
	rm -f planner/programs/sd15.json planner/programs/sd15.bin
	$(BIN)/python -m planner compile

# Proves the planner on this machine's GPU within so many minutes; started again with the same OUT it goes on.
MINUTES ?= 8
gpu-check: $(VENV)/.installed
	$(BIN)/python -m cache.gpu_check "$(OUT)" --minutes "$(MINUTES)" $(if $(DEVICE),--device "$(DEVICE)") $(if $(LIMIT),--limit "$(LIMIT)")

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
