//! Seeded chance, and a policy that is left to it.

use rbee_orchestrator::domain::WorkerId;
use rbee_orchestrator::error::{Code, Error};
use rbee_orchestrator::scheduler::{
    ClusterView, LeastLoaded, Placement, PlacementRequest, Scheduler,
};

use crate::parts::{hive, worker};

pub(crate) const HIVES: [&str; 3] = ["a", "b", "c"];

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let at = (!from.is_empty()).then(|| self.below(from.len()))?;
        Some(from[at].clone())
    }
}

/// A policy that answers whatever comes up.
pub(crate) struct Nonsense(pub(crate) Dice);

impl Scheduler for Nonsense {
    fn name(&self) -> &'static str {
        "nonsense"
    }

    fn place(&mut self, request: &PlacementRequest<'_>, view: &ClusterView<'_>) -> Placement {
        let dice = &mut self.0;
        let mut ids: Vec<WorkerId> = view.workers.iter().map(|w| w.spec.id.clone()).collect();
        ids.sort_unstable();
        ids.push(worker("unknown"));
        match dice.below(7) {
            0 => Placement::Wait,
            1 => Placement::Spawn {
                hive: hive(HIVES[dice.below(3)]),
                backend: "cpu".into(),
                devices: (0..dice.below(3) as u32).collect(),
                evict: Vec::new(),
            },
            2 => Placement::StartHive(hive(HIVES[dice.below(3)])),
            3 if dice.one_in(8) => Placement::Reject(Error::new(Code::NoCapacity, "no")),
            4 => Placement::Route {
                worker: ids[dice.below(ids.len())].clone(),
                why: "because".into(),
            },
            5 => Placement::Provision {
                hive: hive(HIVES[dice.below(3)]),
            },
            _ => LeastLoaded.place(request, view),
        }
    }
}
