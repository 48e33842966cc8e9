//! Which endpoint a path is.

use bytes::Bytes;
use http::{Method, Response};
use http_body::Body as HttpBody;
use matchit::Router;

use super::body::Body;
use super::{
    Context, METHODS, answer, fleet, hives, logs, models, openai, tasks, tenants, workers,
};
use crate::domain::JobKind;
use crate::error::Error;

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Health,
    SubmitTask,
    ListTasks,
    GetTask,
    CancelTask,
    TaskEvents,
    Usage,
    ListTenants,
    AddTenant,
    RemoveTenant,
    Chat,
    Completions,
    Embeddings,
    OpenAiModels,
    OpenAiModel,
    ListHives,
    AddHive,
    RemoveHive,
    DrainHive,
    ResumeHive,
    ListWorkers,
    WorkersHealth,
    SpawnWorker,
    ShutdownWorker,
    WorkerReady,
    RegisterWorker,
    WorkerFailed,
    ListModels,
    DownloadModel,
    RemoveModel,
    Logs,
}

/// Method, path, endpoint; in the order of the documentation.
const TABLE: [(Method, &str, Route); 33] = [
    (Method::GET, "/health", Route::Health),
    (Method::POST, "/v2/tasks", Route::SubmitTask),
    (Method::GET, "/v2/tasks", Route::ListTasks),
    (Method::GET, "/v2/tasks/{id}", Route::GetTask),
    (Method::DELETE, "/v2/tasks/{id}", Route::CancelTask),
    (Method::POST, "/v2/tasks/{id}/cancel", Route::CancelTask),
    (Method::GET, "/v2/tasks/{id}/events", Route::TaskEvents),
    (Method::GET, "/v2/usage", Route::Usage),
    (Method::GET, "/v2/tenants/list", Route::ListTenants),
    (Method::POST, "/v2/tenants/add", Route::AddTenant),
    (Method::POST, "/v2/tenants/remove", Route::RemoveTenant),
    (Method::POST, "/v1/chat/completions", Route::Chat),
    (Method::POST, "/v1/completions", Route::Completions),
    (Method::POST, "/v1/embeddings", Route::Embeddings),
    (Method::GET, "/v1/models", Route::OpenAiModels),
    (Method::GET, "/v1/models/{*id}", Route::OpenAiModel),
    (Method::GET, "/v2/registry/beehives/list", Route::ListHives),
    (Method::POST, "/v2/registry/beehives/add", Route::AddHive),
    (
        Method::POST,
        "/v2/registry/beehives/remove",
        Route::RemoveHive,
    ),
    (
        Method::POST,
        "/v2/registry/beehives/drain",
        Route::DrainHive,
    ),
    (
        Method::POST,
        "/v2/registry/beehives/resume",
        Route::ResumeHive,
    ),
    (Method::GET, "/v2/workers/list", Route::ListWorkers),
    (Method::GET, "/v2/workers/health", Route::WorkersHealth),
    (Method::POST, "/v2/workers/spawn", Route::SpawnWorker),
    (Method::POST, "/v2/workers/shutdown", Route::ShutdownWorker),
    (Method::POST, "/v2/workers/ready", Route::WorkerReady),
    (Method::POST, "/v1/workers/ready", Route::WorkerReady),
    (Method::POST, "/v2/workers/register", Route::RegisterWorker),
    (Method::POST, "/v2/workers/failed", Route::WorkerFailed),
    (Method::GET, "/v2/models/list", Route::ListModels),
    (Method::POST, "/v2/models/download", Route::DownloadModel),
    (Method::POST, "/v2/models/remove", Route::RemoveModel),
    (Method::GET, "/v2/logs", Route::Logs),
];

/// What is at a path.
#[derive(Debug)]
pub(super) enum Found {
    Route(Route),
    /// The path has other methods; these.
    OtherMethods(String),
    Nothing,
}

impl Found {
    /// Whether hives call it.
    pub(super) fn is_callback(&self) -> bool {
        matches!(self, Found::Route(Route::WorkerReady | Route::WorkerFailed))
    }
}

/// The table, made fast to search.
#[derive(Debug)]
pub(super) struct Routes {
    by_path: Router<Vec<(Method, Route)>>,
}

impl Routes {
    pub(super) fn new() -> Self {
        let mut by_path: Router<Vec<(Method, Route)>> = Router::new();
        for (method, path, route) in TABLE {
            match by_path.at_mut(path) {
                Ok(found) if path == "/v2/tasks" || path == "/v2/tasks/{id}" => {
                    found.value.push((method, route));
                }
                _ => by_path
                    .insert(path, vec![(method, route)])
                    .expect("the table's paths do not contradict each other"),
            }
        }
        Routes { by_path }
    }

