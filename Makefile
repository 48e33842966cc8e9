# What a person does with this repository; `make` lists it.

.DEFAULT_GOAL := help
.PHONY: help quickstart run test chaos bench bench-store bench-fleet bench-lists lint fmt doc clean

# The prompt goes on as it was typed: in the environment, past make's and the shell's expansions.
export RBEE_PROMPT := $(value PROMPT)
unexport PROMPT
MAKEOVERRIDES :=

# Without its headers, OpenSSL is built along, which takes perl and some minutes.
OPENSSL := $(shell pkg-config --exists openssl 2>/dev/null || \
	echo --features rbee-orchestrator/vendored-openssl)
PROGRAMS := -p queen-rbee -p rbee-hive $(OPENSSL)
# For a first look: built in less than half of a release's time.
QUICK := echo "building queen-rbee and rbee-hive: some minutes the first time" >&2; \
	cargo build --profile quick $(PROGRAMS)
# All at once, so that no package is built twice with other features.
BENCHES := cargo build --release $(PROGRAMS) -p rbee-tests --bins
WITH_PARTS := . .cache/parts.env &&

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \2/p' Makefile | awk '{ printf "  %s %-11s", $$1, $$2; $$1 = $$2 = ""; print }'

quickstart: ## Ask a real model a question: make quickstart [PROMPT="…"]
	@tests/parts.sh
	@$(QUICK)
	@$(WITH_PARTS) python3 examples/quickstart.py

run: ## Leave a queen running until Ctrl-C: make run [PORT=8080]
	@tests/parts.sh
	@$(QUICK)
	@$(WITH_PARTS) PORT=$(PORT) python3 examples/quickstart.py run

test: ## Run all tests, those with the real engine and model too
	tests/parts.sh --tests
	cargo build --workspace --bins --examples $(OPENSSL)
	$(WITH_PARTS) RBEE_TEST_BUILT=1 cargo test --workspace $(OPENSSL)

chaos: ## Kill the queen under load, and see what she keeps: make chaos [ARGS="--kills 1000"]
	cargo build --workspace --bins
	RBEE_TEST_BUILT=1 $${CARGO_TARGET_DIR:-target}/debug/chaos $(ARGS)

bench: ## Compare the queen with nginx and no proxy: make bench [ARGS="--only a"]
	$(BENCHES)
	$${CARGO_TARGET_DIR:-target}/release/bench $(ARGS)

bench-store: ## Measure how many jobs the store takes in: make bench-store [ARGS=--quick]
	$(BENCHES)
	$${CARGO_TARGET_DIR:-target}/release/bench-store $(ARGS)

bench-fleet: ## Measure hives on other machines: make bench-fleet [ARGS=--quick]
	@tests/parts.sh --tests
	$(BENCHES)
	$(WITH_PARTS) RBEE_TEST_BUILT=1 $${CARGO_TARGET_DIR:-target}/release/bench-fleet $(ARGS)

bench-lists: ## Measure lists of many tasks and look-ups: make bench-lists [ARGS=--quick]
	$(BENCHES)
	RBEE_TEST_BUILT=1 $${CARGO_TARGET_DIR:-target}/release/bench-lists $(ARGS)

lint: ## Check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(OPENSSL) -- -D warnings
	cargo clippy -p rbee-orchestrator --no-default-features -- -D warnings
	cargo clippy -p rbee-orchestrator --no-default-features --features http -- -D warnings

fmt: ## Format the code
	cargo fmt --all

doc: ## Build the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps $(OPENSSL)

clean: ## Remove what was built and fetched
	cargo clean
	rm -rf .cache
