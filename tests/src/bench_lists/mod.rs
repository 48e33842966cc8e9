//! `make bench-lists`: lists of tasks and look-ups over HTTP, with a database of many ended tasks of
//! which some have long results, and a Markdown table of what came out.
//!
//! The reference of the pages is a database that has no more than one page, that of the look-ups
//! beside lists are look-ups without them.

mod filled;
mod lookups;
mod pages;

use crate::bench::compared::{self, Row};
use crate::bench::machine;
use crate::harness::{Home, Queen};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use filled::Filled;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Measures lists and look-ups.
#[derive(Parser, Debug)]
pub struct Args {
    /// One round with 10,000 tasks, only to show that everything works
    #[arg(long)]
    quick: bool,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Ended tasks in the database
    #[arg(long, default_value_t = 100_000)]
    tasks: usize,
    /// One task of so many has a result of 1 MB
    #[arg(long, default_value_t = 100)]
    large_one_of: usize,
    /// A folder on the disk that is measured; by default, where this program stands
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Tasks of a page, the most that can be asked for.
const PAGE: usize = 500;

/// A queen on a database that was filled before.
struct Stage {
    filled: Filled,
    queen: Queen,
}

/// Measures, and prints the table.
///
/// # Errors
/// When something does not start, or a list lacks a task: the numbers mean nothing then.
pub fn run(args: &Args) -> Result<()> {
    let here = std::env::current_exe()?;
    let here = here.parent().context("this program stands in a folder")?;
    let folder = args.folder.as_deref().unwrap_or(here);
    let (rounds, tasks) = match args.quick {
        true => (1, 10_000),
        false => (args.rounds, args.tasks),
    };
    ensure!(rounds > 0, "--rounds must be at least 1");
    ensure!(args.large_one_of > 0, "--large-one-of must be at least 1");
    println!("{}\n", machine()?);
    let folder = tempfile::Builder::new()
        .prefix("bench-lists-")
        .tempdir_in(folder)?;
    let home = Home::new();
    let many = stage(&home, folder.path(), "many", tasks, args.large_one_of)?;
    let few = stage(&home, folder.path(), "few", PAGE, args.large_one_of)?;
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..rounds {
        eprintln!("bench: round {} of {rounds}", round + 1);
        compared::add(&mut rows, pages::measure(&many, &few)?);
        compared::add(&mut rows, lookups::measure(&many, args.quick)?);
    }
    println!("{}", compared::table(&rows));
    if args.quick {
        println!("One short round: it shows that everything works, and no speed.");
    }
    Ok(())
}

fn stage(
    home: &Home,
    folder: &Path,
    name: &str,
    tasks: usize,
    large_one_of: usize,
) -> Result<Stage> {
    let start = Instant::now();
    let database = folder.join(format!("{name}.db"));
    let filled = filled::fill(&database, tasks, large_one_of)?;
    eprintln!(
        "bench: {tasks} tasks written in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let launch = home.queen().config("hives.local = false");
    let queen = launch.database(&database).start();
    Ok(Stage { filled, queen })
}

/// What so many of a hundred took at most, in milliseconds.
fn percentile(took: &mut [f64], percent: usize) -> Result<f64> {
    took.sort_by(f64::total_cmp);
    let at = (took.len() * percent).div_ceil(100).saturating_sub(1);
    took.get(at).copied().context("nothing was measured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut took: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut took, 50).ok(), Some(100.0));
        assert_eq!(percentile(&mut took, 99).ok(), Some(198.0));
        assert_eq!(percentile(&mut [7.0], 99).ok(), Some(7.0));
        assert!(percentile(&mut [], 99).is_err());
    }
}
