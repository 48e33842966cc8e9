use super::*;
use crate::domain::{JobRecord, TenantId, UsageFilter};
use crate::store::sqlite::inserts::TOGETHER;
use crate::store::testing::{cancelled, claimed};

/// Records so many jobs that have a row and nothing else, each of another kind.
fn record_many(store: &SqliteStore, count: usize) -> Vec<JobRecord> {
    let jobs = (0..count).map(|number| {
        let job = JobRecord {
            tenant: TenantId::new(format!("tenant-{}", number % 3)).unwrap(),
            correlation_id: format!("correlation-{number}"),
            failures: u32::try_from(number % 2).unwrap(),
            ..queued_job()
        };
        store.record(submitted(&job));
        if !number.is_multiple_of(4) {
            store.record(claimed(job.id, 1));
        }
        if number % 4 > 1 {
            store.record(cancelled(job.id, 1));
        }
        job
    });
    jobs.collect()
}

/// Waits until they are written, and looks at each.
async fn assert_written(store: &SqliteStore, jobs: &[JobRecord]) {
    store.flush().await.unwrap();
    for (number, job) in jobs.iter().enumerate() {
        let found = store.job(job.id).await.unwrap().unwrap();
        assert_eq!(found.correlation_id, job.correlation_id);
        assert_eq!(found.tenant, job.tenant);
        assert_eq!(found.failures, job.failures);
        assert_eq!(
            found.placed.is_some(),
            !number.is_multiple_of(4),
            "{number}"
        );
        assert_eq!(found.state.is_ended(), number % 4 > 1, "{number}");
    }
}

async fn counted(store: &SqliteStore) -> u64 {
    let usage = store.usage(&UsageFilter::default()).await.unwrap();
    usage.iter().map(|row| row.jobs).sum()
}

#[tokio::test]
async fn many_jobs_at_once_are_each_as_recorded() {
    let (_folder, store) = new_store(Tuning::default()).await;
    for count in [TOGETHER - 1, TOGETHER, 4 * TOGETHER + 3] {
        let before = counted(&store).await;
        let jobs = record_many(&store, count);
        assert_written(&store, &jobs).await;
        let ended = (0..count).filter(|number| number % 4 > 1).count();
        assert_eq!(counted(&store).await - before, ended as u64);
    }
}

#[tokio::test]
async fn one_that_was_there_before_keeps_none_of_the_others_out() {
    let (_folder, store) = new_store(Tuning::default()).await;
    let first = record_many(&store, 3).remove(2);
    store.flush().await.unwrap();
    let before = counted(&store).await;
    let twin = JobRecord {
        correlation_id: "twin".into(),
        ..first.clone()
    };
    store.record(submitted(&twin));
    let jobs = record_many(&store, TOGETHER);
    assert_written(&store, &jobs).await;
    let found = store.job(first.id).await.unwrap().unwrap();
    assert_eq!(found.correlation_id, first.correlation_id);
    let ended = (0..TOGETHER).filter(|number| number % 4 > 1).count();
    assert_eq!(counted(&store).await - before, ended as u64);
}
