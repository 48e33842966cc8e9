//! Workers: how they come, are doubted, drained and stopped.

use rbee_orchestrator::brain::{Action, Aftermath, Blame, Event, Report, SeenState};
use rbee_orchestrator::domain::Outcome;
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{BIG, SMOL, call, device, failed, hive, port_of, secs, seen, worker};
use crate::world::World;

#[test]
fn a_ready_call_under_the_hives_own_id_is_held_until_the_spawn_is_answered() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let minted = world.spawned();
    let own = worker("hives-own");
    world.call_ready(call(&own, SMOL)).unwrap();
    assert_eq!(world.runs_on(job), None);
    world.answer_spawn(&minted, Ok(own));
    assert_eq!(world.runs_on(job), Some(minted));
}

#[test]
fn a_call_that_was_held_for_a_spawn_that_failed_names_no_later_worker() {
    let mut world = World::with_hive();
    world.submit(SMOL);
    let first = world.spawned();
    let own = worker("hives-own");
    world.call_ready(call(&own, SMOL)).unwrap();
    let dead = Event::WorkerFailed {
        worker: first,
        error: failed("died"),
    };
    world.tell(dead);
    world.pass(secs(15));
    let job = world.submit(SMOL);
    let second = world.spawns()[1].1.id.clone();
    world.answer_spawn(&second, Ok(own));
    assert_eq!(world.runs_on(job), None, "it has not called yet");
}

#[test]
fn both_ids_name_a_worker_that_its_hive_calls_by_another() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let minted = world.spawned();
    let own = worker("hives-own");
    world.answer_spawn(&minted, Ok(own.clone()));
    world.list("a", vec![seen("a", &own, SMOL, SeenState::Ready)]);
    assert_eq!(world.runs_on(job), Some(minted.clone()));
    assert!(!world.has_worker(&own), "it is one worker");
    world.end(job);
    world.shut_down(&own, false);
    assert_eq!(
        world.stops(),
        [own.clone()],
        "the hive is told the id it knows"
    );
    world.stopped(&own);
    assert!(!world.has_worker(&minted));
    world.list("a", vec![seen("a", &own, SMOL, SeenState::Ready)]);
    assert!(!world.has_worker(&own) && !world.has_worker(&minted));
}

#[test]
fn a_worker_that_is_shut_down_before_its_spawn_is_answered_is_stopped_by_the_id_it_gets() {
    let mut world = World::with_hive();
    world.submit(SMOL);
    let minted = world.spawned();
    world.shut_down(&minted, false);
    world.answer_spawn(&minted, Ok(worker("hives-own")));
    assert_eq!(world.stops(), [minted, worker("hives-own")]);
}

#[test]
fn a_spawn_that_is_answered_after_it_was_given_up_is_stopped() {
    let mut world = World::with_hive();
    world.submit(SMOL);
    let id = world.spawned();
    world.tell(Event::WorkerFailed {
        worker: id.clone(),
        error: failed("died"),
    });
    world.answer_spawn(&id, Ok(worker("hives-own")));
    assert_eq!(world.stops(), [worker("hives-own")]);
}

#[test]
fn a_worker_that_called_back_outlives_the_lost_answer_to_its_spawn() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let id = world.spawned();
    world.call_ready(call(&id, SMOL)).unwrap();
    world.answer_spawn(&id, Err(Error::new(Code::HiveUnreachable, "timed out")));
    assert_eq!(world.runs_on(job), Some(id.clone()));
    assert!(world.has_worker(&id));
}

#[test]
fn a_ready_call_of_a_stranger_needs_the_token_and_its_hives_host() {
    let mut world = World::with_hive();
    let stranger = worker("stranger");
    let ready = |world: &mut World, trusted: bool, host: &str| {
        let mut call = call(&stranger, SMOL);
        call.hive = Some(hive("a"));
        if !trusted {
            call.speaks_for.clear();
        }
        call.host = host.into();
        world.call_ready(call).map_err(|error| error.code)
    };
    assert_eq!(
        ready(&mut world, false, "127.0.0.1"),
        Err(Code::WorkerNotFound)
    );
    assert_eq!(
        ready(&mut world, true, "6.6.6.6"),
        Err(Code::InvalidRequest)
    );
    assert!(!world.has_worker(&stranger));
    assert_eq!(ready(&mut world, true, "10.0.0.1"), Ok(()));
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(stranger));
}

