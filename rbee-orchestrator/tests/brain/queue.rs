//! The queue: whose turn it is, what those who wait hear, and what happens when it is full.

use std::time::Duration;

use rbee_orchestrator::brain::{Event, JobRequest};
use rbee_orchestrator::config::{Capacity, WhenFull};
use rbee_orchestrator::domain::{JobId, Priority, SessionId};
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{BIG, SMOL, device, secs};
use crate::world::World;

fn batch(request: &mut JobRequest) {
    request.priority = Priority::Batch;
    (request.queue_timeout, request.total_timeout) = (secs(7200), secs(7200));
}

fn of_session(name: &str) -> impl FnOnce(&mut JobRequest) {
    let session = SessionId::new(name).unwrap();
    |request| request.session = Some(session)
}

#[test]
fn the_sessions_of_a_tenant_take_turns_and_within_one_the_first_comes_first() {
    let (mut world, _) = World::with_smol(1);
    let running = world.submit(SMOL);
    let many: Vec<JobId> = (0..4)
        .map(|_| world.submit_with(SMOL, of_session("many")))
        .collect();
    let few: Vec<JobId> = (0..2)
        .map(|_| world.submit_with(SMOL, of_session("few")))
        .collect();
    let none = world.submit(SMOL);
    let order = [many[0], few[0], none, many[1], few[1], many[2], many[3]];
    for (place, job) in order.iter().enumerate() {
        let told = world.brain.queue_place(*job).unwrap();
        assert_eq!(told.position, place);
    }
    assert_eq!(world.run_all(running), order);
}

#[test]
fn a_constraint_that_can_not_be_met_holds_nobody_up_but_its_own() {
    let mut world = World::with_hive();
    world.hive("b", &[device(0, "cuda", 8)]);
    world.adopt("a", "a-0", SMOL, 1);
    world.adopt("b", "b-0", SMOL, 1);
    let on = |hive: &'static str| {
        move |request: &mut JobRequest| {
            request.constraints.hive = Some(crate::parts::hive(hive));
        }
    };
    let [on_a, on_b] = ["a", "b"].map(|hive| world.submit_with(SMOL, on(hive)));
    let stuck = [(); 3].map(|()| world.submit_with(SMOL, on("a")));
    let free = world.submit(SMOL);
    world.end(on_b);
    assert!(world.runs_on(free).is_some(), "it passes those who need a");
    world.end(on_a);
    assert!(world.runs_on(stuck[0]).is_some());
}

#[test]
fn who_comes_does_not_overtake_who_waits_for_the_same_slot() {
    let (mut world, id) = World::with_smol(1);
    let running = world.submit(SMOL);
    let waiting = world.submit_with(SMOL, |r| r.constraints.backend = Some("cpu".into()));
    world.end(running);
    let late = world.submit(SMOL);
    assert_eq!(world.runs_on(waiting), Some(id));
    assert_eq!(world.runs_on(late), None);
}

#[test]
fn a_batch_job_that_has_waited_for_long_goes_to_its_place_among_the_interactive_ones() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.batch_quiet = std::time::Duration::ZERO;
    });
    let long = |r: &mut JobRequest| (r.queue_timeout, r.total_timeout) = (secs(7200), secs(7200));
    let running = world.submit_with(SMOL, long);
    let old = world.submit_with(SMOL, batch);
    world.pass(secs(299));
    let first = world.submit_with(SMOL, long);
    assert_eq!(world.places(first), [(0, None)], "before the batch job");
    world.pass(secs(1));
    let new = world.submit_with(SMOL, batch);
    let last = world.submit_with(SMOL, long);
    assert_eq!(world.run_all(running), [old, first, last, new]);
    assert_eq!(world.brain.counters().promoted, 1);
}

#[test]
fn those_who_wait_hear_once_a_second_where_they_stand_if_that_has_changed() {
    let (mut world, _) = World::with_smol(1);
    let mut running = world.submit(SMOL);
    let jobs = [(); 4].map(|()| world.submit(SMOL));
    world.pass(secs(5));
    assert_eq!(world.places(jobs[3]), [(3, None)], "nothing has changed");
    for job in &jobs[..2] {
        world.end(running);
        running = *job;
        world.pass(Duration::from_millis(10));
    }
    assert_eq!(
        world.places(jobs[3]),
        [(3, None)],
        "not more than once a second"
    );
    world.pass(secs(1));
    // The first kept its slot for 5 s, the second for 10 ms: 4.4 s is what may be expected.
    assert_eq!(world.places(jobs[3]), [(3, None), (1, Some(8))]);
    assert_eq!(world.places(jobs[2]), [(2, None), (0, Some(4))]);
    world.pass(secs(5));
    assert_eq!(world.places(jobs[3]).len(), 2);
}

