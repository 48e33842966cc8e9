//! Tenants: who may do what, how much of it, and what happens to the rest.

use rbee_orchestrator::brain::{Event, JobRequest, Report};
use rbee_orchestrator::config::{Capacity, Config, QuotaPolicy};
use rbee_orchestrator::domain::{
    JobId, Outcome, Priority, Tenant, TenantId, TenantLimits, UnixMillis, Usage,
};

use crate::parts::{BIG, SMOL, secs};
use crate::world::World;

const DAY_MS: i64 = 86_400_000;

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// A world in which `default` may do what it likes within these limits.
pub(crate) fn limited(slots: u32, limits: TenantLimits) -> World {
    limited_and(slots, limits, |_| {})
}

fn limited_and(slots: u32, limits: TenantLimits, change: impl FnOnce(&mut Config)) -> World {
    let (world, _) = World::configured(slots, |config| {
        config.tenants.insert("default".into(), limits);
        change(config);
    });
    world
}

fn held_back(slots: u32, limits: TenantLimits) -> World {
    limited_and(slots, limits, |config| {
        config.quota_policy = QuotaPolicy::Queue;
    })
}

fn concurrent(most: u32) -> TenantLimits {
    TenantLimits {
        max_concurrent: Some(most),
        ..TenantLimits::default()
    }
}

fn daily(tokens: u64) -> TenantLimits {
    TenantLimits {
        tokens_per_day: Some(tokens),
        ..TenantLimits::default()
    }
}

fn patient(request: &mut JobRequest) {
    (request.queue_timeout, request.total_timeout) = (secs(200_000), secs(200_000));
}

/// A job ends and has used so many tokens.
pub(crate) fn end_using(world: &mut World, job: JobId, tokens: u64) {
    let mut report = Report::of(Outcome::Complete);
    report.usage = Some(Usage {
        tokens_in: tokens / 2,
        tokens_out: tokens - tokens / 2,
        estimated: false,
    });
    world.end_with(job, report);
}

#[test]
fn an_unknown_tenant_is_forbidden_once_there_are_tenants_and_hears_what_to_do() {
    let (mut world, _) = World::configured(1, |config| {
        let limits = TenantLimits::default();
        config.tenants.insert("known".into(), limits);
    });
    let unnamed = world.submit(SMOL);
    assert_eq!(world.code(unnamed), "FORBIDDEN");
    assert!(world.error(unnamed).message.contains("X-Tenant-Id"));
    let named = world.submit_with(SMOL, |r| r.tenant = tenant("known"));
    assert!(world.runs_on(named).is_some());
}

#[test]
fn without_tenants_nobody_is_limited() {
    let (mut world, _) = World::with_smol(1);
    let job = world.submit_with(SMOL, |r| r.tenant = tenant("anybody"));
    assert!(world.runs_on(job).is_some());
}

#[test]
fn a_model_is_allowed_under_any_of_its_names_and_another_is_forbidden() {
    for allowed in ["smol", SMOL, "tiny"] {
        let mut world = limited(
            8,
            TenantLimits {
                models: Some(vec![allowed.into()]),
                ..TenantLimits::default()
            },
        );
        for name in ["smol", SMOL, "tiny"] {
            let job = world.submit(name);
            assert!(world.runs_on(job).is_some(), "{allowed} allows {name}");
        }
        let other = world.submit(BIG);
        assert_eq!(world.code(other), "FORBIDDEN");
        assert!(world.error(other).message.contains(allowed));
        assert_eq!(world.error(other).param, Some("model"));
    }
}

#[test]
fn a_tenant_has_as_many_jobs_open_as_it_may() {
    let mut world = limited(8, concurrent(2));
    let jobs = [(); 3].map(|()| world.submit(SMOL));
    assert_eq!(world.code(jobs[2]), "QUOTA_EXCEEDED");
    assert_eq!(world.error(jobs[2]).retry_after, Some(secs(5)));
    world.pass(secs(20));
    world.end(jobs[0]);
    let [next, refused] = [(); 2].map(|()| world.submit(SMOL));
    assert!(world.runs_on(next).is_some());
    // Two at a time, of which each takes 20 s.
    assert_eq!(world.error(refused).retry_after, Some(secs(10)));
}

#[test]
fn a_days_tokens_are_those_of_open_jobs_and_what_the_ended_ones_used() {
    let mut world = limited(8, daily(250));
    let jobs = [(); 3].map(|()| world.submit(SMOL));
    assert_eq!(
        world.code(jobs[2]),
        "QUOTA_EXCEEDED",
        "100 each are reserved"
    );
    end_using(&mut world, jobs[0], 30);
    let next = world.submit(SMOL);
    assert!(world.is_open(next), "70 came back");
    end_using(&mut world, next, 130);
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "QUOTA_EXCEEDED");
    // 2023-11-14T22:13:20Z.
    assert_eq!(world.error(refused).retry_after, Some(secs(6400)));
    world.pass(secs(6400));
    let tomorrow = world.submit(SMOL);
    assert!(world.is_open(tomorrow));
}

