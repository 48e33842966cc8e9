use std::time::Instant;

use super::*;
use crate::domain::{HiveRecord, HiveSpec, JobState};
use crate::store::testing::{asynchronous_job, claimed, complete_hive, finished, submission};

/// Long enough that no test waits for it.
const NEVER: Duration = Duration::from_secs(3600);

fn without_hurry() -> Tuning {
    Tuning {
        linger: NEVER,
        ..Tuning::default()
    }
}

#[tokio::test]
async fn a_store_that_was_dropped_is_found_whole() {
    let (folder, store) = new_store(without_hurry()).await;
    let hive = complete_hive("gpu-0");
    store.put_hive(hive.clone()).await.unwrap();
    let jobs: Vec<JobRecord> = (0..3).map(|_| submit(&store)).collect();
    store.record(claimed(jobs[0].id, 1));
    drop(store);

    let store = open_quick(&folder, Tuning::default()).await;
    assert_eq!(store.hives().await.unwrap(), [hive]);
    let found = all_jobs(&store).await;
    assert_eq!(found[..2], [jobs[2].clone(), jobs[1].clone()]);
    assert_eq!(found[2].state, JobState::Running);
}

#[tokio::test]
async fn a_job_that_cannot_be_read_keeps_no_other_from_its_recovery() {
    let (folder, store) = new_store(Tuning::default()).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        let job = submission(asynchronous_job());
        jobs.push(job.record.id);
        store.submit(job).await.unwrap();
    }
    store.close().await.unwrap();
    let db = rusqlite::Connection::open(folder.path().join("queen.db")).unwrap();
    let broken = "UPDATE jobs SET model = CAST(x'ff' AS TEXT) WHERE id = ?";
    db.execute(broken, [jobs[1].0.as_bytes()]).unwrap();
    drop(db);

    for _ in 0..2 {
        let store = open_quick(&folder, Tuning::default()).await;
        let found = store.recover(Uuid::new_v4(), UnixMillis::now()).await;
        let found = found.expect("the others are recovered").waiting;
        let ids: Vec<JobId> = found.iter().map(|(job, _)| job.id).collect();
        assert_eq!(ids, [jobs[0], jobs[2]]);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_was_closed_is_found_whole_and_takes_no_more() {
    let (folder, store) = new_store(without_hurry()).await;
    let job = submit(&store);
    store.close().await.unwrap();
    submit(&store);
    store.close().await.expect("there is nothing left to close");
    for refused in [
        store.ready().await,
        store.put_hive(complete_hive("gpu-0")).await,
        store.hives().await.map(drop),
        store.job(job.id).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().code.as_str(), "STORE_FAILED");
    }

    let store = open_quick(&folder, Tuning::default()).await;
    assert_eq!(all_jobs(&store).await, [job]);
}

#[tokio::test]
async fn a_store_that_was_killed_keeps_what_was_flushed() {
    let (folder, store) = new_store(without_hurry()).await;
    let kept = submit(&store);
    store.put_hive(complete_hive("gpu-0")).await.unwrap();
    submit(&store);

    let after = killed(&folder);
    let found = open_quick(&after, Tuning::default()).await;
    assert_eq!(all_jobs(&found).await, [kept]);
    assert_eq!(found.hives().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_store_that_was_killed_keeps_what_was_acknowledged() {
    let (folder, store) = new_store(without_hurry()).await;
    let [waiting, ended] = [(); 2].map(|()| asynchronous_job());
    for job in [&waiting, &ended] {
        store.submit(submission(job.clone())).await.unwrap();
    }
    store.record(claimed(ended.id, 1));
    let ending = Ending::new(crate::domain::Outcome::Complete, UnixMillis(1));
    assert!(store.finish(ended.id, 1, ending).await.unwrap());

    let after = killed(&folder);
    let found = open_quick(&after, Tuning::default()).await;
    let recovered = found.recover(Uuid::max(), UnixMillis(2)).await.unwrap();
    let [(job, request)] = &recovered.waiting[..] else {
        panic!("one job waits: {recovered:?}");
    };
    assert_eq!(job.id, waiting.id);
    assert_eq!(Some(request), submission(waiting).request.as_ref());
    let ended = found.job(ended.id).await.unwrap().unwrap();
    assert_eq!(ended.state, JobState::Complete);
    let usage = found.usage(&UsageFilter::default()).await.unwrap();
    assert_eq!(usage[0].jobs, 1);
}

#[test]
fn a_store_can_be_dropped_outside_of_its_runtime_and_after_it() {
    for runtime_first in [false, true] {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (folder, store) = runtime.block_on(new_store(without_hurry()));
        let job = submit(&store);
        runtime.block_on(all_jobs(&store));
        submit(&store);
        match runtime_first {
            true => {
                drop(runtime);
                drop(store);
            }
            false => {
                drop(store);
                drop(runtime);
            }
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let found = runtime.block_on(async {
            let store = open_quick(&folder, Tuning::default()).await;
            all_jobs(&store).await
        });
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], job);
    }
}

#[tokio::test]
async fn who_waits_does_not_wait_for_the_linger() {
    let (_folder, store) = new_store(without_hurry()).await;
    let start = Instant::now();
    for _ in 0..3 {
        submit(&store);
        store.flush().await.unwrap();
        let job = submit(&store);
        assert!(store.job(job.id).await.unwrap().is_some());
        submit(&store);
        let hive = HiveRecord::new(HiveSpec::local(HiveId::localhost()));
        store.put_hive(hive).await.unwrap();
    }
    assert!(start.elapsed() < NEVER / 100);
}

#[tokio::test]
async fn what_nobody_waits_for_is_written_soon() {
    let (_folder, store) = new_store(Tuning::default()).await;
    let job = submit(&store);
    store.record(claimed(job.id, 1));
    store.record(finished(job.id, 1, "an answer"));
    let written = || store.reads.read(move |db| jobs::find(db, job.id));
    let soon = async {
        loop {
            if let Some(job) = written().await.unwrap() {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let job = tokio::time::timeout(Duration::from_secs(10), soon)
        .await
        .unwrap();
    assert_eq!(job.state, JobState::Complete, "its changes are one write");
}

#[tokio::test]
async fn older_tools_find_when_a_hive_was_last_connected() {
    let (_folder, store) = new_store(Tuning::default()).await;
    let hive = complete_hive("gpu-0");
    store.put_hive(hive.clone()).await.unwrap();
    let read = |db: &rusqlite::Connection| {
        let sql = "SELECT last_connected_unix, status FROM hives";
        db.query_row(sql, [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })
    };
    let expected = (hive.last_seen.unwrap().as_secs(), "offline".to_owned());
    assert_eq!(store.reads.read(read).await.unwrap(), expected);
}
