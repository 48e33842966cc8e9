//! The result as a Markdown table.

use super::shape::{Found, Letter, Shape};
use super::target::Target;
use std::fmt::Write;

/// One number that is compared.
struct Measure {
    name: &'static str,
    digits: usize,
    read: fn(&Found, usize) -> Option<f64>,
    aim: Option<Aim>,
    /// Also shown as the difference to direct
    added: bool,
}

enum Aim {
    /// Queen over nginx, at least
    ShareOfNginx(f64),
    /// Queen over nginx, at most
    NoMoreThanNginx,
    /// The queen's own number, less than
    Below(f64),
}

impl Aim {
    fn text(&self) -> String {
        match self {
            Aim::ShareOfNginx(share) => format!("≥ {share} of nginx"),
            Aim::NoMoreThanNginx => "≤ nginx".into(),
            Aim::Below(limit) => format!("< {limit}"),
        }
    }

    fn is_met(&self, queen: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Aim::ShareOfNginx(share) => ratio.map(|r| r >= *share),
            Aim::NoMoreThanNginx => ratio.map(|r| r <= 1.0),
            Aim::Below(limit) => Some(queen < *limit),
        }
    }
}

const fn measure(
    name: &'static str,
    digits: usize,
    read: fn(&Found, usize) -> Option<f64>,
) -> Measure {
    Measure {
        name,
        digits,
        read,
        aim: None,
        added: false,
    }
}

impl Measure {
    fn aim(mut self, aim: Aim) -> Self {
        self.aim = Some(aim);
        self
    }

    fn added(mut self) -> Self {
        self.added = true;
        self
    }
}

fn measures(shape: &Shape) -> Vec<Measure> {
    let requests = measure("requests/s", 0, |f, _| f.number("/rps"));
    let cpu_request = measure("proxy CPU, µs a request", 1, |f, _| {
        f.number("/use/proxy/cpu_us_per_request")
    });
    let cpu_token = measure("proxy CPU, µs a token", 2, |f, _| {
        f.number("/use/proxy/cpu_us_per_token")
    });
    match shape.letter {
        Letter::A if shape.concurrency == 1 => vec![requests, cpu_request],
        Letter::A => vec![
            requests.aim(Aim::ShareOfNginx(0.7)),
            cpu_request.aim(Aim::Below(25.0)),
        ],
        Letter::B => vec![
            measure("tokens/s", 0, |f, _| f.number("/tokens_per_s")).aim(Aim::ShareOfNginx(0.9)),
            cpu_token,
        ],
        Letter::C => vec![
            measure("TTFT p50, ms", 2, |f, _| ms(f, "/ttft_us/p50")).added(),
            measure("TTFT p99, ms", 2, |f, _| ms(f, "/ttft_us/p99"))
                .added()
                .aim(Aim::NoMoreThanNginx),
            measure("gap p99, ms", 2, |f, _| ms(f, "/gap_us/p99"))
                .added()
                .aim(Aim::NoMoreThanNginx),
            measure("proxy CPU, s in the window", 2, |f, _| {
                f.number("/use/proxy/cpu_s")
            }),
            measure("proxy memory, KiB a stream", 1, |f, streams| {
                let grown =
                    f.number("/use/proxy/rss_peak_kb")? - f.number("/use/proxy/rss_before_kb")?;
                Some(grown / streams as f64)
            })
            .aim(Aim::Below(24.0)),
            measure("proxy memory at most, MiB", 1, |f, _| {
                Some(f.number("/use/proxy/rss_peak_kb")? / 1024.0)
            }),
        ],
        Letter::D => latencies(),
    }
}

