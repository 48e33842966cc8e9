use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::domain::{Outcome, RequestHash};
use crate::store::MemoryStore;
use crate::store::testing::{cancelled, claimed, finished, requeued, submission};

const JOBS: usize = 3;

/// Something that is done to both stores.
#[derive(Debug, Clone)]
enum Deed {
    Submit(usize),
    /// Awaited, under a key or none; with the second request.
    SubmitDurably(usize, Option<u8>, bool),
    Claim(usize, u32),
    Requeue(usize, u32),
    FinishDurably(usize, u32),
    Finish(usize, u32),
    Cancel(usize, u32),
    Flush,
    Read(usize),
    PutHive,
    Recover(u128),
    Purge,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let (job, attempt) = (0..JOBS, 0..3_u32);
    let deed = prop_oneof![
        3 => job.clone().prop_map(Deed::Submit),
        3 => (job.clone(), prop::option::of(0..2_u8), any::<bool>())
            .prop_map(|(job, key, other)| Deed::SubmitDurably(job, key, other)),
        3 => (job.clone(), attempt.clone()).prop_map(|(job, attempt)| Deed::Claim(job, attempt)),
        1 => (job.clone(), attempt.clone()).prop_map(|(job, attempt)| Deed::Requeue(job, attempt)),
        1 => (job.clone(), attempt.clone())
            .prop_map(|(job, attempt)| Deed::FinishDurably(job, attempt)),
        2 => (job.clone(), attempt.clone()).prop_map(|(job, attempt)| Deed::Finish(job, attempt)),
        1 => (job.clone(), attempt).prop_map(|(job, attempt)| Deed::Cancel(job, attempt)),
        1 => Just(Deed::Flush),
        1 => job.prop_map(Deed::Read),
        1 => Just(Deed::PutHive),
        1 => (0..3_u128).prop_map(Deed::Recover),
        1 => Just(Deed::Purge),
    ];
    prop::collection::vec(deed, 1..24)
}

/// The jobs of one case; a job is submitted once, as its contract says.
struct Case {
    jobs: Vec<JobRecord>,
    submitted: [bool; JOBS],
}

impl Case {
    fn new() -> Self {
        let job = |owner| JobRecord {
            owner: Uuid::from_u128(owner),
            asynchronous: owner > 0,
            ..queued_job()
        };
        Case {
            jobs: (0..JOBS as u128).map(job).collect(),
            submitted: [false; JOBS],
        }
    }

    /// What is seen of the deed.
    async fn carry_out(&mut self, store: &dyn Store, deed: &Deed) -> String {
        match *deed {
            Deed::Submit(job) => {
                if !std::mem::replace(&mut self.submitted[job], true) {
                    store.record(submitted(&self.jobs[job]));
                }
            }
            Deed::SubmitDurably(job, key, other) => {
                let mut record = self.jobs[job].clone();
                // Keys are each case's own: the stores go on.
                record.idempotency_key = key.map(|key| format!("{key} {}", self.jobs[0].id));
                record.request_hash = other.then_some(RequestHash([1; 32]));
                self.submitted[job] = true;
                return format!("{:?}", store.submit(submission(record)).await);
            }
            Deed::Requeue(job, attempt) => store.record(requeued(self.jobs[job].id, attempt)),
            Deed::FinishDurably(job, attempt) => {
                let ending = Ending::new(Outcome::Complete, UnixMillis(3));
                let finished = store.finish(self.jobs[job].id, attempt, ending).await;
                return format!("{finished:?}");
            }
            Deed::Purge => {
                // All that has ended, but what its key still finds.
                let now = UnixMillis(i64::MAX);
                let purged = store.purge(now, UnixMillis(0), 100).await;
                return format!("{purged:?}");
            }
            Deed::Claim(job, attempt) => store.record(claimed(self.jobs[job].id, attempt)),
            Deed::Finish(job, attempt) => store.record(finished(self.jobs[job].id, attempt, "x")),
            Deed::Cancel(job, attempt) => store.record(cancelled(self.jobs[job].id, attempt)),
            Deed::Flush => store.flush().await.unwrap(),
            Deed::Read(job) => {
                let id = self.jobs[job].id;
                let request = store.request(id).await;
                return format!("{:?} {request:?}", store.job(id).await);
            }
            Deed::PutHive => {
                let hive = crate::store::testing::complete_hive("gpu-0");
                store.put_hive(hive).await.unwrap();
            }
            Deed::Recover(owner) => {
                let recovered = store.recover(Uuid::from_u128(owner), UnixMillis(1)).await;
                return format!("{recovered:?}");
            }
        }
        String::new()
    }

    async fn records(&self, store: &dyn Store) -> Vec<Option<JobRecord>> {
        let mut records = Vec::new();
        for job in &self.jobs {
            records.push(store.job(job.id).await.unwrap());
        }
        records
    }
}

#[test]
fn whatever_is_done_both_stores_show_the_same() {
    let runtime = Runtime::new().unwrap();
    let (_folder, on_disk) = runtime.block_on(new_store(Tuning::default()));
    let in_memory = MemoryStore::new();
    let stores: [&dyn Store; 2] = [&on_disk, &in_memory];
    proptest!(ProptestConfig::with_cases(200), |(deeds in deeds())| {
        let case = Case::new();
        let shown = stores.map(|store| runtime.block_on(async {
            let mut case = Case { jobs: case.jobs.clone(), ..Case::new() };
            let mut shown = Vec::new();
            for deed in &deeds {
                shown.push(case.carry_out(store, deed).await);
            }
            (shown, case.records(store).await)
        }));
        prop_assert_eq!(&shown[0], &shown[1]);
        let listed = stores.map(|store| {
            let all = JobFilter::default();
            runtime.block_on(store.jobs(&all, 10, None)).unwrap()
        });
        prop_assert_eq!(&listed[0], &listed[1]);
        let used = stores.map(|store| {
            runtime.block_on(store.usage(&UsageFilter::default())).unwrap()
        });
        prop_assert_eq!(&used[0], &used[1]);
    });
}