    /// The path's `{id}` and what is there.
    pub(super) fn find<'p>(&self, method: &Method, path: &'p str) -> (&'p str, Found) {
        let Ok(at) = self.by_path.at(path) else {
            return ("", Found::Nothing);
        };
        let id = at.params.get("id").unwrap_or_default();
        let found = match at.value.iter().find(|(allowed, _)| allowed == method) {
            Some((_, route)) => Found::Route(*route),
            None => {
                let is_allowed = |method: &&Method| at.value.iter().any(|(m, _)| m == **method);
                let allowed = METHODS.iter().filter(is_allowed).map(Method::as_str);
                Found::OtherMethods(allowed.collect::<Vec<_>>().join(", "))
            }
        };
        (id, found)
    }
}

impl Route {
    pub(super) async fn answer<B>(self, context: &mut Context<'_>, body: B) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let kind = match self {
            Route::Chat => Some(JobKind::Chat),
            Route::Completions => Some(JobKind::Completion),
            Route::Embeddings => Some(JobKind::Embedding),
            _ => None,
        };
        if let Some(kind) = kind {
            return match openai::submit(context, kind, body).await {
                Ok(response) => response,
                Err(error) => answer::error(&error, true, context.correlation_id),
            };
        }
        // Boxed: every connection would have room for the largest of them.
        Box::pin(self.answer_other(context, body)).await
    }

    /// Whether whoever has work for the fleet calls it, and not who sees to the fleet.
    fn is_for_clients(self) -> bool {
        matches!(
            self,
            Route::Health
                | Route::SubmitTask
                | Route::ListTasks
                | Route::GetTask
                | Route::CancelTask
                | Route::TaskEvents
                | Route::Chat
                | Route::Completions
                | Route::Embeddings
                | Route::OpenAiModels
                | Route::OpenAiModel
        )
    }

    async fn answer_other<B>(self, context: &Context<'_>, body: B) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let answered = match self {
            Route::Health => Ok(fleet::health(context)),
            Route::SubmitTask => tasks::submit(context, body).await,
            Route::ListTasks => tasks::list(context).await,
            Route::GetTask => tasks::get(context).await,
            Route::CancelTask => tasks::cancel(context).await,
            Route::TaskEvents => tasks::events(context).await,
            Route::Usage => tenants::usage(context).await,
            Route::ListTenants => tenants::list(context).await,
            Route::AddTenant => tenants::add(context, body).await,
            Route::RemoveTenant => tenants::remove(context, body).await,
            Route::OpenAiModels => openai::models(context).await,
            Route::OpenAiModel => openai::model(context).await,
            Route::ListHives => hives::list(context),
            Route::AddHive => return hives::add(context, body).await,
            Route::RemoveHive => return hives::remove(context, body).await,
            Route::DrainHive => hives::set_service(context, body, false).await,
            Route::ResumeHive => hives::set_service(context, body, true).await,
            Route::ListWorkers => Ok(workers::list(context)),
            Route::WorkersHealth => workers::health(context),
            Route::SpawnWorker => workers::spawn(context, body).await,
            Route::ShutdownWorker => workers::shutdown(context, body).await,
            Route::WorkerReady => workers::ready(context, body).await,
            Route::RegisterWorker => workers::register(context, body).await,
            Route::WorkerFailed => workers::failed(context, body).await,
            Route::ListModels => models::list(context).await,
            Route::DownloadModel => models::download(context, body).await,
            Route::RemoveModel => models::remove(context, body).await,
            Route::Logs => logs::logs(context).await,
            Route::Chat | Route::Completions | Route::Embeddings => {
                Err(Error::internal("a request was routed twice"))
            }
        };
        answered.unwrap_or_else(|error| {
            let error = match self.is_for_clients() {
                true => error,
                false => error.for_administrators(),
            };
            answer::error(&error, context.is_openai, context.correlation_id)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_is_found_by_its_method() {
        let routes = Routes::new();
        for (method, path, route) in TABLE {
            let path = path.replace("{id}", "x").replace("{*id}", "x");
            let (_, found) = routes.find(&method, &path);
            assert!(
                matches!(found, Found::Route(found) if found == route),
                "{method} {path}"
            );
        }
        let (id, _) = routes.find(&Method::GET, "/v1/models/org/repo");
        assert_eq!(id, "org/repo");
        assert!(matches!(
            routes.find(&Method::DELETE, "/v2/tasks").1,
            Found::OtherMethods(allowed) if allowed == "GET, POST"
        ));
        assert!(matches!(
            routes.find(&Method::GET, "/nothing").1,
            Found::Nothing
        ));
    }
}
