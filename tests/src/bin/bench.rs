//! The benchmark as a program; see `rbee_tests::bench`.

use clap::Parser;
use rbee_tests::bench;

fn main() -> anyhow::Result<()> {
    bench::run(&bench::Args::parse())
}
