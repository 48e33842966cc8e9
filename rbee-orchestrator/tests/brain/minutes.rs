//! What a tenant may use in a minute.

use std::time::Duration;

use rbee_orchestrator::brain::Event;
use rbee_orchestrator::domain::TenantLimits;
use rbee_orchestrator::error::Code;

use crate::parts::{SMOL, secs};
use crate::tenants::{end_using, limited};

#[test]
fn too_many_requests_in_a_minute_are_refused_with_the_time_to_wait() {
    let mut world = limited(
        100,
        TenantLimits {
            requests_per_minute: Some(30),
            ..TenantLimits::default()
        },
    );
    for _ in 0..30 {
        let job = world.submit(SMOL);
        assert!(world.is_open(job));
    }
    world.pass(Duration::from_millis(500));
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "RATE_LIMITED");
    let wait = Duration::from_millis(1500);
    assert_eq!(world.error(refused).retry_after, Some(wait));
    world.pass(wait);
    let next = world.submit(SMOL);
    assert!(world.is_open(next));
}

#[test]
fn tokens_of_a_minute_that_were_not_used_are_there_for_the_next() {
    let mut world = limited(
        100,
        TenantLimits {
            tokens_per_minute: Some(300),
            ..TenantLimits::default()
        },
    );
    let jobs = [(); 4].map(|()| world.submit(SMOL));
    assert_eq!(world.code(jobs[3]), "RATE_LIMITED");
    assert_eq!(world.error(jobs[3]).retry_after, Some(secs(20)));
    end_using(&mut world, jobs[0], 0);
    let next = world.submit(SMOL);
    assert!(world.is_open(next));
    end_using(&mut world, jobs[1], 150);
    let refused = world.submit(SMOL);
    assert_eq!(
        world.error(refused).retry_after,
        Some(secs(30)),
        "50 are owed"
    );
    let never = world.submit_with(SMOL, |r| r.tokens = 301);
    assert_eq!(world.code(never), "INVALID_REQUEST");
    assert!(world.error(never).message.contains("max_tokens"));
    assert_eq!(world.error(never).retry_after, None);
}

#[test]
fn a_request_that_is_refused_or_withdrawn_takes_nothing_of_the_minute() {
    let limits = TenantLimits {
        requests_per_minute: Some(1),
        tokens_per_minute: Some(100),
        max_concurrent: Some(1),
        ..TenantLimits::default()
    };
    let mut world = limited(1, limits);
    let refused = world.submit("nonsense");
    assert_eq!(world.code(refused), "MODEL_NOT_FOUND");
    for _ in 0..3 {
        let job = world.admit(SMOL, |_| {}).unwrap();
        let second = world.admit(SMOL, |_| {}).unwrap_err();
        assert_eq!(second.code, Code::QuotaExceeded);
        world.tell(Event::Withdraw(job));
    }
    let job = world.submit(SMOL);
    assert!(world.runs_on(job).is_some());
}
