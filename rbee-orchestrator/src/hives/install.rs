//! A hive's program on another machine: looked at, and brought there where it is missing or older.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lifecycle::HiveHandle;
use crate::error::{Error, Result};
use crate::transport::report::{Item, Report, Status};
use crate::transport::{HiveCommand, NO_PROGRAM, Preflight, is_older, version_of};

/// The version that a program is taken for that does not run on the queen's machine.
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

impl HiveHandle {
    /// Looks at everything that the hive needs on its machine, for a person to read.
    pub async fn inspect(&self) -> Report {
        let command = self.command();
        let mut report = self.transport().inspect(&command).await;
        let lacks = |item: &&mut Item| item.name == "hive" && item.status == Status::Warning;
        if self.launch().install
            && let Some(item) = report.items.iter_mut().find(lacks)
        {
            match self.upload(&command) {
                Ok(file) => {
                    let found = item.message.split(';').next().unwrap_or_default();
                    let file = file.display();
                    let message =
                        format!("{found}; the queen uploads {file} before the first start");
                    *item = Item::ok("hive", message);
                }
                Err(why) => item.cure = Some(why.message),
            }
        }
        report
    }

    /// The program of the next start, which is brought to the machine first if it may be.
    pub(super) async fn program(&self, command: &HiveCommand) -> Result<Preflight> {
        let found = self.transport().preflight(command).await;
        if !self.launch().install {
            return found;
        }
        match found {
            Err(error) if lacks_program(&error) => {
                let file = self.upload(command).map_err(|why| {
                    let message = format!("{}. {}", error.message, why.message);
                    Error::new(error.code, message).detail("reason", NO_PROGRAM)
                })?;
                self.install(&file, command).await?;
                self.transport().preflight(command).await
            }
            Ok(older) => match self.newer(command, &older).await {
                Some(file) => match self.install(&file, command).await {
                    Ok(()) => self.transport().preflight(command).await,
                    Err(error) => {
                        let (hive, version) = (self.id(), &older.version);
                        tracing::warn!(%hive, version, %error, "the older hive stays");
                        Ok(older)
                    }
                },
                None => Ok(older),
            },
            unreached => unreached,
        }
    }

    /// The program that would be uploaded, if it is newer than the one that is there.
    async fn newer(&self, command: &HiveCommand, there: &Preflight) -> Option<PathBuf> {
        let file = self.upload(command).ok()?;
        let version = match version_of(file.clone(), &[]).await {
            Ok(own) => own.version,
            // It is for the other machine.
            Err(_) => OWN_VERSION.to_owned(),
        };
        is_older(&there.version, &version)?.then_some(file)
    }

    async fn install(&self, file: &Path, command: &HiveCommand) -> Result<()> {
        let installing = &self.installing;
        installing.send_replace(Some(0));
        let told = installing.clone();
        let arrived = move |percent| {
            told.send_replace(Some(percent));
        };
        let installed = self
            .transport()
            .install(file, command, Arc::new(arrived))
            .await;
        installing.send_replace(None);
        let place = installed?;
        let (hive, file, place) = (self.id(), file.display(), place.display());
        tracing::info!(%hive, %file, %place, "the hive's program was installed");
        Ok(())
    }

    /// The program that is uploaded for a command. A name, and never what `PATH` has of it: `env`
    /// or `python3` are not the queen's to bring.
    fn upload(&self, command: &HiveCommand) -> Result<PathBuf> {
        let name = command
            .template
            .first()
            .and_then(|name| Path::new(name).file_name());
        let folder = self.options().upload_dir.clone().or_else(own_folder);
        let file = folder.zip(name).map(|(folder, name)| folder.join(name));
        let shown = file
            .as_deref()
            .unwrap_or(Path::new(""))
            .display()
            .to_string();
        file.filter(|file| file.is_file()).ok_or_else(|| {
            Error::invalid(format!(
                "The queen has no such program to upload: there is no {shown}; put one there that \
                 is built for the hive's machine, or set upload_dir in [hives]"
            ))
        })
    }
}

fn lacks_program(error: &Error) -> bool {
    let details = error.details.as_ref();
    details.is_some_and(|details| details.get("reason").is_some_and(|why| why == NO_PROGRAM))
}

fn own_folder() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    own.parent().map(Path::to_path_buf)
}
