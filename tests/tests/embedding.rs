//! The library in a program of one's own, without the daemon.

use std::time::Duration;

use rbee_orchestrator::brain::WorkerCallback;
use rbee_orchestrator::domain::{JobState, ModelRef, TaskEvent, TaskRequest, WorkerId};
use rbee_orchestrator::domain::{WorkerProtocol, host_and_port};
use rbee_orchestrator::{Config, Orchestrator, TaskStream};
use rbee_tests::harness::{StubEngine, programs};
use rbee_tests::words;
use tempfile::TempDir;

const MODEL: &str = "file:embedded";
const PROMPT: &str = "what is kept";
const TOKENS: u32 = 20;

/// An orchestrator without hives, and its only worker.
struct Own {
    orchestrator: Orchestrator,
    stub: StubEngine,
    _folder: TempDir,
}

impl Own {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let args = ["--words", "--itl-ms", "10"];
        let stub = StubEngine::start(&programs::stub(), &args, folder.path());
        let stub = stub.expect("the stub engine starts");
        let mut config = Config::default();
        config.hives.local = false;
        let builder = Orchestrator::builder().config(config);
        let orchestrator = builder.start().await.expect("it starts");
        let (host, port) = host_and_port(stub.url()).expect("the stub has an address");
        let worker = WorkerCallback {
            id: WorkerId::new("own").expect("a name"),
            hive: None,
            model: ModelRef::new(MODEL).expect("a model"),
            served_model: None,
            backend: "cpu".to_owned(),
            device: None,
            host,
            port,
            protocol: Some(WorkerProtocol::OpenAi),
            slots_total: Some(2),
            vram_bytes: None,
            speaks_for: Vec::new(),
            authorization: None,
        };
        orchestrator.register_worker(&worker).expect("it is taken");
        Own {
            orchestrator,
            stub,
            _folder: folder,
        }
    }

    async fn submit(&self) -> TaskStream {
        let task = TaskRequest::prompt(MODEL, PROMPT).max_tokens(TOKENS);
        self.orchestrator.submit(task).await.expect("it is let in")
    }

    /// Waits until a task has ended, without a look at its stream.
    async fn ended(&self, task: &TaskStream) -> JobState {
        for _ in 0..1000 {
            let record = self.orchestrator.task(task.job()).await;
            let state = record.expect("it is known").state;
            if state.is_ended() {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the task goes on for ever");
    }

    async fn end(self) {
        self.orchestrator.shutdown().await;
        drop(self.stub);
    }
}

#[tokio::test]
async fn a_spawned_stream_goes_on_unread_and_has_all_of_it_for_who_reads_late() {
    let own = Own::new().await;
    let mut task = own.submit().await.spawn();
    assert_eq!(own.ended(&task).await, JobState::Complete);
    let (mut text, mut last) = (String::new(), None);
    while let Some(event) = task.next().await {
        if let TaskEvent::Token { text: more, .. } = &event {
            text.push_str(more);
        }
        last = Some(event);
    }
    assert_eq!(text, words::text(PROMPT, 1, TOKENS.into()));
    assert!(matches!(last, Some(TaskEvent::End { .. })), "{last:?}");
    own.end().await;
}

#[tokio::test]
async fn a_spawned_stream_that_is_dropped_cancels_its_task() {
    let own = Own::new().await;
    let mut task = own.submit().await.spawn();
    while !matches!(task.next().await, Some(TaskEvent::Token { .. })) {}
    let job = task.job();
    drop(task);
    let followed = own.orchestrator.events(job, None).await;
    let mut followed = followed.expect("it is known");
    while followed.next().await.is_some() {}
    let record = own.orchestrator.task(job).await.expect("it is known");
    assert_eq!(record.state, JobState::Cancelled);
    own.end().await;
}

#[tokio::test]
async fn a_stream_is_collected_into_its_text_or_its_error() {
    let own = Own::new().await;
    let text = own.submit().await.collect().await.expect("an answer");
    assert_eq!(text, words::text(PROMPT, 1, TOKENS.into()));
    let refused = own.submit().await;
    let cancelled = own.orchestrator.cancel(refused.job()).await;
    cancelled.expect("it is known");
    let error = refused.collect().await.expect_err("it was cancelled");
    assert_eq!(error.code.as_str(), "CANCELLED");
    own.end().await;
}
