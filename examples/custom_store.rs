//! A store of one's own that wraps one of ours: every job that ends leaves a line in an audit
//! trail. A store over another database has the same methods; the library's conformance suite,
//! which runs below on this one, says what each must do (`cargo test -p rbee-examples --examples`).
//!
//! ```sh
//! tests/parts.sh && . .cache/parts.env       # an engine and a small model, if you have none
//! cargo build -p rbee-hive
//! PATH=$PWD/target/debug:$PATH cargo run -p rbee-examples --example custom_store
//! ```

use anyhow::Result;
use async_trait::async_trait;
use rbee_orchestrator::domain::{
    Attempt, Ending, HiveId, HiveRecord, JobFilter, JobId, JobPage, JobRecord, TaskRequest, Tenant,
    TenantId, UnixMillis, UsageFilter, UsageRow,
};
use rbee_orchestrator::store::{JobChange, MemoryStore, Recovered, Store, Submission, Submitted};
use rbee_orchestrator::{Orchestrator, Result as RbeeResult};
use uuid::Uuid;

struct Audited<S>(S);

fn note(job: JobId, ending: &Ending) {
    let tokens = ending.usage.map_or(0, |usage| usage.tokens_out);
    let state = ending.outcome.state().as_str();
    eprintln!("audit: job {job} {state}, {tokens} tokens");
}

#[async_trait]
impl<S: Store> Store for Audited<S> {
    // Called for every job, from the path of requests: it must return at once.
    fn record(&self, change: JobChange) {
        if let JobChange::Finished { job, ending, .. } = &change {
            note(*job, ending);
        }
        self.0.record(change);
    }

    // The same for jobs whose ending must be on the disk before anybody hears of it.
    async fn finish(&self, job: JobId, attempt: Attempt, ending: Ending) -> RbeeResult<bool> {
        let ended = self.0.finish(job, attempt, ending.clone()).await?;
        if ended {
            note(job, &ending);
        }
        Ok(ended)
    }

    async fn put_hive(&self, hive: HiveRecord) -> RbeeResult<()> {
        self.0.put_hive(hive).await
    }

    async fn remove_hive(&self, id: &HiveId) -> RbeeResult<bool> {
        self.0.remove_hive(id).await
    }

    async fn hives(&self) -> RbeeResult<Vec<HiveRecord>> {
        self.0.hives().await
    }

    async fn put_tenant(&self, tenant: Tenant) -> RbeeResult<()> {
        self.0.put_tenant(tenant).await
    }

    async fn remove_tenant(&self, id: &TenantId) -> RbeeResult<bool> {
        self.0.remove_tenant(id).await
    }

    async fn tenants(&self) -> RbeeResult<Vec<Tenant>> {
        self.0.tenants().await
    }

    async fn ready(&self) -> RbeeResult<()> {
        self.0.ready().await
    }

    async fn submit(&self, submission: Submission) -> RbeeResult<Submitted> {
        self.0.submit(submission).await
    }

    async fn submission(
        &self,
        tenant: &TenantId,
        key: &str,
        at: UnixMillis,
    ) -> RbeeResult<Option<JobRecord>> {
        self.0.submission(tenant, key, at).await
    }

    async fn flush(&self) -> RbeeResult<()> {
        self.0.flush().await
    }

    async fn job(&self, id: JobId) -> RbeeResult<Option<JobRecord>> {
        self.0.job(id).await
    }

    async fn jobs(&self, f: &JobFilter, limit: usize, after: Option<&str>) -> RbeeResult<JobPage> {
        self.0.jobs(f, limit, after).await
    }

    async fn request(&self, id: JobId) -> RbeeResult<Option<Vec<u8>>> {
        self.0.request(id).await
    }

    async fn usage(&self, filter: &UsageFilter) -> RbeeResult<Vec<UsageRow>> {
        self.0.usage(filter).await
    }

    async fn recover(&self, owner: Uuid, at: UnixMillis) -> RbeeResult<Recovered> {
        self.0.recover(owner, at).await
    }

    async fn purge(&self, before: UnixMillis, now: UnixMillis, limit: usize) -> RbeeResult<u64> {
        self.0.purge(before, now, limit).await
    }

    async fn close(&self) -> RbeeResult<()> {
        self.0.close().await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let store = Audited(MemoryStore::new());
    let orchestrator = Orchestrator::builder().store(store).start().await?;
    let answered = tokio::select! {
        answered = ask(&orchestrator) => answered,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    orchestrator.shutdown().await;
    answered
}

async fn ask(orchestrator: &Orchestrator) -> Result<()> {
    let task = TaskRequest::prompt("smollm2", "Once upon a time").max_tokens(20);
    orchestrator.submit(task).await?.finished().await?;
    Ok(())
}

#[tokio::test]
async fn an_audited_store_is_still_a_store() {
    rbee_orchestrator::store::testing::conformance(|| async { Audited(MemoryStore::new()) }).await;
}
