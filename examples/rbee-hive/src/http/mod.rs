//! What a queen calls.

mod body;
pub(crate) mod correlation;
mod gate;
mod logs;
mod machine;
mod models;
mod workers;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};

use crate::error::ApiError;
use crate::hive::Hive;

pub(crate) fn router(hive: Hive) -> Router {
    let behind_gate = Router::new()
        .route("/v1/capabilities", get(machine::capabilities))
        .route("/v1/workers/spawn", post(workers::spawn))
        .route("/v1/workers/list", get(workers::list))
        .route("/v1/workers/shutdown", post(workers::shutdown))
        .route("/v1/models/download", post(models::download))
        .route("/v1/models/provision", post(models::download))
        .route("/v1/models/download/progress", get(models::progress))
        .route("/v1/models/list", get(models::list))
        .route("/v1/models/remove", post(models::remove))
        .route("/v1/logs", get(logs::logs))
        .route("/v1/shutdown", post(machine::shutdown))
        .route("/metrics", get(machine::metrics))
        .fallback(|| async {
            ApiError::new(
                StatusCode::NOT_FOUND,
                "NOT_FOUND",
                "a hive has no such call",
            )
        })
        .layer(middleware::from_fn_with_state(hive.clone(), gate::gate));
    Router::new()
        .route("/health", get(machine::health))
        .route("/v1/health", get(machine::health))
        .merge(behind_gate)
        .method_not_allowed_fallback(|| async {
            let message = "this call has another method";
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                message,
            )
        })
        .layer(middleware::from_fn(correlation::correlate))
        .with_state(hive)
}