#[test]
fn what_the_store_knows_of_today_counts_and_the_configuration_wins() {
    let mut world = limited(8, daily(250));
    let stored = [("default", 10), ("stored", 250)].map(|(name, tokens)| Tenant {
        id: tenant(name),
        limits: daily(tokens),
    });
    let used = [(tenant("default"), 60), (tenant("stored"), 151)];
    let now = world.now;
    world
        .brain
        .set_tenants(now, stored.into(), &used, &mut world.actions);
    let first = world.submit(SMOL);
    let second = world.submit(SMOL);
    assert!(world.is_open(first));
    assert_eq!(world.code(second), "QUOTA_EXCEEDED");
    let stored = world.submit_with(SMOL, |r| r.tenant = tenant("stored"));
    assert_eq!(world.code(stored), "QUOTA_EXCEEDED");
}

#[test]
fn tenants_that_come_later_find_the_jobs_counted_that_are_open_already() {
    let (mut world, _) = World::with_smol(8);
    let open = world.submit(SMOL);
    let tenants = vec![Tenant {
        id: TenantId::default(),
        limits: concurrent(1),
    }];
    let now = world.now;
    world
        .brain
        .set_tenants(now, tenants, &[], &mut world.actions);
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "QUOTA_EXCEEDED");
    world.end(open);
    let next = world.submit(SMOL);
    assert!(world.is_open(next));
}

#[test]
fn the_reasons_to_refuse_come_in_their_order() {
    let limits = TenantLimits {
        models: Some(vec![SMOL.into()]),
        max_concurrent: Some(2),
        requests_per_minute: Some(2),
        ..TenantLimits::default()
    };
    let mut world = limited_and(1, limits, |config| {
        config.queue.capacity_interactive = Capacity::of(0);
    });
    let late = world.now.wall;
    let invalid = world.submit_with(BIG, |r| r.deadline = Some(late));
    assert_eq!(world.code(invalid), "TIMEOUT");
    let forbidden = world.submit(BIG);
    assert_eq!(world.code(forbidden), "FORBIDDEN");
    let running = world.submit(SMOL);
    let full = world.submit(SMOL);
    assert_eq!(world.code(full), "SYSTEM_AT_CAPACITY");
    world.end(running);
    let second = world.submit(SMOL);
    assert!(world.is_open(second));
    let limited = world.submit(SMOL);
    assert_eq!(world.code(limited), "RATE_LIMITED");
}

#[test]
fn work_over_the_quota_is_held_back_if_so_configured_and_goes_in_its_order() {
    let mut world = held_back(8, concurrent(1));
    let running = world.submit_with(SMOL, patient);
    let [first, second] = [(); 2].map(|()| world.submit_with(SMOL, patient));
    assert_eq!(world.places(second), [(1, None)]);
    assert_eq!(world.told(second), ["quota"]);
    assert_eq!(world.brain.tally().held, 2);
    let place = world.brain.queue_place(second).unwrap();
    assert_eq!(place.position, 1);
    assert_eq!(world.run_all(running), [first, second]);
    assert_eq!(world.brain.counters().quota_held, 2);
    assert_eq!(world.brain.next_due(), None);
}

#[test]
fn held_work_counts_for_the_capacity_and_gives_up_in_time() {
    let mut world = limited_and(8, concurrent(1), |config| {
        config.quota_policy = QuotaPolicy::Queue;
        config.queue.capacity_interactive = Capacity::of(1);
    });
    world.submit(SMOL);
    let held = world.submit(SMOL);
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "SYSTEM_AT_CAPACITY");
    world.pass(secs(60));
    assert_eq!(world.code(held), "QUOTA_EXCEEDED");
    let cancelled = world.submit(SMOL);
    world.cancel(cancelled);
    assert!(!world.is_open(cancelled));
    assert_eq!(world.brain.tally().held, 0);
}

#[test]
fn what_can_never_be_within_the_quota_is_refused_and_not_held_back() {
    let mut held = held_back(8, daily(250));
    let mut refused = limited(8, daily(250));
    let all = refused.submit_with(SMOL, |r| r.tokens = 250);
    assert!(refused.is_open(all));
    for world in [&mut held, &mut refused] {
        for tokens in [251, u64::MAX - 1, u64::MAX] {
            let job = world.submit_with(SMOL, |r| r.tokens = tokens);
            assert_eq!(world.code(job), "INVALID_REQUEST");
            assert_eq!(world.error(job).retry_after, None);
        }
    }
    let mut nothing = limited(8, concurrent(0));
    let job = nothing.submit(SMOL);
    assert_eq!(nothing.code(job), "INVALID_REQUEST");
}

