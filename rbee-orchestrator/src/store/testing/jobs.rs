//! Checks of a job's life.

use std::future::Future;
use std::pin::Pin;

use super::samples::{
    FAILED, cancelled, claimed, ended_job, failed, finished, queued_job, requeued, submitted,
};
use crate::domain::{JobId, JobRecord, JobState, PlacedOn, Usage};
use crate::store::{JobChange, Store};

pub(super) async fn find<S: Store>(store: &S, id: JobId) -> JobRecord {
    let found = store.job(id).await.expect("a job is read");
    found.expect("the job is known")
}

pub(super) async fn settle<S: Store>(store: &S) {
    store.flush().await.expect("changes are flushed");
}

/// Submits a job and has it written, so that nothing can merge into its submission.
pub(super) async fn written<S: Store>(store: &S) -> JobRecord {
    let job = queued_job();
    store.record(submitted(&job));
    settle(store).await;
    job
}

pub(super) async fn a_job_reads_back_as_it_was_submitted<S: Store>(store: &S) {
    store.ready().await.expect("an empty store has room");
    let job = queued_job();
    store.record(submitted(&job));
    settle(store).await;
    assert_eq!(find(store, job.id).await, job);
}

pub(super) async fn every_optional_field_reads_back<S: Store>(store: &S) {
    let whole = ended_job();
    let mut records = vec![whole.clone()];
    let blanks: [fn(&mut JobRecord); 15] = [
        |job| job.session = None,
        |job| job.placed = None,
        |job| job.started_at = None,
        |job| job.ended_at = None,
        |job| job.usage = None,
        |job| job.error_code = None,
        |job| job.error_message = None,
        |job| (job.result, job.thinking) = (None, None),
        |job| job.thinking = None,
        |job| job.asynchronous = false,
        |job| job.idempotency_key = None,
        |job| job.request_hash = None,
        |job| job.not_before = None,
        |job| job.stop = None,
        |job| job.times = Default::default(),
    ];
    for blank in blanks {
        let mut record = JobRecord {
            id: JobId::mint(),
            ..whole.clone()
        };
        blank(&mut record);
        records.push(record);
    }
    let serverless = PlacedOn {
        hive: None,
        ..whole.placed.clone().expect("the sample is placed")
    };
    records.push(JobRecord {
        id: JobId::mint(),
        placed: Some(serverless),
        usage: Some(Usage::default()),
        ..whole
    });
    for record in &records {
        store.record(submitted(record));
    }
    for record in &records {
        assert_eq!(find(store, record.id).await, *record);
    }
}

pub(super) async fn an_unknown_job_is_none<S: Store>(store: &S) {
    written(store).await;
    let found = store.job(JobId::mint()).await.expect("a job is looked for");
    assert_eq!(found, None);
}

pub(super) async fn a_job_goes_from_submission_to_its_end<S: Store>(store: &S) {
    let mut job = written(store).await;
    happens(store, claimed(job.id, 1), &mut job);
    assert_eq!(find(store, job.id).await, job, "running");
    happens(store, finished(job.id, 1, "an answer"), &mut job);
    assert_eq!(job.state, JobState::Complete);
    assert_eq!(find(store, job.id).await, job, "ended");
}

pub(super) async fn only_the_next_attempt_claims<S: Store>(store: &S) {
    let mut job = written(store).await;
    for wrong in [0, 2] {
        store.record(claimed(job.id, wrong));
        assert_eq!(find(store, job.id).await, job, "attempt {wrong}");
    }
    happens(store, claimed(job.id, 1), &mut job);
    store.record(claimed(job.id, 2));
    assert_eq!(
        find(store, job.id).await,
        job,
        "a running job is not claimed"
    );
}

pub(super) async fn only_the_newest_attempt_finishes<S: Store>(store: &S) {
    let mut job = written(store).await;
    happens(store, claimed(job.id, 1), &mut job);
    for wrong in [0, 2] {
        store.record(finished(job.id, wrong, "void"));
        assert_eq!(find(store, job.id).await, job, "attempt {wrong}");
    }
}

pub(super) async fn a_job_ends_once<S: Store>(store: &S) {
    let mut job = written(store).await;
    happens(store, claimed(job.id, 1), &mut job);
    happens(store, failed(job.id, 1), &mut job);
    for late in late_changes(job.id) {
        store.record(late);
        assert_eq!(find(store, job.id).await, job);
    }
}

pub(super) fn late_changes(job: JobId) -> [JobChange; 4] {
    [
        finished(job, 1, "late"),
        cancelled(job, 1),
        claimed(job, 1),
        claimed(job, 2),
    ]
}

pub(super) async fn a_job_that_never_ran_can_end<S: Store>(store: &S) {
    for end in [cancelled, failed] {
        let mut job = written(store).await;
        store.record(end(job.id, 1));
        assert_eq!(find(store, job.id).await, job, "there is no attempt 1");
        happens(store, end(job.id, 0), &mut job);
        assert!(job.state.is_ended() && job.placed.is_none());
        assert_eq!(find(store, job.id).await, job);
    }
}

pub(super) async fn changes_of_an_unknown_job_are_dropped<S: Store>(store: &S) {
    let job = queued_job();
    store.record(claimed(job.id, 1));
    store.record(finished(job.id, 0, "void"));
    let found = store.job(job.id).await.expect("a job is looked for");
    assert_eq!(found, None);
    store.record(submitted(&job));
    assert_eq!(
        find(store, job.id).await,
        job,
        "they are not kept for later"
    );
}

