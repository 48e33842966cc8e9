//! `make bench`: the same load on the stub engine directly, through nginx and through the queen,
//! one after the other in turns, and a Markdown table of what came out; and how soon each lets go of
//! what nobody waits for.
//!
//! Every measurement starts its processes anew, so that none inherits another's memory. Client,
//! proxy and engine share the machine: absolute numbers say little, shares of nginx's say more.

pub(crate) mod compared;
mod leaving;
mod nginx;
mod shape;
mod table;
mod target;

use crate::harness::daemon::raise_open_files;
use anyhow::{Context, Result, ensure};
use clap::Parser;
pub(crate) use shape::wrong_in;
use shape::{Letter, Shape, shapes};
use std::fs;
use std::path::PathBuf;
use table::Rounds;
pub(crate) use table::{cell, median};
use target::{Programs, Target};

/// Compares the queen with nginx and with no proxy at all.
#[derive(Parser, Debug)]
pub struct Args {
    /// One short round, only to show that everything works
    #[arg(long)]
    quick: bool,
    /// Only these shapes of load
    #[arg(long, value_delimiter = ',')]
    only: Vec<Letter>,
    /// Only these targets
    #[arg(long, value_delimiter = ',', default_value = "direct,nginx,queen")]
    targets: Vec<Target>,
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The queen's program, if it does not stand beside this one
    #[arg(long)]
    queen: Option<PathBuf>,
}

fn programs(args: &Args) -> Result<Programs> {
    let here = std::env::current_exe()?;
    let here = here.parent().context("this program stands in a folder")?;
    let uses = |target| args.targets.contains(&target);
    let queen = args.queen.clone();
    let programs = Programs {
        stub: here.join("stub-engine"),
        load: here.join("load"),
        queen: queen.unwrap_or_else(|| here.join("queen-rbee")),
        nginx: match uses(Target::Nginx) {
            true => nginx::program()?,
            false => PathBuf::new(),
        },
    };
    let mut needed = vec![&programs.stub, &programs.load];
    if uses(Target::Queen) {
        needed.push(&programs.queen);
    }
    for program in needed {
        let shown = program.display();
        ensure!(
            program.is_file(),
            "{shown} is missing; `make bench` builds it"
        );
    }
    Ok(programs)
}

/// Where this ran, in a line.
pub(crate) fn machine() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let cpu = cpu.map_or("unknown CPU", |name| {
        name.trim_start_matches(['\t', ' ', ':'])
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    Ok(format!("{cores} cores of {cpu}, Linux {}", kernel.trim()))
}

fn nginx_version(programs: &Programs, args: &Args) -> Result<String> {
    match args.targets.contains(&Target::Nginx) {
        true => nginx::version(&programs.nginx),
        false => Ok("no nginx".into()),
    }
}

/// One shape in all rounds. Each round begins with another target, so that none always has the
/// same neighbour.
fn run_shape(
    shape: &Shape,
    args: &Args,
    programs: &Programs,
    problems: &mut Vec<String>,
) -> Result<Vec<Rounds>> {
    let targets = &args.targets;
    let mut all: Vec<Rounds> = targets
        .iter()
        .map(|target| Rounds {
            target: *target,
            found: Vec::new(),
        })
        .collect();
    let rounds = if args.quick { 1 } else { args.rounds };
    for round in 0..rounds {
        for turn in 0..targets.len() {
            let one = &mut all[(round + turn) % targets.len()];
            let what = format!("{}, {}", shape.title, one.target.name());
            eprintln!("bench: round {} of {rounds}: {what}", round + 1);
            let found = shape.measure(programs, one.target).context(what.clone())?;
            let wrong = found.problems.iter();
            problems.extend(wrong.map(|problem| format!("{what}: {problem}")));
            one.found.push(found);
        }
    }
    Ok(all)
}

/// Measures, and prints the table.
///
/// # Errors
/// What is missing or did not start; and, after the table, anything that went wrong with a single
/// request or process, as then the numbers mean nothing.
pub fn run(args: &Args) -> Result<()> {
    raise_open_files();
    let programs = programs(args)?;
    println!("{}, {}\n", machine()?, nginx_version(&programs, args)?);
    let mut problems = Vec::new();
    let mut out = String::from(table::HEAD);
    let all = shapes(args.quick);
    let wanted = all
        .iter()
        .filter(|shape| args.only.is_empty() || args.only.contains(&shape.letter));
    for shape in wanted {
        let rounds = run_shape(shape, args, &programs, &mut problems)?;
        out += &table::rows(shape, &rounds);
    }
    println!("{out}");
    if args.quick {
        println!("One short round: it shows that everything works, and no speed.");
    }
    for problem in &problems {
        eprintln!("bench: WRONG: {problem}");
    }
    let n = problems.len();
    ensure!(n == 0, "{n} things went wrong; the numbers mean nothing");
    Ok(())
}
