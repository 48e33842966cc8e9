//! The load generator as a program; see `rbee_tests::load`.

use clap::Parser;
use rbee_tests::load;
use tokio::task::LocalSet;

fn main() -> anyhow::Result<()> {
    let args = load::Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = LocalSet::new().block_on(&runtime, load::run(args))?;
    println!("{report}");
    Ok(())
}
