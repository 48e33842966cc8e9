//! What was measured beside a reference, as a Markdown table.

use super::{cell, median};
use std::fmt::Write;

/// One thing that was measured, beside what it is compared with.
pub(crate) struct Found {
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) reference: Option<f64>,
    pub(crate) queen: f64,
    pub(crate) aim: Aim,
}

/// What the project wants it to be.
#[derive(Clone, Copy)]
pub(crate) enum Aim {
    /// Nothing was set
    None,
    /// At least this share of the reference
    Share(f64),
    /// Less than this
    Below(f64),
    /// At most this much more than the reference
    Added(f64),
}

impl Aim {
    fn text(self, unit: &str) -> String {
        match self {
            Aim::None => String::new(),
            Aim::Share(share) => format!("≥ {share} of the reference"),
            Aim::Below(most) => format!("< {most} {unit}"),
            Aim::Added(most) => format!("< {most} {unit} more"),
        }
    }

    fn is_met(self, row: &Row) -> Option<bool> {
        let queen = median(&row.queen)?;
        Some(match self {
            Aim::None => return None,
            Aim::Below(most) => queen < most,
            Aim::Share(share) => median(&row.ratios())? >= share,
            Aim::Added(most) => median(&row.added())? < most,
        })
    }
}

/// The rounds of one thing.
pub(crate) struct Row {
    what: &'static str,
    unit: &'static str,
    reference: Vec<f64>,
    queen: Vec<f64>,
    aim: Aim,
}

impl Row {
    /// Taken within each round, as its measurements were neighbours.
    fn ratios(&self) -> Vec<f64> {
        let pairs = self.queen.iter().zip(&self.reference);
        let ratios = pairs.map(|(queen, reference)| queen / reference);
        // Of a reference that was too small to measure there is none.
        ratios.filter(|ratio| ratio.is_finite()).collect()
    }

    fn added(&self) -> Vec<f64> {
        let pairs = self.queen.iter().zip(&self.reference);
        pairs.map(|(queen, reference)| queen - reference).collect()
    }
}

/// Takes a round in.
pub(crate) fn add(rows: &mut Vec<Row>, found: Vec<Found>) {
    for one in found {
        let at = rows.iter().position(|row| row.what == one.what);
        let at = at.unwrap_or_else(|| {
            rows.push(Row {
                what: one.what,
                unit: one.unit,
                reference: Vec::new(),
                queen: Vec::new(),
                aim: one.aim,
            });
            rows.len() - 1
        });
        rows[at].reference.extend(one.reference);
        rows[at].queen.push(one.queen);
    }
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| what | unit | reference | queen | ratio | aim | met |\n|---|---|---:|---:|---:|---|---|\n",
    );
    for row in rows {
        let met = match row.aim.is_met(row) {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        let largest = row.queen.iter().copied().fold(0.0, f64::max);
        let digits = if largest < 1000.0 { 2 } else { 0 };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {met} |",
            row.what,
            row.unit,
            cell(&row.reference, digits),
            cell(&row.queen, digits),
            cell(&row.ratios(), 2),
            row.aim.text(row.unit),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(aim: Aim, reference: &[f64], queen: &[f64]) -> Row {
        Row {
            what: "w",
            unit: "ms",
            reference: reference.to_vec(),
            queen: queen.to_vec(),
            aim,
        }
    }

    #[test]
    fn aims_are_for_medians_and_open_without_a_reference() {
        let met =
            |aim: Aim, reference: &[f64], queen: &[f64]| aim.is_met(&row(aim, reference, queen));
        assert_eq!(met(Aim::None, &[1.0], &[1.0]), None);
        assert_eq!(met(Aim::Share(0.5), &[2.0], &[1.0]), Some(true));
        assert_eq!(met(Aim::Share(0.5), &[2.1], &[1.0]), Some(false));
        assert_eq!(met(Aim::Share(0.5), &[], &[1.0]), None);
        assert_eq!(met(Aim::Below(3.0), &[], &[1.0, 2.0, 9.0]), Some(true));
        assert_eq!(met(Aim::Added(1.0), &[5.0], &[6.5]), Some(false));
    }

    #[test]
    fn rounds_of_one_thing_are_one_row() {
        let mut rows = Vec::new();
        for queen in [1.0, 3.0, 2.0] {
            let found = Found {
                what: "w",
                unit: "ms",
                reference: Some(2.0),
                queen,
                aim: Aim::Share(0.5),
            };
            add(&mut rows, vec![found]);
        }
        let shown = table(&rows);
        assert!(shown.contains("| w | ms | 2.00"), "{shown}");
        assert!(
            shown.ends_with("| ≥ 0.5 of the reference | yes |\n"),
            "{shown}"
        );
    }
}
