//! What a hive is asked about models: fetch one, remove one.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::HiveClient;
use super::exchange::Answer;
use super::lenient::{number, text};
use super::wire;
use crate::domain::ModelRef;
use crate::error::{Code, Error, Result};

/// The fact of an error that says how many bytes of disk are missing.
pub(super) const MISSING_BYTES: &str = "missing_bytes";

/// What a hive answered to a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DownloadAnswer {
    /// It has the model, in this file if it says so.
    Cached(Option<String>),
    /// It fetches it; the progress can be followed by this id.
    Started(String),
}

impl HiveClient {
    /// Has it fetch a model, which it then does on its own.
    ///
    /// # Errors
    /// `NOT_IMPLEMENTED` for a hive that can't; `MODEL_NOT_FOUND`, `INSUFFICIENT_DISK`,
    /// `DOWNLOAD_FAILED` and others as the hive says. See also [`HiveClient`].
    pub async fn download(&self, model: &ModelRef) -> Result<DownloadAnswer> {
        let path = "/v1/models/download";
        let answer = self.about_model(path, model).await?;
        match answer.status.is_success() {
            true => self.read(path, &answer, read_download),
            false => Err(self.model_error(path, &answer)),
        }
    }

    /// Has it delete a model's files.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `CONFLICT` while a worker serves it, `NOT_IMPLEMENTED` for a hive that
    /// can't. See also [`HiveClient`].
    pub async fn remove_model(&self, model: &ModelRef) -> Result<()> {
        let path = "/v1/models/remove";
        let answer = self.about_model(path, model).await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(self.model_error(path, &answer)),
        }
    }

    async fn about_model(&self, path: &str, model: &ModelRef) -> Result<Answer> {
        let body = json!({ "model_ref": model }).to_string().into_bytes();
        let limit = self.timeouts.call;
        self.authorised(Method::POST, path, Some(body), limit).await
    }

    fn model_error(&self, path: &str, answer: &Answer) -> Error {
        let (code, _) = wire::read_error(&answer.body);
        let said = code.as_deref().and_then(Code::parse);
        let code = match (answer.status, said) {
            (_, Some(code)) if code.status() < 500 || is_of_downloads(code) => code,
            // Older hives do not know the call.
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => Code::NotImplemented,
            (StatusCode::INSUFFICIENT_STORAGE, _) => Code::InsufficientDisk,
            _ => Code::DownloadFailed,
        };
        let code = match code {
            Code::NotFound | Code::MethodNotAllowed => Code::NotImplemented,
            code => code,
        };
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        with_shortage(self.refused(path, answer, code), &body["error"]["details"])
    }
}

/// Adds how many bytes of disk are missing, if the hive said so.
pub(super) fn with_shortage(error: Error, details: &Value) -> Error {
    let bytes = |name: &str| number(details, &[name]);
    let (Some(needed), Some(free)) = (bytes("needed"), bytes("free")) else {
        return error;
    };
    let wanted = needed.saturating_add(bytes("keep_free").unwrap_or(0));
    error
        .detail("needed_bytes", needed)
        .detail("free_bytes", free)
        .detail(MISSING_BYTES, wanted.saturating_sub(free))
}

fn is_of_downloads(code: Code) -> bool {
    matches!(
        code,
        Code::DownloadFailed | Code::InsufficientDisk | Code::NotImplemented | Code::ShuttingDown
    )
}

fn read_download(body: &Value) -> Option<DownloadAnswer> {
    let id = text(body, &["download_id", "id"])?;
    Some(match id.as_str() {
        "cached" => DownloadAnswer::Cached(text(body, &["local_path"])),
        _ => DownloadAnswer::Started(id),
    })
}