#[test]
fn only_the_first_thousand_of_a_model_hear_of_each_step() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.capacity_interactive = Capacity::UNBOUNDED;
    });
    let running = world.submit(SMOL);
    let jobs: Vec<JobId> = (0..1500).map(|_| world.submit(SMOL)).collect();
    world.pass(secs(1));
    world.clear();
    world.tell(Event::Cancel {
        job: jobs[0],
        error: Error::new(Code::Cancelled, "gone"),
    });
    world.pass(secs(2));
    assert_eq!(world.places(jobs[1000]), [(999, None)]);
    assert!(world.places(jobs[1001]).is_empty());
    assert!(world.is_open(running));
}

#[test]
fn a_class_that_is_full_refuses_and_says_when_to_come_back_by_the_measured_rate() {
    let (mut world, _) = World::configured(2, |config| {
        config.queue.capacity_interactive = Capacity::of(10);
        config.queue.capacity_batch = Capacity::of(1);
    });
    let [first, _] = [world.submit(SMOL), world.submit(SMOL)];
    let waiting = [(); 10].map(|()| world.submit(SMOL));
    let refused = world.submit(SMOL);
    assert_eq!(world.code(refused), "SYSTEM_AT_CAPACITY");
    let after = |world: &World, job| world.error(job).retry_after;
    assert_eq!(
        after(&world, refused),
        Some(secs(5)),
        "nothing is known yet"
    );
    world.pass(secs(8));
    world.end(first);
    let [_, refused] = [world.submit(SMOL), world.submit(SMOL)];
    // Ten wait for two slots that come free every 8 s.
    assert_eq!(after(&world, refused), Some(secs(40)));
    let [allowed, refused] = [(); 2].map(|()| world.submit_with(SMOL, batch));
    assert!(
        world.is_open(allowed),
        "the classes have bounds of their own"
    );
    assert_eq!(world.code(refused), "SYSTEM_AT_CAPACITY");
    assert!(world.is_open(waiting[9]));
}

#[test]
fn a_queue_that_holds_as_many_bytes_as_it_may_is_full() {
    let (mut world, _) = World::configured(1, |config| config.queue.max_bytes = 1000);
    let large = |request: &mut JobRequest| request.bytes = 600;
    let running = world.submit_with(SMOL, large);
    let waiting = world.submit_with(SMOL, large);
    let refused = world.submit_with(SMOL, large);
    assert_eq!(world.code(refused), "SYSTEM_AT_CAPACITY");
    world.end(running);
    let next = world.submit_with(SMOL, large);
    assert!(world.is_open(next), "what runs waits no more");
    assert!(world.is_open(waiting));
}

#[test]
fn if_so_configured_an_interactive_request_takes_the_place_of_the_oldest_batch_job() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.capacity_interactive = Capacity::of(1);
        config.queue.capacity_batch = Capacity::of(2);
        config.queue.when_full = WhenFull::DropOldestBatch;
    });
    world.submit(SMOL);
    let jobs = [(); 2].map(|()| world.submit_with(SMOL, batch));
    let refused = world.submit_with(SMOL, batch);
    assert_eq!(
        world.code(refused),
        "SYSTEM_AT_CAPACITY",
        "batch drops none"
    );
    let [_, second] = [world.submit(SMOL), world.submit(SMOL)];
    assert_eq!(world.code(jobs[0]), "SYSTEM_AT_CAPACITY");
    assert!(world.is_open(jobs[1]) && world.is_open(second));
    let [_, late] = [world.submit(SMOL), world.submit(SMOL)];
    assert_eq!(
        world.code(late),
        "SYSTEM_AT_CAPACITY",
        "none is left to drop"
    );
    assert_eq!(world.brain.counters().dropped, 2);
}

#[test]
fn bytes_are_freed_by_as_many_batch_jobs_as_it_takes_or_by_none() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.max_bytes = 1000;
        config.queue.when_full = WhenFull::DropOldestBatch;
    });
    world.submit(SMOL);
    let jobs = [(); 3].map(|()| {
        world.submit_with(SMOL, |request| {
            batch(request);
            request.bytes = 300;
        })
    });
    let bytes = |bytes| move |request: &mut JobRequest| request.bytes = bytes;
    let too_large = world.submit_with(SMOL, bytes(1001));
    assert_eq!(world.code(too_large), "SYSTEM_AT_CAPACITY");
    assert!(jobs.iter().all(|job| world.is_open(*job)));
    let large = world.submit_with(SMOL, bytes(650));
    assert!(world.is_open(large));
    let open = jobs.map(|job| world.is_open(job));
    assert_eq!(open, [false, false, true]);
}

#[test]
fn thousands_that_give_up_at_once_leave_nothing_behind() {
    let (mut world, _) = World::configured(1, |config| {
        config.queue.capacity_interactive = Capacity::UNBOUNDED;
    });
    let running = world.submit(SMOL);
    for at in 0..5000 {
        let session = format!("s-{}", at % 50);
        let model = [SMOL, BIG][at % 2];
        world.submit_with(model, of_session(&session));
    }
    world.pass(secs(61));
    assert_eq!(world.brain.waiting(), 0);
    assert_eq!(world.brain.open_jobs(), 1);
    assert!(world.is_open(running));
}
