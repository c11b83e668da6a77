# make demo      the whole path on this machine, in under ten minutes
# make test      linters, types, and the tests that need no Docker engine
# make test-long the rest of them: one case of each kind is in `make test`, these take long or show more of the same
# make images    both images, built and run; needs a Docker engine
# make bench     the benchmarks
# make anywhere  the checks of infra/sky by SkyPilot, in an environment of its own
# make up        the team server on this machine: object store, MLflow, and passwords for them; needs Docker Compose
# make soak      the tests that kill and mutilate at random, many times over, and those of large amounts

PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --ignore=tests/containers
COMPOSE ?= docker compose -f infra/compose.yaml

.PHONY: demo test test-long lint images bench soak anywhere up clean

demo: .venv/installed
	$(BIN)/python -m training demo

test: .venv/installed lint
	$(PYTEST) -m 'not long'

test-long: .venv/installed
	$(PYTEST) -m long

images: .venv/installed
	$(BIN)/python -m pytest tests/containers

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m pytest -q -s tests/benchmarks/bench_*.py

soak: .venv/installed
	$(BIN)/python -m pytest --soak -k 'random or hundred_thousand' --ignore=tests/containers

anywhere: .venv/installed .sky/installed
	$(BIN)/python -m pytest tests/infra

.sky/installed:
	$(PYTHON) -m venv .sky
	.sky/bin/pip install --quiet skypilot==0.14.1
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Stemwright needs Python 3.11 or later: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

up: infra/.env
	$(COMPOSE) up -d

infra/.env:
	docker build -f Dockerfile.train -t stemwright-train .
	docker run --rm --user "$$(id -u):$$(id -g)" -v "$(CURDIR)/infra:/infra" --entrypoint python stemwright-train /infra/make_secrets.py /infra

clean:
	rm -rf .venv .sky demo