#[test]
fn what_is_reserved_comes_back_however_much_it_is() {
    let mut world = limited(8, daily(u64::MAX));
    let huge = world.submit_with(SMOL, |r| r.tokens = u64::MAX - 100);
    let small = world.submit_with(SMOL, |r| r.tokens = 100);
    let refused = world.submit_with(SMOL, |r| r.tokens = 100);
    assert_eq!(world.code(refused), "QUOTA_EXCEEDED");
    end_using(&mut world, huge, 10);
    let all_but_that = world.submit_with(SMOL, |r| r.tokens = u64::MAX - 110);
    assert!(world.is_open(small) && world.is_open(all_but_that));
    let refused = world.submit_with(SMOL, |r| r.tokens = 1);
    assert_eq!(world.code(refused), "QUOTA_EXCEEDED");
}

#[test]
fn a_days_quota_says_that_clients_should_not_try_again_by_themselves() {
    let mut world = limited(8, daily(150));
    let [_open, refused] = [(); 2].map(|()| world.submit(SMOL));
    assert!(!world.error(refused).should_retry());
    let mut world = limited(8, concurrent(1));
    let [_open, refused] = [(); 2].map(|()| world.submit(SMOL));
    assert!(world.error(refused).should_retry());
}

#[test]
fn an_interactive_job_is_not_held_up_by_batch_jobs_that_are_held_back() {
    let mut world = held_back(8, daily(250));
    let _running = world.submit_with(SMOL, patient);
    let batch = world.submit_with(SMOL, |r| {
        patient(r);
        r.priority = Priority::Batch;
        r.tokens = 200;
    });
    let small = world.submit_with(SMOL, patient);
    assert!(world.runs_on(batch).is_none() && world.runs_on(small).is_some());
}

#[test]
fn work_that_waits_for_a_new_day_goes_at_midnight_utc_wherever_the_clock_is_set_to() {
    // 22:13:20; midnight is 6400 s away.
    let to_midnight = 6400;
    for step in [0, -3600, 1800] {
        let mut world = held_back(8, daily(100));
        let first = world.submit_with(SMOL, patient);
        end_using(&mut world, first, 100);
        let job = world.submit_with(SMOL, patient);
        world.pass(secs(100));
        world.now.wall = UnixMillis(world.now.wall.0 + step * 1000);
        world.tell(Event::Tick);
        let left = (to_midnight - 100 - step) as u64;
        world.pass(secs(left - 1));
        assert_eq!(world.runs_on(job), None, "{step}");
        world.pass(secs(1));
        assert!(world.runs_on(job).is_some(), "{step}");
    }
}

#[test]
fn a_clock_that_is_set_over_midnight_begins_the_day_and_one_set_back_gives_nothing_back() {
    let mut world = held_back(8, daily(100));
    let first = world.submit_with(SMOL, patient);
    end_using(&mut world, first, 100);
    let job = world.submit_with(SMOL, patient);
    world.now.wall = UnixMillis(world.now.wall.0 - DAY_MS);
    world.tell(Event::Tick);
    assert_eq!(world.runs_on(job), None);
    world.now.wall = UnixMillis(world.now.wall.0 + DAY_MS);
    world.tell(Event::Tick);
    assert!(world.runs_on(job).is_some());
}

#[test]
fn those_who_are_held_back_go_when_their_tenant_is_no_more() {
    let mut world = limited_and(8, TenantLimits::default(), |config| {
        config.quota_policy = QuotaPolicy::Queue;
    });
    let now = world.now;
    let tenants = vec![Tenant {
        id: tenant("other"),
        limits: concurrent(1),
    }];
    let out = &mut world.actions;
    world.brain.set_tenants(now, tenants, &[], out);
    let jobs = [(); 2].map(|()| world.submit_with(SMOL, |r| r.tenant = tenant("other")));
    assert_eq!(world.runs_on(jobs[1]), None);
    world
        .brain
        .set_tenants(now, Vec::new(), &[], &mut world.actions);
    assert!(world.runs_on(jobs[1]).is_some());
    assert_eq!(world.brain.tally().held, 0);
}

#[test]
fn jobs_of_an_earlier_life_are_let_in_and_counted() {
    let mut world = limited(8, concurrent(1));
    let jobs = [(); 2].map(|()| {
        let mut request = world.request(SMOL);
        super::two_steps::asynchronous(&mut request);
        let id = request.id;
        world.tell(Event::Recover(Box::new(request)));
        id
    });
    assert!(jobs.iter().all(|job| world.runs_on(*job).is_some()));
    world.end(jobs[0]);
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "QUOTA_EXCEEDED");
    world.end(jobs[1]);
    let next = world.submit(SMOL);
    assert!(world.runs_on(next).is_some());
}