/// From a client's leaving to the engine seeing its own connection closed (in the queue: to the
/// task being told as cancelled), and from an engine's death to the ending of its streams.
fn latencies() -> Vec<Measure> {
    let p99 = |name, read| measure(name, 2, read).aim(Aim::Below(20.0));
    vec![
        measure("leaves the queue, p50, ms", 2, |f, _| {
            ms(f, "/queued_us/p50")
        }),
        p99("leaves the queue, p99, ms", |f, _| ms(f, "/queued_us/p99")),
        measure("leaves before the headers, p50, ms", 2, |f, _| {
            ms(f, "/before_headers_us/p50")
        }),
        p99("leaves before the headers, p99, ms", |f, _| {
            ms(f, "/before_headers_us/p99")
        }),
        measure("leaves before the first token, p50, ms", 2, |f, _| {
            ms(f, "/before_token_us/p50")
        }),
        p99("leaves before the first token, p99, ms", |f, _| {
            ms(f, "/before_token_us/p99")
        }),
        measure("leaves in midstream, p50, ms", 2, |f, _| {
            ms(f, "/midstream_us/p50")
        }),
        p99("leaves in midstream, p99, ms", |f, _| {
            ms(f, "/midstream_us/p99")
        }),
        measure("engine dies, p50, ms", 2, |f, _| ms(f, "/death_us/p50")),
        p99("engine dies, p99, ms", |f, _| ms(f, "/death_us/p99")),
    ]
}

fn ms(found: &Found, pointer: &str) -> Option<f64> {
    found.number(pointer).map(|us| us / 1e3)
}

/// What the rounds found for one target, in their order.
pub(super) struct Rounds {
    pub(super) target: Target,
    pub(super) found: Vec<Found>,
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// Median, with the least and the greatest behind it.
pub(crate) fn cell(values: &[f64], digits: usize) -> String {
    let Some(middle) = median(values) else {
        return "–".into();
    };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() == 1 {
        return format!("{middle:.digits$}");
    }
    format!("{middle:.digits$} ({least:.digits$}–{most:.digits$})")
}

pub(super) const HEAD: &str = "\
| load | measure | direct | nginx | queen | queen/nginx | aim | met |
|---|---|---:|---:|---:|---:|---|---|
";

/// The table's rows of one shape. Ratios are taken within each round, as its runs were neighbours.
pub(super) fn rows(shape: &Shape, rounds: &[Rounds]) -> String {
    let mut out = String::new();
    for measure in measures(shape) {
        let values = |target: Target| -> Vec<f64> {
            let rounds = rounds.iter().filter(|r| r.target == target);
            let found = rounds.flat_map(|r| &r.found);
            found
                .filter_map(|f| (measure.read)(f, shape.concurrency))
                .collect()
        };
        let direct = values(Target::Direct);
        let nginx = values(Target::Nginx);
        let queen = values(Target::Queen);
        let ratios: Vec<f64> = nginx.iter().zip(&queen).map(|(n, q)| q / n).collect();
        let met = measure.aim.as_ref().and_then(|aim| {
            let met = aim.is_met(median(&queen)?, median(&ratios))?;
            Some(if met { "yes" } else { "NO" })
        });
        row(
            &mut out,
            &[
                &shape.title,
                measure.name,
                &cell(&direct, measure.digits),
                &cell(&nginx, measure.digits),
                &cell(&queen, measure.digits),
                &cell(&ratios, 2),
                &measure.aim.as_ref().map(Aim::text).unwrap_or_default(),
                met.unwrap_or_default(),
            ],
        );
        if measure.added {
            let over = |values: &[f64]| -> Vec<f64> {
                let pairs = values.iter().zip(&direct);
                pairs.map(|(value, direct)| value - direct).collect()
            };
            row(
                &mut out,
                &[
                    &shape.title,
                    &format!("added {}", measure.name),
                    "",
                    &cell(&over(&nginx), measure.digits),
                    &cell(&over(&queen), measure.digits),
                    "",
                    "",
                    "",
                ],
            );
        }
    }
    out
}

fn row(out: &mut String, cells: &[&str]) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "| {} |", cells.join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_few_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn a_cell_shows_the_spread_if_there_is_one() {
        assert_eq!(cell(&[], 1), "–");
        assert_eq!(cell(&[1.25], 1), "1.2");
        assert_eq!(cell(&[3.0, 1.0, 2.0], 0), "2 (1–3)");
    }

    #[test]
    fn an_aim_that_needs_nginx_is_open_without_it() {
        assert_eq!(Aim::NoMoreThanNginx.is_met(1.0, None), None);
        assert_eq!(Aim::ShareOfNginx(0.7).is_met(1.0, Some(0.71)), Some(true));
        assert_eq!(Aim::Below(24.0).is_met(24.0, None), Some(false));
    }
}
