//! Shares of tenants and sessions over a long run.

use std::collections::HashMap;

use rbee_orchestrator::config::{Capacity, Config};
use rbee_orchestrator::domain::{JobId, SessionId, TenantId, TenantLimits};

use crate::dice::Dice;
use crate::parts::{SMOL, secs};
use crate::world::World;

const JOBS: usize = 4000;

/// Two tenants with weights 1 and 3 and as much work as the test lasts.
fn saturated(
    change: impl Fn(usize, &mut rbee_orchestrator::brain::JobRequest),
) -> Vec<(usize, u64)> {
    let (mut world, _) = World::configured(1, |config: &mut Config| {
        config.queue.capacity_interactive = Capacity::UNBOUNDED;
        for (name, weight) in [("light", 1), ("heavy", 3)] {
            let limits = TenantLimits {
                weight,
                ..TenantLimits::default()
            };
            config.tenants.insert(name.into(), limits);
        }
    });
    let mut dice = Dice(7);
    let mut jobs: HashMap<JobId, (usize, u64)> = HashMap::new();
    let mut first = None;
    for at in 0..JOBS {
        let whose = at % 2;
        let tokens = 1 + dice.below([50, 4000][at % 2]) as u64;
        let job = world.submit_with(SMOL, |request| {
            request.tenant = TenantId::new(["light", "heavy"][whose]).unwrap();
            request.tokens = tokens;
            request.queue_timeout = secs(100_000);
            request.total_timeout = secs(100_000);
            change(at, request);
        });
        jobs.insert(job, (whose, tokens));
        first.get_or_insert(job);
    }
    let order = world.run_all(first.unwrap());
    assert_eq!(order.len(), JOBS - 1);
    order.iter().map(|job| jobs[job]).collect()
}

/// Tokens of each tenant among the first jobs, while both have work left.
fn shares(served: &[(usize, u64)]) -> [u64; 2] {
    let mut left = [JOBS / 2; 2];
    let mut shares = [0; 2];
    for (whose, tokens) in served {
        left[*whose] -= 1;
        if left[*whose] < 20 {
            break;
        }
        shares[*whose] += tokens;
    }
    shares
}

fn assert_one_to_three([light, heavy]: [u64; 2]) {
    let ratio = heavy as f64 / light as f64;
    assert!((2.7..=3.3).contains(&ratio), "{light}:{heavy}");
    assert!(light > 10_000, "a long run");
}

#[test]
fn saturated_tenants_get_tokens_by_their_weights_however_large_their_jobs_are() {
    assert_one_to_three(shares(&saturated(|_, _| {})));
}

#[test]
fn sessions_and_constraints_do_not_change_a_tenants_share() {
    let served = saturated(|at, request| {
        request.session = Some(SessionId::new(format!("s-{}", at % 14)).unwrap());
        request.openai_only = at % 6 < 2;
        request.constraints.backend = (at % 10 < 4).then(|| "cpu".into());
    });
    assert_one_to_three(shares(&served));
}

#[test]
fn each_session_of_a_tenant_gets_as_many_turns() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.capacity_interactive = Capacity::UNBOUNDED;
    });
    let mut jobs = HashMap::new();
    let mut first = None;
    for at in 0..600 {
        // The first session sends ten times as much as each of the others.
        let session = (at % 12_usize).saturating_sub(9);
        let job = world.submit_with(SMOL, |request| {
            request.session = Some(SessionId::new(format!("s-{session}")).unwrap());
            request.openai_only = at % 5 == 0;
        });
        jobs.insert(job, session);
        first.get_or_insert(job);
    }
    let order = world.run_all(first.unwrap());
    let mut turns = [0; 3];
    for job in &order[..120] {
        turns[jobs[job]] += 1;
    }
    assert_eq!(turns, [40, 40, 40]);
}

#[test]
fn a_tenant_that_comes_late_does_not_wait_for_all_that_was_there_before() {
    let (mut world, _) = World::configured(1, |config| {
        for name in ["early", "late"] {
            let limits = TenantLimits::default();
            config.tenants.insert(name.into(), limits);
        }
    });
    let of = |name: &'static str| {
        move |request: &mut rbee_orchestrator::brain::JobRequest| {
            request.tenant = TenantId::new(name).unwrap();
        }
    };
    let running = world.submit_with(SMOL, of("early"));
    let early = [(); 50].map(|()| world.submit_with(SMOL, of("early")));
    let late = world.submit_with(SMOL, of("late"));
    assert_eq!(world.places(late).last().map(|(place, _)| *place), Some(1));
    let order = world.run_all(running);
    assert_eq!(order[..3], [early[0], late, early[1]]);
}
