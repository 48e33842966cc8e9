//! The result as a Markdown table.

use super::lives::Way;
use crate::bench::{cell, median};
use std::fmt::Write;

/// What a job's whole life must be worth with 64 producers, each step synced.
const AIM: f64 = 30_000.0;

/// The share of what comes without syncs.
const AIM_OF_NORMAL: f64 = 0.5;

const AIM_PRODUCERS: usize = 64;

/// What the rounds found for a number of producers, in cycles a second.
pub(super) struct Row {
    pub(super) producers: usize,
    single: Vec<f64>,
    full: Vec<f64>,
    normal: Vec<f64>,
}

impl Row {
    pub(super) fn new(producers: usize) -> Self {
        Row {
            producers,
            single: Vec::new(),
            full: Vec::new(),
            normal: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, way: Way, cycles: f64) {
        let found = match way {
            Way::Single => &mut self.single,
            Way::Full => &mut self.full,
            Way::Normal => &mut self.normal,
        };
        found.push(cycles);
    }
}

/// Ratios are taken within each round, as its measurements were neighbours.
pub(super) fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| producers | a transaction each, cycles/s | NORMAL, cycles/s | FULL, cycles/s \
         | FULL/each | FULL/NORMAL | aim | met |\n|---:|---:|---:|---:|---:|---:|---|---|\n",
    );
    for row in rows {
        let ratios = |of: &[f64]| -> Vec<f64> {
            let pairs = row.full.iter().zip(of);
            pairs.map(|(full, other)| full / other).collect()
        };
        let (of_single, of_normal) = (ratios(&row.single), ratios(&row.normal));
        let (aim, met) = match row.producers == AIM_PRODUCERS {
            true => (
                format!("FULL ≥ {AIM}, ≥ {AIM_OF_NORMAL} of NORMAL"),
                is_met(&row.full, &of_normal),
            ),
            false => (String::new(), ""),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {aim} | {met} |",
            row.producers,
            cell(&row.single, 0),
            cell(&row.normal, 0),
            cell(&row.full, 0),
            cell(&of_single, 1),
            cell(&of_normal, 2),
        );
    }
    out
}

fn is_met(full: &[f64], of_normal: &[f64]) -> &'static str {
    let (Some(full), Some(of_normal)) = (median(full), median(of_normal)) else {
        return "";
    };
    match full >= AIM && of_normal >= AIM_OF_NORMAL {
        true => "yes",
        false => "NO",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aim_is_for_64_producers_and_needs_both() {
        let mut row = Row::new(64);
        row.note(Way::Full, AIM);
        row.note(Way::Normal, AIM * 1.9);
        row.note(Way::Single, AIM / 10.0);
        let shown = table(&[row, Row::new(1)]);
        assert!(shown.contains("| 30000 | 10.0 | 0.53 |"), "{shown}");
        assert_eq!(shown.matches("yes").count(), 1);
        assert_eq!(is_met(&[AIM], &[0.4]), "NO");
    }
}
