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

mod attempts;
mod hives;
mod jobs;
mod pages;
mod recovery;
mod retention;
mod samples;
mod submissions;
mod tenants;
mod usage;

use std::future::Future;

use super::Store;
pub use samples::{
    asynchronous_job, cancelled, claimed, complete_hive, ended_job, finished, queued_job, requeued,
    submission, submitted,
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
        jobs::an_error_is_kept_without_the_requests_words,
        jobs::any_text_reads_back,
        jobs::a_large_result_reads_back,
        jobs::many_recorders_lose_nothing,
        attempts::a_job_whose_attempt_was_given_up_waits_again,
        attempts::only_the_running_attempt_is_given_up,
        attempts::what_a_void_attempt_reports_changes_nothing,
        attempts::an_awaited_ending_says_whether_it_won,
        attempts::an_awaited_ending_comes_after_what_was_recorded,
        submissions::a_submitted_job_reads_back_with_its_request,
        submissions::a_repeated_key_finds_the_first_job,
        submissions::another_request_under_the_same_key_is_told_so,
        submissions::each_tenant_has_keys_of_its_own,
        submissions::an_expired_key_begins_anew,
        submissions::a_known_id_is_the_same_job,
        submissions::a_key_that_comes_many_times_at_once_makes_one_job,
        submissions::the_request_of_an_asynchronous_job_goes_when_it_ends,
        submissions::the_request_of_a_connections_job_stays,
        usage::a_job_counts_once_when_it_ends,
        usage::every_way_to_end_counts,
        usage::usage_is_listed_by_day_tenant_and_model,
        usage::a_sum_stays_at_the_largest,
        usage::usage_is_the_sum_over_the_jobs_that_ended,
        retention::jobs_that_ended_before_are_purged_with_their_requests,
        retention::a_purge_takes_no_more_than_its_limit,
        retention::a_job_stays_while_its_key_finds_it,
        retention::a_key_that_another_job_has_taken_keeps_no_job,
        recovery::recovery_ends_only_open_jobs_of_other_owners,
        recovery::a_recovered_job_is_over,
        recovery::asynchronous_jobs_wait_again_in_their_order,
        recovery::a_job_that_waits_again_is_fenced_and_ends_once,
        recovery::what_can_not_go_on_is_interrupted,
        tenants::tenants_are_listed_by_name_as_they_were_put,
        tenants::a_tenant_that_is_put_again_is_replaced,
        tenants::a_removed_tenant_is_gone,
        pages::lists_have_no_results_and_the_beginnings_of_errors,
        pages::jobs_are_listed_newest_first,
        pages::filters_narrow_the_list,
        pages::pages_follow_each_other,
        pages::pages_neither_repeat_nor_lose_a_job_while_new_ones_come,
        pages::a_cursor_that_is_none_is_refused,
    }
}