#[test]
fn a_worker_missing_from_two_lists_that_does_not_answer_is_removed() {
    let (mut world, id) = World::with_smol(1);
    world.list("a", vec![]);
    assert!(world.checks().is_empty());
    world.list("a", vec![]);
    assert_eq!(world.checks(), [id.clone()]);
    world.check(&id, true);
    assert!(world.has_worker(&id), "it answers");
    world.list("a", vec![]);
    world.check(&id, false);
    assert!(!world.has_worker(&id));
}

#[test]
fn a_worker_that_holds_a_lease_is_busy_and_not_dead() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit(SMOL);
    for _ in 0..3 {
        world.list("a", vec![]);
        world.check(&id, false);
    }
    assert!(world.has_worker(&id));
    world.end(job);
    assert!(world.brain.workers_to_check(true).any(|spec| spec.id == id));
    world.check(&id, false);
    assert!(!world.has_worker(&id));
}

#[test]
fn a_worker_that_was_lost_comes_back_with_its_hives_next_list() {
    let (mut world, id) = World::with_smol(1);
    world.miss("a", true);
    world.check(&id, false);
    assert!(!world.has_worker(&id));
    world.list("a", vec![seen("a", &id, SMOL, SeenState::Ready)]);
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(id));
}

#[test]
fn a_late_report_does_not_bring_a_stopped_worker_back() {
    let (mut world, id) = World::with_smol(1);
    world.shut_down(&id, false);
    world.stopped(&id);
    world.list("a", vec![seen("a", &id, SMOL, SeenState::Ready)]);
    let mut late = call(&id, SMOL);
    late.hive = Some(hive("a"));
    assert_eq!(
        world.call_ready(late).unwrap_err().code,
        Code::WorkerNotFound
    );
    assert!(!world.has_worker(&id));
}

#[test]
fn a_draining_worker_gets_no_new_work_and_is_stopped_with_its_last_lease() {
    let (mut world, id) = World::with_smol(2);
    let jobs = [world.submit(SMOL), world.submit(SMOL)];
    world.shut_down(&id, false);
    let next = world.submit(SMOL);
    assert_ne!(world.runs_on(next), Some(id.clone()));
    world.end(jobs[0]);
    assert!(world.stops().is_empty());
    world.end(jobs[1]);
    assert_eq!(world.stops(), [id]);
}

#[test]
fn those_who_wait_for_a_slot_of_a_worker_that_is_drained_get_another() {
    let (mut world, id) = World::with_smol(1);
    world.submit(SMOL);
    let waiting = world.submit(SMOL);
    world.shut_down(&id, false);
    let other = world.spawned();
    world.ready(&other, SMOL, 1);
    assert_eq!(world.runs_on(waiting), Some(other));
}

#[test]
fn those_who_wait_for_a_load_that_its_hive_breaks_off_get_another() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let first = world.spawned();
    world.answer_spawn(&first, Ok(first.clone()));
    world.list("a", vec![seen("a", &first, SMOL, SeenState::Stopping)]);
    let second = world.spawns()[1].1.id.clone();
    world.ready(&second, SMOL, 1);
    assert_eq!(world.runs_on(job), Some(second));
}

#[test]
fn a_forced_shutdown_does_not_wait_for_leases() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit(SMOL);
    world.shut_down(&id, true);
    assert_eq!(world.stops(), [id.clone()]);
    world.stopped(&id);
    world.end_with(job, Report::of(Outcome::Failed(failed("closed"))));
    assert_eq!(world.code(job), "WORKER_FAILED");
}

#[test]
fn what_runs_on_a_worker_is_cut_off_before_it_is_stopped_and_waits_for_another() {
    let (mut world, id) = World::with_smol(2);
    let jobs = [world.submit(SMOL), world.submit(SMOL)];
    world.shut_down(&id, true);
    let place = |is: &dyn Fn(&Action) -> bool| world.actions.iter().position(is).unwrap();
    let stop = place(&|action| matches!(action, Action::StopWorker { .. }));
    for cut_off in jobs {
        let at = place(&|a| matches!(a, Action::GiveBack { job, .. } if *job == cut_off));
        assert!(at < stop, "{:?}", world.actions);
    }
    for job in jobs {
        world.fail(job, Blame::GivenBack);
    }
    assert_eq!(world.stops().len(), 1, "it is told once");
    assert!(
        jobs.iter().all(|job| world.is_open(*job)),
        "they wait again"
    );
}

