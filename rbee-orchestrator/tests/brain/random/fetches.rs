//! What happens to models on their way.

use rbee_orchestrator::brain::Event;
use rbee_orchestrator::domain::ModelRef;
use rbee_orchestrator::error::{Code, Error};

use super::{REPO, Run};
use crate::dice::HIVES;
use crate::parts::{hive, model};

impl Run {
    /// A fetch comes on or ends, or one is told of that nobody asked for.
    pub(super) fn fetch_event(&mut self) {
        let (on, model) = match self.dice.pick(&self.fetching) {
            Some(fetch) if !self.dice.one_in(6) => fetch,
            _ => (hive(HIVES[self.dice.below(3)]), model(REPO)),
        };
        let bytes = self.dice.below(1000) as u64;
        let event = match self.dice.below(8) {
            7 => {
                self.say(format!("{on} has no room for {model}"));
                let brain = &mut self.world.brain;
                if let Ok(victims) = brain.make_disk_room(&on, &model, bytes) {
                    assert!(victims.iter().all(ModelRef::is_fetchable), "{victims:?}");
                    if !victims.is_empty() {
                        self.reach("eviction");
                    }
                }
                return;
            }
            6 => {
                self.say(format!("{on} made room for {model}"));
                let (now, world) = (self.world.now, &mut self.world);
                let out = &mut world.actions;
                return world.brain.disk_room_made(now, &on, &model, out);
            }
            0 => {
                self.say(format!("{on} is ordered to fetch {model}"));
                return self.world.brain.expect_fetch(&on, &model);
            }
            1..=3 => Event::FetchProgress {
                hive: on,
                model,
                bytes_downloaded: bytes,
                bytes_total: self.dice.below(2) as u64 * 1000,
            },
            kind => {
                self.fetching
                    .retain(|fetch| *fetch != (on.clone(), model.clone()));
                let code = self.dice.pick(&[
                    Code::InsufficientDisk,
                    Code::ModelNotFound,
                    Code::DownloadFailed,
                ]);
                let result = match kind {
                    4 => Ok(self.dice.one_in(2).then(|| "/m.gguf".into())),
                    _ => Err(Error::new(code.unwrap(), "no")),
                };
                let view = self.world.brain.view(self.world.now);
                let hive = view.hives.get(&on);
                if hive.is_some_and(|hive| hive.fetch(&model).is_some()) {
                    self.reach(match result {
                        Ok(_) => "fetched",
                        Err(_) => "fetch failed",
                    });
                }
                Event::Fetched {
                    hive: on,
                    model,
                    result,
                }
            }
        };
        self.tell(event);
    }
}
