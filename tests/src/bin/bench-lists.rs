//! The benchmark of lists as a program; see `rbee_tests::bench_lists`.

use clap::Parser;
use rbee_tests::bench_lists;

fn main() -> anyhow::Result<()> {
    bench_lists::run(&bench_lists::Args::parse())
}
