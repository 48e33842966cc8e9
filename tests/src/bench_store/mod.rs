//! `make bench-store`: whole lives of jobs through the store, by as many producers as may wait at
//! once, and a Markdown table of what came out.
//!
//! A cycle is what an asynchronous task costs: its submission and its ending are each answered when
//! they are durable, its dispatch goes through the same writer and nobody waits for it.

mod lives;
mod table;

use crate::bench::machine;
use anyhow::{Context, Result};
use clap::Parser;
use lives::{Way, cycles_per_second, sync_time};
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::Row;

/// Compares committing many steps together with a transaction for each.
#[derive(Parser, Debug)]
pub struct Args {
    /// One short round, only to show that everything works
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement takes, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only with so many producers
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    producers: Vec<usize>,
    /// Only in these ways
    #[arg(long, value_delimiter = ',', default_value = "single,full,normal")]
    ways: Vec<Way>,
    /// A folder on the disk that is measured; by default, where this program stands
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Measures, and prints the table.
///
/// # Errors
/// When the store fails, or has not counted every job.
pub fn run(args: &Args) -> Result<()> {
    let here = std::env::current_exe()?;
    let here = here.parent().context("this program stands in a folder")?;
    let folder = args.folder.as_deref().unwrap_or(here);
    let (rounds, time) = match args.quick {
        true => (1, Duration::from_millis(300)),
        false => (args.rounds, Duration::from_secs(args.seconds)),
    };
    println!("{}; {}\n", machine()?, syncs(folder)?);
    let mut rows: Vec<Row> = args.producers.iter().map(|n| Row::new(*n)).collect();
    for round in 0..rounds {
        for row in &mut rows {
            // Each round begins with another way, so that none always has the same neighbour.
            for turn in 0..args.ways.len() {
                let way = args.ways[(round + turn) % args.ways.len()];
                let producers = row.producers;
                eprintln!(
                    "bench: round {} of {rounds}: {producers} producers, {way:?}",
                    round + 1
                );
                row.note(way, cycles_per_second(folder, way, producers, time)?);
            }
        }
    }
    println!("{}", table::table(&rows));
    if args.quick {
        println!("One short round: it shows that everything works, and no speed.");
    }
    Ok(())
}

/// What a sync alone takes, as nothing durable can be faster.
fn syncs(folder: &Path) -> Result<String> {
    let micros = sync_time(folder)?.as_secs_f64() * 1e6;
    Ok(format!(
        "a write of 16 KiB and its sync take {micros:.0} µs"
    ))
}
