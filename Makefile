# The only commands anyone types; continuous integration calls them too.
SHELL := /bin/bash
PYTHON ?= $(or $(shell command -v python3.11),python3)
export HEADRACE_HOME ?= $(HOME)/.local/share/headrace
export HEADRACE_ENVS ?= $(HEADRACE_HOME)/envs
APP := $(HEADRACE_ENVS)/app/bin
HEADRACE := ./headrace

.PHONY: run up down status logs envs envs-dev envs-ray lock schema sbom images check browser test bench bench-million
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

sbom: envs-dev ## what each environment is made of, as CycloneDX, in build/sbom
	mkdir -p build/sbom
	for lock in infra/locks/*.txt; do \
		$(APP)/cyclonedx-py requirements $$lock --of JSON -o build/sbom/$$(basename $$lock .txt).cdx.json || exit 1; done

# Where no registry of images is reached: make images BASE=debian  (Debian's packages alone make the base; as root).
# STORAGE is where buildah keeps images, such as STORAGE="--root DIR --runroot DIR --storage-driver vfs".
export BASE STORAGE
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
images: ## the images of the app and of the CPU engine, with buildah; no daemon
	docker/build.sh app headrace/app:$(VERSION)
	docker/build.sh engine-cpu headrace/engine-cpu:$(VERSION)

check: envs-dev ## lint, format, types, import contracts, secrets, schemas
	$(APP)/ruff check .
	$(APP)/ruff format --check .
	$(APP)/pyright --pythonpath $(APP)/python
	PYTHONPATH=$(CURDIR) $(APP)/lint-imports --no-cache
	git ls-files -z -- ':!infra/locks' ':!.secrets.baseline' | xargs -0 $(APP)/detect-secrets-hook --baseline .secrets.baseline
	PYTHONPATH=$(CURDIR) $(APP)/python -m infra.deployments_schema
	$(APP)/check-jsonschema --schemafile examples/workload.schema.json examples/*/workload.yaml
	PYTHONPATH=$(CURDIR) $(APP)/python -m infra.licences
	PYTHONPATH=$(CURDIR) $(APP)/python -m dashboards.grafana.boards --check
	$(APP)/hadolint docker/*.Dockerfile
	$(APP)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(APP)/kubernetes-validate --strict --quiet $(filter-out %/kustomization.yaml,$(wildcard docker/k8s/*.yaml docker/k8s/servers/*.yaml))
	$(APP)/check-jsonschema --schemafile docker/k8s/ray/ray.io_v1.schema.json docker/k8s/ray/*.yaml

# Where CI is set, root's tests may install what clicks through the pages; elsewhere those that lack it are skipped, and say so.
browser:
	@if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && ! command -v chromium google-chrome >/dev/null && command -v apt-get >/dev/null; then \
		(apt-get update -qq && apt-get install -y -qq chromium) >/dev/null 2>&1 || echo "Chromium cannot be installed"; fi

# They wait more than they work: one half beside the other takes little more than half of the time on two cores.
test: envs envs-dev browser ## everything the tests need, then all tests, in two halves side by side
	@export PYTHONPATH=$(CURDIR); said=$$(mktemp); trap 'rm -f "$$said"' EXIT; \
	( $(APP)/python -m pytest tests/unit tests/faults; first=$$?; \
	$(APP)/python -m pytest tests/e2e; exit $$((first | $$?)) ) >"$$said" 2>&1 & half=$$!; \
	$(APP)/python -m pytest tests/integration; other=$$?; \
	wait $$half; half=$$?; cat "$$said"; exit $$((half | other))

bench: envs ## speed in ratios: Headrace, a bare client, curator and distilabel side by side; about a quarter of an hour
	PYTHONPATH=$(CURDIR) $(APP)/python -m benchmarks.run

bench-million: envs ## memory and resume at 1,000,000 rows
	PYTHONPATH=$(CURDIR) $(APP)/python -m benchmarks.run large --rows-large 1000000
