//! What tests do with tasks that outlive their connections.

use super::client::Reply;
use super::queen::Queen;
use super::wait::until;
use serde_json::Value;
use std::time::Duration;

/// Longer than any task here takes, on a machine that is busy with other tests too.
const LONGEST: Duration = Duration::from_secs(20);

impl Queen {
    /// Asks for a task that outlives this connection, whatever comes of it.
    ///
    /// # Panics
    /// When no answer comes.
    #[track_caller]
    pub fn try_submit(&self, task: &Value) -> Reply {
        let asks = self.header("prefer", "respond-async");
        asks.post("/v2/tasks", task).expect("the queen answers")
    }

    /// Has a task accepted that outlives this connection; returns its id.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn submit(&self, task: &Value) -> String {
        self.try_submit(task).accepted()
    }

    /// A task as she tells it.
    ///
    /// # Panics
    /// When she does not know it.
    #[track_caller]
    pub fn task(&self, job_id: &str) -> Value {
        let reply = self.look(&format!("/v2/tasks/{job_id}"));
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }

    /// Waits until a task has ended, which must be so; returns it.
    ///
    /// # Panics
    /// When it ends otherwise, or not at all.
    #[track_caller]
    pub fn assert_task_ends(&self, job_id: &str, wanted: &str) -> Value {
        let task = self.ended_task(job_id);
        assert_eq!(task["state"], wanted, "{task}");
        task
    }

    /// Waits until a task has ended, however; returns it.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn ended_task(&self, job_id: &str) -> Value {
        let ended = until(LONGEST, || {
            let task = self.task(job_id);
            let is_open = task["state"] == "queued" || task["state"] == "running";
            (!is_open).then_some(task)
        });
        ended.unwrap_or_else(|| panic!("it never ends: {}", self.task(job_id)))
    }

    /// The tasks that a query lists, newest first, over all pages.
    ///
    /// # Panics
    /// When she refuses to list them.
    #[track_caller]
    pub fn tasks(&self, query: &str) -> Vec<Value> {
        let mut tasks = Vec::new();
        let mut after = String::new();
        loop {
            let reply = self.look(&format!("/v2/tasks?{query}{after}"));
            assert_eq!(reply.status, 200, "{}", reply.text);
            let page = reply.json();
            tasks.extend(page["tasks"].as_array().into_iter().flatten().cloned());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return tasks,
            }
        }
    }
}

impl Reply {
    /// The job that a 202 names.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    #[track_caller]
    pub fn accepted(&self) -> String {
        assert_eq!(self.status, 202, "{}", self.text);
        let job_id = self.json()["job_id"].as_str().map(str::to_owned);
        job_id.unwrap_or_else(|| panic!("no job in {}", self.text))
    }
}
