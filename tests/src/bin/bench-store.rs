//! The store's benchmark as a program; see `rbee_tests::bench_store`.

use clap::Parser;
use rbee_tests::bench_store;

fn main() -> anyhow::Result<()> {
    bench_store::run(&bench_store::Args::parse())
}
