//! The crash matrix as a program; see `rbee_tests::chaos`.

use clap::Parser;
use rbee_tests::chaos;

fn main() -> anyhow::Result<()> {
    println!("{}", chaos::run(&chaos::Args::parse())?);
    Ok(())
}
