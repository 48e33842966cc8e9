//! Pages of jobs: the cursor is the id of the last job shown.

use crate::domain::{JobId, JobPage, JobRecord, LISTED_ERROR_CHARS};
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

/// A row of a list.
pub(super) enum Listed {
    Job(Box<JobRecord>),
    #[cfg_attr(
        not(feature = "sqlite"),
        expect(dead_code, reason = "what is kept in memory can be read")
    )]
    Unreadable(JobId),
}

impl Listed {
    fn id(&self) -> JobId {
        match self {
            Listed::Job(job) => job.id,
            Listed::Unreadable(id) => *id,
        }
    }
}

/// Makes a page of `limit` rows from as many and one more, if there are that many.
pub(super) fn page(mut rows: Vec<Listed>, limit: usize) -> JobPage {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|last| cursor(last.id()));
    let mut page = JobPage {
        next,
        ..JobPage::default()
    };
    for row in rows {
        match row {
            Listed::Job(job) => page.jobs.push(*job),
            Listed::Unreadable(id) => page.unreadable.push(id),
        }
    }
    page
}

/// A job as lists have it.
pub(super) fn in_short(job: &JobRecord) -> JobRecord {
    let short = |text: &String| text.chars().take(LISTED_ERROR_CHARS).collect();
    JobRecord {
        result: None,
        thinking: None,
        error_message: job.error_message.as_ref().map(short),
        ..job.clone()
    }
}

fn cursor(id: JobId) -> String {
    id.0.simple().to_string()
}
