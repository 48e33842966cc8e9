//! What a hive's start runs, as its registration says.

use std::path::PathBuf;

use super::lifecycle::HiveOptions;
use crate::domain::HiveSpec;
use crate::transport::HiveCommand;

/// Which program is started.
#[derive(Clone)]
pub(super) struct Launch {
    template: Vec<String>,
    install_path: Option<PathBuf>,
    /// Whether the queen may bring it to its machine.
    pub(super) install: bool,
}

impl Launch {
    /// What a registration may say. `install_path` is for machines that are reached over SSH: it
    /// must not choose a program on the queen's own.
    pub(super) fn of(spec: &HiveSpec, template: Vec<String>) -> Self {
        let remote = spec.ssh.as_ref();
        let install_path = remote.and(spec.install_path.as_ref()).map(PathBuf::from);
        Launch {
            template,
            install_path,
            install: spec.install && remote.is_some(),
        }
    }

    /// The start of a hive whose workers are reached at `host`.
    pub(super) fn command(self, options: &HiveOptions, host: &str) -> HiveCommand {
        let token = options.token.expose();
        let mut env = vec![
            // Two names for one token: older hives and workers read the second.
            ("RBEE_API_TOKEN".to_owned(), token.to_owned()),
            ("LLORCH_API_TOKEN".to_owned(), token.to_owned()),
            ("RBEE_WORKER_HOST".to_owned(), host.to_owned()),
        ];
        if let Some(url) = &options.queen_url {
            env.push(("QUEEN_CALLBACK_URL".to_owned(), url.clone()));
        }
        HiveCommand {
            template: self.template,
            install_path: self.install_path,
            port: options.port,
            queen_url: options.queen_url.clone(),
            env,
            log_file: options.log_file.clone(),
            start_timeout: options.start_timeout,
        }
    }
}