/// The same changes, written together and one by one, make the same record.
pub(super) async fn merging_does_not_show<S: Store>(store: &S) {
    let lives: [fn(JobId) -> Vec<JobChange>; 8] = [
        |id| vec![claimed(id, 1), finished(id, 1, "an answer")],
        |id| vec![claimed(id, 1), claimed(id, 2), failed(id, 2), failed(id, 1)],
        |id| vec![claimed(id, 2), cancelled(id, 0), claimed(id, 1)],
        |id| vec![finished(id, 1, "early"), claimed(id, 1)],
        |id| vec![failed(id, 0), finished(id, 0, "late"), cancelled(id, 0)],
        |id| {
            vec![
                claimed(id, 1),
                requeued(id, 1),
                claimed(id, 2),
                failed(id, 2),
            ]
        },
        |id| {
            vec![
                claimed(id, 1),
                requeued(id, 1),
                failed(id, 1),
                claimed(id, 2),
            ]
        },
        |id| {
            vec![
                requeued(id, 0),
                claimed(id, 1),
                requeued(id, 2),
                failed(id, 1),
            ]
        },
    ];
    for life in lives {
        let (together, apart) = (queued_job(), queued_job());
        store.record(submitted(&together));
        for change in life(together.id) {
            store.record(change);
        }
        store.record(submitted(&apart));
        for change in life(apart.id) {
            settle(store).await;
            store.record(change);
        }
        let mut expected = together;
        for change in life(expected.id) {
            apply(&mut expected, change);
        }
        assert_eq!(find(store, expected.id).await, expected, "together");
        expected.id = apart.id;
        assert_eq!(find(store, apart.id).await, expected, "apart");
    }
}

pub(super) async fn what_was_recorded_is_read<S: Store>(store: &S) {
    for _ in 0..50 {
        let mut job = queued_job();
        store.record(submitted(&job));
        let page = store.jobs(&Default::default(), 1, None).await;
        let page = page.expect("jobs are listed");
        assert_eq!(page.jobs, [job.clone()]);
        happens(store, claimed(job.id, 1), &mut job);
        assert_eq!(find(store, job.id).await, job);
    }
}

pub(super) async fn an_error_is_kept_without_the_requests_words<S: Store>(store: &S) {
    let job = written(store).await;
    store.record(failed(job.id, 0));
    settle(store).await;
    let kept = find(store, job.id).await.error_message;
    assert_eq!(kept.as_deref(), Some(FAILED));
}

pub(super) async fn any_text_reads_back<S: Store>(store: &S) {
    for text in [
        "",
        "é – 日本語 – 👩\u{200d}🚀 – \u{202e}",
        "'); DROP TABLE jobs; --",
        "\r\n\t\u{1}\u{fffd}",
    ] {
        let mut job = queued_job();
        job.correlation_id = text.into();
        job.error_message = Some(text.into());
        store.record(submitted(&job));
        settle(store).await;
        happens(store, finished(job.id, 0, text), &mut job);
        assert_eq!(find(store, job.id).await, job);
    }
}

pub(super) async fn a_large_result_reads_back<S: Store>(store: &S) {
    const BYTES: usize = 1024 * 1024;
    let mut job = written(store).await;
    let text: String = ('!'..='~').cycle().take(BYTES).collect();
    happens(store, finished(job.id, 0, &text), &mut job);
    assert!(find(store, job.id).await == job, "the text is another");
}

pub(super) async fn many_recorders_lose_nothing<S: Store>(store: &S) {
    const RECORDERS: usize = 32;
    const JOBS: usize = 40;
    let recorders = (0..RECORDERS).map(|_| async {
        let mut ids = Vec::new();
        for turn in 0..JOBS {
            store.ready().await.expect("there is room");
            let job = queued_job();
            store.record(submitted(&job));
            tokio::task::yield_now().await;
            store.record(claimed(job.id, 1));
            if turn % 8 == 0 {
                settle(store).await;
            }
            store.record(finished(job.id, 1, &job.id.to_string()));
            ids.push(job.id);
        }
        ids
    });
    let recorded = together(recorders).await;
    assert_eq!(recorded.len(), RECORDERS);
    for id in recorded.into_iter().flatten() {
        let job = find(store, id).await;
        assert_eq!(job.state, JobState::Complete);
        assert_eq!(job.result, Some(id.to_string()));
        assert_eq!(job.thinking, Some(format!("what leads to {id}")));
    }
}

/// Polls all in one task: the store may not be behind an `Arc`, so they can't be spawned.
pub(super) async fn together<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut open: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        open.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => {
                done.push(output);
                false
            }
            std::task::Poll::Pending => true,
        });
        match open.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    done
}

/// Records a change, and applies it to what is expected.
pub(super) fn happens<S: Store>(store: &S, change: JobChange, expected: &mut JobRecord) {
    store.record(change.clone());
    apply(expected, change);
}

/// What a change does by the rules of [`JobRecord`] itself.
pub(super) fn apply(job: &mut JobRecord, change: JobChange) {
    match change {
        JobChange::Submitted { .. } => {}
        JobChange::Claimed {
            attempt,
            placed,
            at,
            ..
        } => {
            job.claim(attempt, placed, at);
        }
        JobChange::Requeued {
            attempt,
            failed,
            not_before,
            ..
        } => {
            job.requeue(attempt, failed, not_before);
        }
        JobChange::Finished {
            attempt, ending, ..
        } => {
            job.finish(attempt, *ending);
        }
    }
}