#[test]
fn an_external_server_is_used_once_it_answers_its_check() {
    let mut world = World::new();
    let id = worker("external");
    let spec = call(&id, "hf:org/external");
    let now = world.now;
    let register = |world: &mut World| {
        let answer = world.brain.register_worker(now, &spec, &mut world.actions);
        answer.map_err(|error| error.code)
    };
    assert_eq!(register(&mut world), Ok(()));
    assert_eq!(world.checks(), [id.clone()]);
    let job = world.submit("org/external");
    assert_eq!(world.runs_on(job), None);
    world.check(&id, true);
    assert_eq!(world.runs_on(job), Some(id.clone()));
    assert_eq!(
        register(&mut world),
        Ok(()),
        "the same again is no conflict"
    );
    world.shut_down(&id, false);
    assert_eq!(register(&mut world), Err(Code::Conflict));
    world.end(job);
    assert!(!world.has_worker(&id));
}

#[test]
fn a_worker_that_is_registered_again_starts_without_the_leases_of_its_earlier_life() {
    let mut world = World::new();
    let id = worker("external");
    let spec = call(&id, SMOL);
    let now = world.now;
    let register = |world: &mut World| {
        let answer = world.brain.register_worker(now, &spec, &mut world.actions);
        answer.unwrap();
        world.check(&id, true);
    };
    register(&mut world);
    let old = world.submit(SMOL);
    world.shut_down(&id, true);
    assert!(!world.has_worker(&id));
    register(&mut world);
    let new = world.submit(SMOL);
    assert_eq!(world.runs_on(new), Some(id.clone()));
    world.end(old);
    assert_eq!(world.leases(&id), 1, "the old lease frees no new slot");
    assert!(!world.is_open(old));
}

#[test]
fn a_server_registered_for_another_model_leaves_nobody_waiting_for_the_first() {
    let mut world = World::new();
    let id = worker("external");
    let now = world.now;
    for name in [SMOL, BIG] {
        let answer = world
            .brain
            .register_worker(now, &call(&id, name), &mut world.actions);
        answer.unwrap();
        if name == SMOL {
            world.submit(SMOL);
        }
    }
    assert_eq!(world.brain.open_jobs(), 0, "there is no {SMOL} any more");
}

#[test]
fn a_worker_that_loads_keeps_its_id() {
    let mut world = World::with_hive();
    world.submit(SMOL);
    let id = world.spawned();
    let now = world.now;
    let answer = world
        .brain
        .register_worker(now, &call(&id, BIG), &mut world.actions);
    assert_eq!(answer.unwrap_err().code, Code::Conflict);
}

#[test]
fn a_worker_that_broke_an_attempt_off_gets_work_again_only_when_it_answers_itself() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit(SMOL);
    let mut report = Report::of(Outcome::Failed(failed("closed without a byte")));
    report.aftermath = Aftermath::Suspect;
    world.end_with(job, report);
    assert_eq!(world.checks(), [id.clone()]);
    let next = world.submit(SMOL);
    world.list("a", vec![seen("a", &id, SMOL, SeenState::Ready)]);
    assert_eq!(world.runs_on(next), None, "its hive's word is not enough");
    assert!(world.brain.workers_to_check(true).any(|spec| spec.id == id));
    world.check(&id, true);
    assert_eq!(world.runs_on(next), Some(id));
}

#[test]
fn a_worker_that_reports_fewer_slots_than_it_has_taken_gets_nothing_until_there_is_room() {
    let (mut world, id) = World::with_smol(3);
    let jobs = [(); 3].map(|()| world.submit(SMOL));
    world.list("a", vec![seen("a", &id, SMOL, SeenState::Ready)]);
    let next = world.submit(SMOL);
    world.end(jobs[0]);
    world.end(jobs[1]);
    assert_eq!(world.runs_on(next), None);
    world.end(jobs[2]);
    assert_eq!(world.runs_on(next), Some(id));
}

#[test]
fn one_hive_can_not_speak_for_the_worker_of_another() {
    let (mut world, id) = World::with_smol(1);
    world.hive("b", &[device(0, "cpu", 8)]);
    for state in [
        SeenState::Stopping,
        SeenState::Failed(failed("died")),
        SeenState::Ready,
    ] {
        world.list("b", vec![seen("b", &id, BIG, state)]);
    }
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(id));
    world.pass(secs(1));
}

