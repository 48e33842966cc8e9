//! What happens to hives, and what their administrators want.

use rbee_orchestrator::brain::SpawnOrder;
use rbee_orchestrator::scheduler::Hive;

use super::{MODELS, REPO, Run};
use crate::dice::{Dice, HIVES};
use crate::parts::{device, failed, hive, on_disk, report, seen, spec, worker};

impl Run {
    pub(super) fn hive_lists(&mut self) {
        let name = HIVES[self.dice.below(3)];
        let mut listed = Vec::new();
        for _ in 0..self.dice.below(4) {
            let id = self.any_worker();
            let model = MODELS[2 + self.dice.below(2)];
            let state = self.state();
            let mut one = seen(name, &id, model, state);
            one.spec.slots_total = self.dice.below(4) as u32;
            one.spec.protocol = self.protocol();
            one.spec.device = self.dice.below(2) as u32;
            listed.push(one);
        }
        // In one list, a worker may take work and another entry may end it.
        let in_order = listed.len() < 2;
        self.say(format!("{name} lists {listed:?}"));
        match self.dice.one_in(3) {
            true => self.world.list(name, listed),
            false => {
                let free = |dice: &mut Dice| dice.below(12) as u64;
                let devices = [0, 1].map(|at| device(at, "cpu", free(&mut self.dice)));
                let some = self.dice.below(3);
                let mut report = report(&devices[..some]);
                if self.dice.one_in(3) {
                    let aliases = [REPO, "org/repo"];
                    report
                        .models
                        .push(on_disk("hf:org/repo/m.gguf", &aliases, 1));
                }
                self.world.report(name, report, listed);
            }
        }
        self.check(in_order);
    }

    pub(super) fn hive_start_or_miss(&mut self) {
        let name = HIVES[self.dice.below(3)];
        let kind = self.dice.below(7);
        self.say(format!("{name}: start or miss, {kind}"));
        match kind {
            0 => self.world.started(name, Err(failed("no binary"))),
            1 => {
                self.world.is_ours(name);
                self.world.started(name, Ok(()));
            }
            2 if self.dice.one_in(3) => {
                self.world.is_ours(name);
                self.world.hive_stopped(name, Ok(()));
            }
            kind => self.world.miss(name, kind < 4),
        }
    }

    pub(super) fn administrate(&mut self) {
        let name = HIVES[self.dice.below(3)];
        let id = self.any_worker();
        let kind = self.dice.below(12);
        let force = self.dice.one_in(2);
        let constraints = self.constraints();
        self.say(format!(
            "administrates {name} {id}: {kind} {force} {constraints:?}"
        ));
        let (now, world) = (self.world.now, &mut self.world);
        let out = &mut world.actions;
        match kind {
            0..=2 => world.register(spec(name)),
            3 => {
                let mut moved = spec(name);
                moved.hostname = "10.0.0.9".into();
                world.register(moved);
            }
            4 => drop(world.brain.remove_hive(now, &hive(name), out)),
            5 => {
                let id = worker(&format!("ordered-{}", self.steps.len()));
                let order = SpawnOrder {
                    model: "smol".into(),
                    constraints,
                };
                let _ = world.brain.order_worker(now, id, &order, out);
            }
            6 if self.dice.one_in(10) => world.brain.drain(now, out),
            7 => self.set_tenants(),
            8 => {
                if world.brain.drain_hive(now, &hive(name), force, out).is_ok() {
                    self.reach("drain");
                }
            }
            9 => {
                let drained = |hive: &Hive| hive.draining;
                let hives = world.brain.view(now).hives;
                let was_drained = hives.get(&hive(name)).is_some_and(drained);
                if world.brain.resume_hive(now, &hive(name), out).is_ok() && was_drained {
                    self.reach("resume");
                }
            }
            _ => drop(world.brain.shutdown_worker(now, &id, force, out)),
        }
    }
}
