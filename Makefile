# The first target is what a bare `make` shows.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test up check format gpu bench bench-api bench-flood bench-claims bench-neighbours bench-residency chaos fuzz invariance shuffle simulate screenshots images audit clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## Install, start the embedded farm, render one picture, stop
	@$(BIN)/farm demo

# Four on two cores: much of the time tests wait for other processes.
test: $(DEV_STAMP) ## Install what tests need and run them all on the real engines
	@$(BIN)/python -m tests.packages
	@$(BIN)/python -m pytest --numprocesses 4 --dist worksteal

up: $(STAMP) ## Run the embedded farm until Ctrl-C
	@$(BIN)/farm up

check: $(DEV_STAMP) ## Format, lint, types, import contracts; known vulnerabilities where a service answers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m tests.audit

bench: $(DEV_STAMP) ## Time the engine against a bare pipeline; BENCH="--device cuda" for a GPU
	@$(BIN)/python -m tests.bench $(BENCH)

gpu: $(DEV_STAMP) ## On a machine with a GPU: prove what only a GPU can show, then time it (under 20 minutes)
	@$(BIN)/python -m pytest -n 0 -rs -o timeout=900 tests/gpu; status=$$?; \
		$(BIN)/python -m tests.bench --device cuda $(BENCH) && exit $$status

bench-api: $(DEV_STAMP) ## Time submits, first steps and notifications with a model that does nothing
	@$(BIN)/python -m tests.bench.api $(BENCH)

bench-flood: $(DEV_STAMP) ## Pour 50,000 submits into a farm that renders; what becomes of its memory and its renders
	@$(BIN)/python -m tests.bench.flood $(BENCH)

bench-claims: $(DEV_STAMP) ## Time claims, heartbeats and rescues with 1,000,000 queued rows and 1,000 workers; the plan of a claim
	@$(BIN)/python -m tests.bench.claims $(BENCH)

bench-neighbours: $(DEV_STAMP) ## Time one client's use of the farm beside another that misbehaves in every way
	@$(BIN)/python -m tests.bench.neighbours $(BENCH)

bench-residency: $(DEV_STAMP) ## Time 40 checkpoints on two gpu workers against one, and swaps against plain copies; what memory they take
	@$(BIN)/python -m tests.bench.residency $(BENCH)

chaos: $(DEV_STAMP) ## Break the farm 200 times under 10,000 jobs and prove that nothing is lost; CHAOS="--seed 2"
	@$(BIN)/python -m tests.chaos $(CHAOS)

fuzz: $(DEV_STAMP) ## Send 200 requests made up from the OpenAPI document to each operation; FUZZ=1000 for more
	@FUZZ_EXAMPLES=$(or $(FUZZ),200) $(BIN)/python -m pytest -n 0 -o timeout=7200 tests/integration/api/test_fuzz.py

invariance: $(DEV_STAMP) ## Render 400 images of every kind alone and in company, and compare them; INVARIANCE=1000 for more
	@INVARIANCE_IMAGES=$(or $(INVARIANCE),400) $(BIN)/python -m pytest -n 0 -o timeout=7200 tests/integration/engine/test_invariance.py

shuffle: $(DEV_STAMP) ## Render 1,000 jobs over 40 checkpoints in random order and tell each picture's by its colours
	@SHUFFLED_JOBS=1000 $(BIN)/python -m pytest -n 0 -o timeout=7200 tests/integration/worker/test_checkpoints.py -k random_order

simulate: $(DEV_STAMP) ## Play a day of bursts on up to 1,000 machines, and 20 that share 300 checkpoints; SIMULATE="--seed 2"
	@$(BIN)/python -m tests.simulate $(SIMULATE)
	@$(BIN)/python -m tests.simulate.residency $(RESIDENCY)

screenshots: $(DEV_STAMP) ## Show the console's pages at three sizes, dark and light, in .farm/screenshots
	@$(BIN)/python -m tests.screenshots

images: $(DEV_STAMP) ## Install what each Dockerfile does, in a clean environment, and import what it starts
	@$(BIN)/python -m tests.images $(IMAGES)

audit: $(DEV_STAMP) ## Look up known vulnerabilities of the pinned versions, where a service of them answers
	@$(BIN)/python -m tests.audit

format: $(DEV_STAMP) ## Rewrite the code to the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove the environment, caches and the embedded farm's data
	rm -rf $(VENV) .farm .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; call make with PYTHON=python3.12, say" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

# torch first and alone: its plain pinned version resolves to the build that the index offers for this machine.
$(STAMP): pyproject.toml constraints.txt | $(VENV)
	@echo "Installing the farm into $(VENV); the first time takes a few minutes ..."
	@$(PIP) torch
	@$(PIP) --editable ".[api,client,worker,standalone]"
	@touch $@

$(DEV_STAMP): $(STAMP)
	@$(PIP) --editable ".[api,client,worker,standalone,dev]"
	@touch $@
