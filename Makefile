# What a person does with this repository; `make` lists it.

.DEFAULT_GOAL := help
.PHONY: help quickstart run test chaos bench bench-store lint fmt doc clean

# The prompt goes on as it was typed: in the environment, past make's and the shell's expansions.
export RBEE_PROMPT := $(value PROMPT)
unexport PROMPT
MAKEOVERRIDES :=

RELEASE := cargo build --release -p queen-rbee -p rbee-hive
WITH_PARTS := . .cache/parts.env &&

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' Makefile | awk '{ printf "  %s %-11s", $$1, $$2; $$1 = $$2 = ""; print }'

quickstart: ## Ask a real model a question: make quickstart [PROMPT="…"]
	@tests/parts.sh
	@$(RELEASE)
	@$(WITH_PARTS) python3 examples/quickstart.py

run: ## Leave a queen running until Ctrl-C: make run [PORT=8080]
	@tests/parts.sh
	@$(RELEASE)
	@$(WITH_PARTS) PORT=$(PORT) python3 examples/quickstart.py run

test: ## Run all tests, those with the real engine and model too
	tests/parts.sh --tests
	cargo build --workspace --bins
	$(WITH_PARTS) RBEE_TEST_BUILT=1 cargo test --workspace

chaos: ## Kill the queen under load, and see what she keeps: make chaos [ARGS="--kills 1000"]
	cargo build --workspace --bins
	RBEE_TEST_BUILT=1 $${CARGO_TARGET_DIR:-target}/debug/chaos $(ARGS)

bench: ## Compare the queen with nginx and no proxy: make bench [ARGS="--only a"]
	cargo build --release -p queen-rbee -p rbee-tests --bins
	$${CARGO_TARGET_DIR:-target}/release/bench $(ARGS)

bench-store: ## Measure how many jobs the store takes in: make bench-store [ARGS=--quick]
	cargo build --release -p rbee-tests --bin bench-store
	$${CARGO_TARGET_DIR:-target}/release/bench-store $(ARGS)

lint: ## Check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy -p rbee-orchestrator --no-default-features -- -D warnings

fmt: ## Format the code
	cargo fmt --all

doc: ## Build the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .cache
