//! Which models go when a hive's disk is short of room for another.

use std::collections::HashSet;

use crate::config::ModelEviction;
use crate::domain::{HiveId, HiveModel, ModelRef, Now};
use crate::scheduler::Hive;

use super::Brain;
use super::action::Action;

/// A model that may go, with what decides when.
#[derive(Debug)]
struct Candidate {
    model: ModelRef,
    size_bytes: u64,
    /// The smaller, the earlier it goes.
    rank: (u64, i64),
}

impl Brain {
    /// Chooses what a hive has to remove so that a model that is on its way gets so many more bytes.
    /// Nothing uses it any more until [`Brain::disk_room_made`].
    ///
    /// # Errors
    /// Why there is nothing to remove, or not enough; for people.
    pub fn make_disk_room(
        &mut self,
        id: &HiveId,
        model: &ModelRef,
        missing_bytes: u64,
    ) -> Result<Vec<ModelRef>, String> {
        let policy = self.config.hives.model_eviction;
        if policy == ModelEviction::Off {
            return Err("models are not removed for others (hives.model_eviction is off)".into());
        }
        let Some(hive) = self.hives.get(id) else {
            return Err(format!("there is no hive {id} any more"));
        };
        let models = hive
            .capabilities()
            .into_iter()
            .flat_map(|report| &report.models);
        let (mut candidates, mut kept) = (Vec::new(), Vec::new());
        let jobs = self.jobs.values();
        let wanted: HashSet<&str> = jobs.map(|job| job.key.model.as_str()).collect();
        for there in models {
            match self.why_kept(hive, there, model, &wanted) {
                Some(why) => kept.push(format!("{} {why}", there.model_ref)),
                None => candidates.push(candidate(hive, there, policy)),
            }
        }
        let free: u64 = candidates.iter().map(|one| one.size_bytes).sum();
        let Some(victims) = choose(candidates, missing_bytes) else {
            let kept = match kept.is_empty() {
                true => String::new(),
                false => format!("; {}", kept.join(", ")),
            };
            return Err(format!(
                "{} MiB are missing, and removing all models that may go would free {} MiB{kept}",
                missing_bytes.div_ceil(1 << 20),
                free >> 20
            ));
        };
        let fetch = self.hives.get_mut(id).and_then(|hive| {
            let mut fetches = hive.fetches.iter_mut();
            fetches.find(|fetch| fetch.model == *model)
        });
        let Some(fetch) = fetch else {
            return Err(format!("{model} is not on its way to {id} any more"));
        };
        fetch.removing.clone_from(&victims);
        Ok(victims)
    }

    /// What was to be removed is gone, as far as the hive would; who waits is placed anew.
    pub fn disk_room_made(
        &mut self,
        now: Now,
        id: &HiveId,
        model: &ModelRef,
        out: &mut Vec<Action>,
    ) {
        if let Some(hive) = self.hives.get_mut(id) {
            let fetches = hive.fetches.iter_mut();
            for fetch in fetches.filter(|fetch| fetch.model == *model) {
                fetch.removing.clear();
            }
        }
        self.pump_all(now, out);
    }

    /// Why a model may not go so that another comes; `None` if it may.
    fn why_kept(
        &self,
        hive: &Hive,
        there: &HiveModel,
        to_come: &ModelRef,
        wanted: &HashSet<&str>,
    ) -> Option<&'static str> {
        let model = &there.model_ref;
        let goes_by =
            |name: &str| name == model.as_str() || there.aliases.iter().any(|alias| alias == name);
        let pinned = self.config.hives.pinned_models.iter();
        let is_pinned = |name: &String| {
            goes_by(name)
                || self
                    .resolve(name)
                    .is_ok_and(|meant| goes_by(meant.as_str()))
        };
        let mut workers = self.workers.with_model(model);
        let is_fetched = || {
            let mut fetches = hive.fetches.iter();
            fetches.any(|fetch| {
                fetch.model != *to_come && goes_by(fetch.model.as_str())
                    || fetch.removing.contains(model)
            })
        };
        let is_wanted = || {
            let aliases = there.aliases.iter().map(String::as_str);
            let mut names = aliases.chain([model.as_str()]);
            names.any(|name| wanted.contains(name))
        };
        if !there.removable {
            Some("lies elsewhere")
        } else if !model.is_fetchable() {
            Some("can't be fetched again")
        } else if pinned.into_iter().any(is_pinned) {
            Some("is pinned")
        } else if workers.any(|worker| worker.spec.hive.as_ref() == Some(hive.id())) {
            Some("is in use")
        } else if is_fetched() {
            Some("is coming or going")
        } else {
            is_wanted().then_some("is waited for")
        }
    }
}

fn candidate(hive: &Hive, there: &HiveModel, policy: ModelEviction) -> Candidate {
    let used = hive.record.model_use.get(&there.model_ref);
    let (count, last) = used.map_or((0, 0), |used| (used.count, used.last_used.0));
    Candidate {
        model: there.model_ref.clone(),
        size_bytes: there.size_bytes,
        rank: match policy {
            ModelEviction::Lfu => (count, last),
            ModelEviction::Lru | ModelEviction::Off => (0, last),
        },
    }
}

/// The first by rank that free so much together, less those without which it is enough. `None` if
/// all are not enough.
fn choose(mut candidates: Vec<Candidate>, missing_bytes: u64) -> Option<Vec<ModelRef>> {
    candidates.sort_by(|a, b| (a.rank, &a.model).cmp(&(b.rank, &b.model)));
    let mut freed = 0;
    let mut chosen: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if freed >= missing_bytes {
            break;
        }
        freed += candidate.size_bytes;
        chosen.push(candidate);
    }
    if freed < missing_bytes {
        return None;
    }
    // What was used last is spared first.
    for at in (0..chosen.len()).rev() {
        let without = freed - chosen[at].size_bytes;
        if without >= missing_bytes {
            freed = without;
            chosen.remove(at);
        }
    }
    Some(chosen.into_iter().map(|one| one.model).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(sizes: &[(u64, i64)], missing: u64) -> Option<Vec<usize>> {
        let name = |at: usize| ModelRef::from_name(&format!("org/{at}")).unwrap();
        let candidates = sizes.iter().enumerate();
        let candidates = candidates.map(|(at, &(size_bytes, last))| Candidate {
            model: name(at),
            size_bytes,
            rank: (0, last),
        });
        let victims = choose(candidates.collect(), missing)?;
        let mut places = victims.iter().map(|model| {
            let all = 0..sizes.len();
            all.into_iter().find(|at| name(*at) == *model).unwrap()
        });
        let mut places: Vec<usize> = places.by_ref().collect();
        places.sort_unstable();
        Some(places)
    }

    #[test]
    fn the_least_recently_used_go_and_no_more_than_needed() {
        assert_eq!(chosen(&[(5, 3), (5, 1), (5, 2)], 6), Some(vec![1, 2]));
        assert_eq!(chosen(&[(5, 3), (5, 1), (5, 2)], 5), Some(vec![1]));
        // The big one is enough alone.
        assert_eq!(chosen(&[(2, 1), (3, 2), (9, 3)], 8), Some(vec![2]));
        assert_eq!(chosen(&[(2, 1), (3, 2), (9, 3)], 12), Some(vec![1, 2]));
    }

    #[test]
    fn nothing_goes_when_all_are_not_enough() {
        assert_eq!(chosen(&[(5, 3), (5, 1)], 11), None);
        assert_eq!(chosen(&[], 1), None);
    }
}
