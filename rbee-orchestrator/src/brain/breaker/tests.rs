use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(seconds: u64) -> Mono {
    Mono(secs(seconds))
}

/// Begins and ends an attempt.
fn attempt(breaker: &mut Breaker, now: Mono, verdict: Verdict) -> Option<Mono> {
    let ticket = breaker.begin();
    breaker.end(now, &BreakerConfig::default(), ticket, verdict)
}

#[test]
fn it_opens_on_failures_in_a_row_for_longer_each_time_until_a_probe_succeeds() {
    let (mut breaker, config) = (Breaker::default(), BreakerConfig::default());
    for _ in 0..4 {
        assert_eq!(attempt(&mut breaker, at(100), Verdict::Failure), None);
    }
    let mut now = at(100);
    for seconds in [5, 10, 20, 40, 60, 60] {
        let until = attempt(&mut breaker, now, Verdict::Failure);
        assert_eq!(until, Some(now + secs(seconds)));
        assert_eq!(breaker.admits(&config), Some(0));
        now = now + secs(seconds);
        breaker.half_open(now);
        assert_eq!(breaker.admits(&config), Some(1));
    }
    attempt(&mut breaker, now, Verdict::Success);
    assert_eq!(breaker.admits(&config), None);
    for _ in 0..4 {
        assert_eq!(attempt(&mut breaker, now, Verdict::Failure), None);
    }
    let until = attempt(&mut breaker, now, Verdict::Failure);
    assert_eq!(until, Some(now + secs(5)), "it begins anew");
}

#[test]
fn it_opens_on_a_share_of_failures_among_enough_attempts() {
    let mut breaker = Breaker::default();
    for round in 0..4 {
        assert_eq!(
            attempt(&mut breaker, at(100 + round), Verdict::Success),
            None
        );
        assert_eq!(
            attempt(&mut breaker, at(100 + round), Verdict::Failure),
            None
        );
    }
    assert_eq!(attempt(&mut breaker, at(104), Verdict::Success), None);
    assert!(attempt(&mut breaker, at(104), Verdict::Failure).is_some());
}

/// What happens to a breaker, in any order.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    /// The attempt that began so many ago ends.
    End(usize, u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Begin),
        (0_usize..8, 0_u8..3).prop_map(|(which, verdict)| Step::End(which, verdict)),
        (0_u64..40).prop_map(Step::Pass),
    ]
}

/// The machine as it is described, kept beside the real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Closed,
    Open { until: Mono },
    HalfOpen,
}

fn verdict(number: u8) -> Verdict {
    [Verdict::Success, Verdict::Failure, Verdict::Neutral][usize::from(number)]
}

proptest! {
    #[test]
    fn only_failures_open_it_only_time_tries_it_and_only_a_probe_closes_it(
        steps in prop::collection::vec(step(), 1..400),
        probes in 1_u32..4,
    ) {
        let config = BreakerConfig { probes, ..BreakerConfig::default() };
        let mut breaker = Breaker::default();
        let mut now = at(1000);
        let mut state = Expected::Closed;
        // Attempts that run, with whether they began in the state that still holds.
        let mut running: Vec<(Ticket, bool)> = Vec::new();
        let mut opened_in_a_row = 0;
        for step in steps {
            match step {
                Step::Begin => {
                    if breaker.admits(&config) != Some(0) {
                        running.push((breaker.begin(), true));
                    }
                }
                Step::End(which, said) if which < running.len() => {
                    let (ticket, news) = running.remove(which);
                    let said = verdict(said);
                    let opened = breaker.end(now, &config, ticket, said);
                    let before = state;
                    if let Some(until) = opened {
                        prop_assert!(news && said == Verdict::Failure);
                        let time = secs(5 << opened_in_a_row.min(4)).min(secs(60));
                        prop_assert_eq!(until, now + time);
                        opened_in_a_row += 1;
                        state = Expected::Open { until };
                    } else if state == Expected::HalfOpen && news {
                        prop_assert!(said != Verdict::Failure, "a probe that fails opens it");
                        if said == Verdict::Success {
                            opened_in_a_row = 0;
                            state = Expected::Closed;
                        }
                    }
                    if state != before {
                        running.iter_mut().for_each(|(_, news)| *news = false);
                    }
                }
                Step::End(..) => {}
                Step::Pass(seconds) => {
                    now = now + secs(seconds);
                    breaker.half_open(now);
                    if matches!(state, Expected::Open { until } if until <= now) {
                        state = Expected::HalfOpen;
                        running.iter_mut().for_each(|(_, news)| *news = false);
                    }
                }
            }
            let tried = running.iter().filter(|(_, news)| *news).count() as u32;
            let admits = match state {
                Expected::Closed => None,
                Expected::Open { .. } => Some(0),
                Expected::HalfOpen => Some(probes - tried),
            };
            prop_assert_eq!(breaker.admits(&config), admits);
        }
    }
}