#[test]
fn a_worker_that_may_still_compute_keeps_its_slot_until_it_answers() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit(SMOL);
    let mut report = Report::of(Outcome::Cancelled(failed("the client has gone")));
    report.aftermath = Aftermath::Computing;
    world.end_with(job, report.clone());
    let told = |action: &Action| matches!(action, Action::CancelOnWorker { .. });
    assert!(
        world.actions.iter().any(told),
        "it is told that nobody waits"
    );
    world.check(&id, false);
    assert_eq!(world.leases(&id), 1, "the slot is still taken");
    world.check(&id, true);
    assert_eq!(world.leases(&id), 0);
    assert_eq!(world.brain.next_due(), None);

    let never_ending = world.submit(SMOL);
    world.end_with(never_ending, report);
    world.pass(secs(3600));
    assert_eq!(world.stops(), [id], "its client would have given up by now");
}

fn broken_off() -> Report {
    let mut report = Report::of(Outcome::Failed(failed("closed without a byte")));
    report.aftermath = Aftermath::Suspect;
    report
}

#[test]
fn a_suspect_that_stays_deaf_is_stopped_and_those_who_wait_get_another() {
    let (mut world, id) = World::with_smol(1);
    let job = world.submit(SMOL);
    world.end_with(job, broken_off());
    let next = world.submit_with(SMOL, |r| r.queue_timeout = secs(300));
    assert_eq!(world.told(next), ["check_worker"], "it does not load");
    for _ in 0..5 {
        world.pass(secs(11));
        world.check(&id, false);
    }
    assert!(world.stops().is_empty() && world.spawns().is_empty());
    world.pass(secs(5));
    assert_eq!(world.stops(), [id.clone()]);
    world.stopped(&id);
    assert!(!world.has_worker(&id));
    let other = world.spawned();
    world.ready(&other, SMOL, 1);
    assert_eq!(world.runs_on(next), Some(other));
}

#[test]
fn a_suspect_that_holds_a_lease_is_not_stopped_and_one_that_answers_is_no_suspect() {
    let (mut world, id) = World::with_smol(2);
    let [job, long] = [world.submit(SMOL), world.submit(SMOL)];
    world.end_with(job, broken_off());
    world.pass(secs(61));
    assert!(world.stops().is_empty());
    world.end(long);
    world.pass(secs(59));
    assert!(world.stops().is_empty(), "its time began anew");
    world.check(&id, true);
    world.pass(secs(60));
    assert!(world.stops().is_empty());
    let next = world.submit(SMOL);
    assert_eq!(world.runs_on(next), Some(id));
}

/// A world with a server that no hive owns, registered and not checked yet.
fn with_external(mut world: World) -> (World, rbee_orchestrator::domain::WorkerId) {
    let id = worker("external");
    let now = world.now;
    let answer = world
        .brain
        .register_worker(now, &call(&id, SMOL), &mut world.actions);
    answer.unwrap();
    (world, id)
}

#[test]
fn a_server_that_never_answers_is_waited_for_until_its_first_check_and_then_refused() {
    let (mut world, id) = with_external(World::new());
    let job = world.submit(SMOL);
    assert!(world.is_open(job));
    world.check(&id, false);
    assert_eq!(world.code(job), "NO_CAPACITY");
    let port = port_of(&id);
    let message = format!("worker external at 127.0.0.1:{port} does not answer its health check");
    assert_eq!(world.error(job).message, message);
    let late = world.submit(SMOL);
    assert_eq!(world.code(late), "NO_CAPACITY");
    assert!(world.has_worker(&id));
    world.check(&id, true);
    let next = world.submit(SMOL);
    assert_eq!(world.runs_on(next), Some(id));
}

#[test]
fn a_server_that_stopped_answering_does_not_keep_a_hive_from_serving_its_model() {
    let (mut world, id) = with_external(World::with_hive());
    world.check(&id, true);
    let job = world.submit(SMOL);
    world.end_with(job, broken_off());
    let next = world.submit(SMOL);
    assert_eq!(world.told(next), ["check_worker"]);
    world.check(&id, false);
    assert_eq!(world.told(next), ["check_worker", "load"]);
    let other = world.spawned();
    world.pass(secs(50));
    world.ready(&other, SMOL, 1);
    assert_eq!(world.runs_on(next), Some(other));
    world.pass(secs(60));
    assert!(world.stops().is_empty() && world.has_worker(&id));
}

