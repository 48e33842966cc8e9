//! The benchmark as a program; see `rbee_tests::bench_fleet`.

use clap::Parser;
use rbee_tests::bench_fleet;

fn main() -> anyhow::Result<()> {
    bench_fleet::run(&bench_fleet::Args::parse())
}
