//! The conformance suite: what every [`Store`] must do, as code.
//!
//! It runs on a store of your own as it does on ours:
//!
//! ```
//! use rbee_orchestrator::store::MemoryStore;
//! use rbee_orchestrator::store::testing::conformance;
//!
//! # // In your crate this is the body of a #[tokio::test].
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! conformance(|| async { MemoryStore::new() }).await;
//! # }
//! ```

mod hives;
mod jobs;
mod pages;
mod recovery;
mod samples;

use std::future::Future;

use super::Store;
pub use samples::{
    cancelled, claimed, complete_hive, ended_job, finished, queued_job, requeued, submitted,
};

/// Tells which check it was when one panics.
struct Running(&'static str);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the store does not conform: the check `{}` failed", self.0);
        }
    }
}

macro_rules! checks {
    ($make_store:ident: $($module:ident::$check:ident,)*) => {
        $({
            let _running = Running(stringify!($check));
            let store = $make_store().await;
            Box::pin($module::$check(&store)).await;
            store.close().await.expect("a healthy store closes");
        })*
    };
}

/// Runs every check, each on a new and empty store.
///
/// # Panics
/// When the store does not conform. The checks that failed are named on standard error.
pub async fn conformance<S, F>(make_store: impl Fn() -> F)
where
    S: Store,
    F: Future<Output = S>,
{
    checks! { make_store:
        hives::a_hive_reads_back_as_it_was_put,
        hives::a_hive_that_is_put_again_is_replaced,
        hives::hives_are_listed_by_name,
        hives::a_removed_hive_is_gone,
        jobs::a_job_reads_back_as_it_was_submitted,
        jobs::every_optional_field_reads_back,
        jobs::an_unknown_job_is_none,
        jobs::a_job_goes_from_submission_to_its_end,
        jobs::only_the_next_attempt_claims,
        jobs::only_the_newest_attempt_finishes,
        jobs::a_job_ends_once,
        jobs::a_job_that_never_ran_can_end,
        jobs::changes_of_an_unknown_job_are_dropped,
        jobs::merging_does_not_show,
        jobs::what_was_recorded_is_read,
        jobs::any_text_reads_back,
        jobs::a_large_result_reads_back,
        jobs::many_recorders_lose_nothing,
        recovery::recovery_ends_only_open_jobs_of_other_owners,
        recovery::a_recovered_job_is_over,
        pages::jobs_are_listed_newest_first,
        pages::filters_narrow_the_list,
        pages::pages_follow_each_other,
        pages::pages_neither_repeat_nor_lose_a_job_while_new_ones_come,
        pages::a_cursor_that_is_none_is_refused,
    }
}