#[test]
fn a_ready_call_without_its_hives_token_is_a_hint_upon_which_the_hive_is_asked() {
    let mut world = World::with_hive();
    let job = world.submit(SMOL);
    let id = world.spawned();
    world.answer_spawn(&id, Ok(id.clone()));
    let ready = |world: &mut World, speaks_for: &[&str], host: &str, port| {
        let mut call = call(&id, SMOL);
        (call.host, call.port) = (host.into(), port);
        call.speaks_for = speaks_for.iter().copied().map(hive).collect();
        world.call_ready(call).map_err(|error| error.code)
    };
    let address = |world: &World| {
        let view = world.brain.view(world.now);
        let worker = view.workers.get(&id).unwrap();
        (worker.ready, worker.spec.host.clone(), worker.spec.port)
    };
    let own = port_of(&id);
    for speaks_for in [&[][..], &["b"]] {
        for (host, port) in [("127.0.0.1", own), ("10.0.0.1", 9001), ("6.6.6.6", own)] {
            world.clear();
            assert_eq!(ready(&mut world, speaks_for, host, port), Ok(()));
            assert_eq!(world.hive_checks(), [hive("a")]);
            assert_eq!(address(&world), (false, "127.0.0.1".into(), own));
        }
    }
    assert_eq!(world.runs_on(job), None, "nobody was given its prompt");
    let mut listed = seen("a", &id, SMOL, SeenState::Ready);
    listed.spec.port = 9002;
    world.list("a", vec![listed]);
    assert_eq!(world.runs_on(job), Some(id.clone()));
    assert_eq!(address(&world), (true, "127.0.0.1".into(), 9002));
    let refused = Err(Code::InvalidRequest);
    assert_eq!(ready(&mut world, &[], "127.0.0.1", 9001), refused);
    assert_eq!(ready(&mut world, &["a"], "6.6.6.6", 9002), refused);
    assert_eq!(ready(&mut world, &["a"], "10.0.0.1", 9003), Ok(()));
    assert_eq!(address(&world), (true, "10.0.0.1".into(), 9003));
}

#[test]
fn no_ready_call_moves_a_server_that_no_hive_owns() {
    let (mut world, id) = with_external(World::new());
    let mut call = call(&id, SMOL);
    call.port += 1;
    let error = world.call_ready(call).unwrap_err();
    assert_eq!(error.code, Code::InvalidRequest);
}

#[test]
fn a_held_call_that_its_hive_vouches_for_is_taken_in_when_no_spawn_was_its_own() {
    let mut world = World::with_hive();
    world.submit(BIG);
    let spawned = world.spawned();
    for (id, trusted) in [("adopted", true), ("stranger", false)] {
        let mut call = call(&worker(id), SMOL);
        call.hive = Some(hive("a"));
        if !trusted {
            call.speaks_for.clear();
        }
        world.call_ready(call).unwrap();
        assert!(!world.has_worker(&worker(id)), "it may be the spawned one");
    }
    world.answer_spawn(&spawned, Ok(spawned.clone()));
    assert!(!world.has_worker(&worker("stranger")));
    let job = world.submit(SMOL);
    assert_eq!(world.runs_on(job), Some(worker("adopted")));
}

#[test]
fn a_worker_that_a_stranger_calls_dead_is_asked_and_stays() {
    let (mut world, id) = World::with_smol(1);
    world.clear();
    world.brain.doubt_worker(&id, &mut world.actions);
    assert_eq!(world.checks(), std::slice::from_ref(&id));
    assert!(world.has_worker(&id));
    world
        .brain
        .doubt_worker(&worker("nobody"), &mut world.actions);
    assert_eq!(world.checks(), [id]);
}

#[test]
fn a_spawn_names_the_first_request_that_waits_for_it() {
    let mut world = World::with_hive();
    let first = world.submit(SMOL);
    world.submit(SMOL);
    let mut spawns = world.actions.iter().filter_map(|action| match action {
        Action::Spawn { for_job, .. } => Some(*for_job),
        _ => None,
    });
    assert_eq!(spawns.next(), Some(Some(first)));
    assert_eq!(spawns.next(), None);
}
