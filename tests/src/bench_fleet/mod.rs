//! `make bench-fleet`: what it costs to have hives on other machines, and a Markdown table of what
//! came out.
//!
//! The machines are network namespaces on this one, so there is no distance between them: the
//! numbers say what the queen, SSH and the hives take, not what a network takes.

mod cold;
mod dying;
mod many;
mod relay;

use crate::bench::compared::{self, Row};
use crate::bench::machine;
use crate::harness::daemon::raise_open_files;
use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

/// Measures hives on other machines.
#[derive(Parser, Debug)]
pub struct Args {
    /// One short round, only to show that everything works
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these
    #[arg(long, value_delimiter = ',', default_value = "cold,relay,dying,many")]
    only: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From the registration of a machine to its first token
    Cold,
    /// Streams through the tunnel beside plain HTTP
    Relay,
    /// How soon a dead hive is noticed
    Dying,
    /// What the monitoring of 200 hives costs
    Many,
}

/// Measures, and prints the table.
///
/// # Errors
/// When something does not start, or a request goes wrong: the numbers mean nothing then.
pub fn run(args: &Args) -> Result<()> {
    raise_open_files();
    println!("{}\n", machine()?);
    let rounds = if args.quick { 1 } else { args.rounds };
    ensure!(rounds > 0, "--rounds must be at least 1");
    let mut rows: Vec<Row> = Vec::new();
    for part in &args.only {
        for round in 0..rounds {
            eprintln!("bench: {part:?}, round {} of {rounds}", round + 1);
            let found = match part {
                Part::Cold => cold::measure()?,
                Part::Relay => relay::measure(args.quick)?,
                Part::Dying => dying::measure()?,
                Part::Many => many::measure(args.quick)?,
            };
            compared::add(&mut rows, found);
        }
    }
    println!("{}", compared::table(&rows));
    if args.quick {
        println!("One short round: it shows that everything works, and no speed.");
    }
    Ok(())
}
