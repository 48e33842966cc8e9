//! Pages of jobs: the cursor is the id of the last job shown.

use crate::domain::{JobId, JobPage, JobRecord};
use crate::error::{Error, Result};

/// Reads a cursor that [`page`] wrote.
pub(super) fn read_cursor(after: Option<&str>) -> Result<Option<JobId>> {
    let Some(text) = after else { return Ok(None) };
    match JobId::parse(text) {
        Some(id) if cursor(id) == text => Ok(Some(id)),
        _ => {
            let shown: String = text.chars().take(80).collect();
            let message = format!(
                "after is {shown:?}, which is no cursor: pass the value that the page before gave"
            );
            Err(Error::invalid(message).param("after"))
        }
    }
}

/// Makes a page of `limit` jobs from as many and one more, if there are that many.
pub(super) fn page(mut jobs: Vec<JobRecord>, limit: usize) -> JobPage {
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let next = jobs.last().filter(|_| more).map(|last| cursor(last.id));
    JobPage { jobs, next }
}

fn cursor(id: JobId) -> String {
    id.0.simple().to_string()
}
