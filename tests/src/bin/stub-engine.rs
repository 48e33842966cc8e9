//! The stub engine as a program; see `rbee_tests::stub`.

use clap::Parser;
use rbee_tests::stub;

fn main() -> anyhow::Result<()> {
    let args = stub::Args::parse();
    let mut builder = match args.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        n => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(n);
            builder
        }
    };
    builder.enable_all().build()?.block_on(stub::run(args))
}
