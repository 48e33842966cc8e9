//! Shares of tenants and sessions over a long run.

use std::collections::{HashMap, VecDeque};

use rbee_orchestrator::brain::JobRequest;
use rbee_orchestrator::config::{Capacity, Config};
use rbee_orchestrator::domain::{JobId, Priority, SessionId, TenantId, TenantLimits};

use crate::dice::Dice;
use crate::parts::{SMOL, secs};
use crate::world::World;

const JOBS: usize = 4000;

/// Two tenants with weights 1 and 3 and as much work as the test lasts.
fn saturated(change: impl Fn(usize, &mut JobRequest)) -> Vec<(usize, u64)> {
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
fn a_batch_job_starves_no_longer_than_until_its_promotion_and_its_turn() {
    let (mut world, _) = World::with_smol(1);
    let long = |r: &mut JobRequest| (r.queue_timeout, r.total_timeout) = (secs(9000), secs(9000));
    let session = |at: usize| SessionId::new(format!("s-{at}")).unwrap();
    let mut line: VecDeque<JobId> = (0..20)
        .map(|at| {
            world.submit_with(SMOL, |request| {
                long(request);
                request.session = Some(session(at % 4));
            })
        })
        .collect();
    let batch = world.submit_with(SMOL, |request| {
        long(request);
        request.priority = Priority::Batch;
    });
    // One ends each second and another comes: the line never gets shorter.
    for second in 0..300 {
        world.pass(secs(1));
        assert_eq!(world.runs_on(batch), None);
        let running = line.iter().position(|job| world.runs_on(*job).is_some());
        let running = line.remove(running.expect("somebody runs")).unwrap();
        if second < 299 {
            world.end(running);
        } else {
            line.push_front(running);
        }
        line.push_back(world.submit_with(SMOL, |request| {
            long(request);
            request.session = Some(session(second % 4));
        }));
    }
    // Promoted by now; each of the four sessions may have a turn before it.
    let turns = (0..6).position(|_| {
        let running = line.iter().position(|job| world.runs_on(*job).is_some());
        world.end(line.remove(running.expect("somebody runs")).unwrap());
        world.runs_on(batch).is_some()
    });
    assert!(turns.is_some_and(|turns| turns <= 4), "{turns:?}");
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
        move |request: &mut JobRequest| {
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
