//! Who is at which address: ports are given out again, and what had one may live on.

use rbee_orchestrator::brain::{Action, Event, SeenState};
use rbee_orchestrator::domain::WorkerId;
use rbee_orchestrator::error::{Code, Error};

use crate::parts::{BIG, SMOL, failed, secs, seen, worker};
use crate::world::World;

impl World {
    /// A hive says that a worker is ready at a port.
    fn is_ready_at(&mut self, id: &WorkerId, model: &str, port: u16) {
        let mut listed = seen("a", id, model, SeenState::Ready);
        listed.spec.port = port;
        self.list("a", vec![listed]);
    }

    fn is_usable(&self, id: &WorkerId) -> bool {
        let view = self.brain.view(self.now);
        view.workers.get(id).is_some_and(|worker| worker.ready)
    }

    /// Workers that were asked what they serve.
    fn asked(&self) -> Vec<WorkerId> {
        let asked = |action: &Action| match action {
            Action::AskWhatIsServed { worker } => Some(worker.id.clone()),
            _ => None,
        };
        self.actions.iter().filter_map(asked).collect()
    }

    fn serves(&mut self, id: &WorkerId, names: Option<&[&str]>) {
        self.tell(Event::WorkerServes {
            worker: id.clone(),
            names: names.map(|names| names.iter().map(|&name| name.to_owned()).collect()),
        });
    }
}

/// A small model's worker was at port 9100, and the hive says of another one for the big model that it is there.
fn two_at_one_port() -> (World, WorkerId) {
    let mut world = World::with_hive();
    world.is_ready_at(&worker("a-0"), SMOL, 9100);
    let job = world.submit(BIG);
    let id = worker("b-0");
    world.is_ready_at(&id, BIG, 9100);
    assert_eq!(world.asked(), [id.clone()]);
    assert!(!world.is_usable(&id) && world.runs_on(job).is_none());
    (world, id)
}

#[test]
fn a_worker_where_another_model_is_still_served_gets_no_request() {
    let (mut world, id) = two_at_one_port();
    world.serves(&id, Some(&["file:smol.gguf"]));
    assert!(!world.has_worker(&id));
    assert_eq!(world.stops(), [id]);
}

#[test]
fn a_worker_whose_model_is_served_there_is_used_and_the_old_one_is_gone() {
    for names in [["file:big.gguf"], ["/models/BIG.gguf"]] {
        let (mut world, id) = two_at_one_port();
        world.serves(&id, Some(&names));
        assert!(world.is_usable(&id), "{names:?}");
        assert!(!world.has_worker(&worker("a-0")));
        let job = world.submit(BIG);
        world.is_ready_at(&id, BIG, 9100);
        assert!(world.runs_on(job).is_some() || world.is_open(job));
        assert_eq!(world.asked().len(), 1, "it is not asked again");
    }
}

#[test]
fn one_that_can_not_tell_is_used_when_the_other_has_ended_for_certain() {
    let (mut world, id) = two_at_one_port();
    for _ in 0..3 {
        world.serves(&id, None);
        world.check(&id, true);
        assert!(!world.is_usable(&id));
    }
    world.shut_down(&worker("a-0"), true);
    world.stopped(&worker("a-0"));
    world.check(&id, true);
    assert!(!world.is_usable(&id), "its process may still end");
    world.pass(secs(61));
    world.check(&id, true);
    assert!(world.is_usable(&id));
}

#[test]
fn a_port_whose_process_has_died_is_free_at_once_and_so_is_one_of_the_same_model() {
    let mut world = World::with_hive();
    world.is_ready_at(&worker("a-0"), SMOL, 9100);
    let mut died = seen(
        "a",
        &worker("a-0"),
        SMOL,
        SeenState::Failed(failed("exit 1")),
    );
    died.spec.port = 9100;
    world.list("a", vec![died]);
    world.is_ready_at(&worker("b-0"), BIG, 9100);
    assert!(world.is_usable(&worker("b-0")));
    world.is_ready_at(&worker("b-1"), BIG, 9100);
    assert!(world.is_usable(&worker("b-1")));
    assert_eq!(world.asked(), []);
}

#[test]
fn a_ready_worker_that_moves_to_anothers_port_is_asked_too() {
    let mut world = World::with_hive();
    world.is_ready_at(&worker("a-0"), SMOL, 9100);
    world.is_ready_at(&worker("b-0"), BIG, 9200);
    assert!(world.is_usable(&worker("b-0")));
    world.is_ready_at(&worker("b-0"), BIG, 9100);
    assert!(!world.is_usable(&worker("b-0")));
    assert_eq!(world.asked(), [worker("b-0")]);
}

#[test]
fn a_worker_that_its_hive_does_not_stop_is_used_again_if_it_answers() {
    for answers in [true, false] {
        let (mut world, id) = World::with_smol(1);
        world.shut_down(&id, false);
        assert!(world.brain.is_being_stopped(&id));
        world.tell(Event::WorkerNotStopped {
            worker: id.clone(),
            error: Error::new(Code::WorkerNotFound, "there is no such worker"),
        });
        let why = world.brain.why_not_stopped(&id).unwrap();
        assert_eq!(why.message, "there is no such worker");
        world.check(&id, answers);
        assert_eq!(world.is_usable(&id), answers);
        let job = world.submit(SMOL);
        assert_eq!(world.runs_on(job).is_some(), answers);
    }
}
