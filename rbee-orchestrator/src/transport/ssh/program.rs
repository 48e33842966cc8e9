//! The hive's program on another machine: where it is looked for, where it is put, which version
//! it is.

use super::host::Host;
use super::quote;
use super::script::{self, unreachable};
use crate::error::Result;
use crate::transport::{HiveCommand, NO_PROGRAM, Preflight};

/// Where programs are that the queen has uploaded, below the user's home.
const OWN_FOLDER: &str = "~/.rbee/bin";
const LONGEST_VERSION: usize = 200;

/// A program by its name, or by its path.
#[derive(Debug)]
pub(super) struct Program {
    name: String,
    /// Looked at before `PATH`, the first one first.
    folders: Vec<String>,
}

/// What the machine has of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Works(Preflight),
    /// It is there, and can't tell its version.
    Broken(String),
    Missing,
}

impl Program {
    /// # Errors
    /// `HIVE_UNREACHABLE` for a template without a program.
    pub(super) fn of(command: &HiveCommand) -> Result<Self> {
        let name = command.template.first().cloned().unwrap_or_default();
        // A dash would be read as an option, and a name with a blank end is nobody's.
        if name.trim().is_empty() || name.starts_with('-') || name.ends_with('/') {
            return Err(unreachable(format!(
                "{name:?} is no program; give the hive's command one in [hives.commands]"
            )));
        }
        let install_path = command.install_path.as_ref();
        let registered = install_path.map(|path| path.to_string_lossy().into_owned());
        let folders = registered.into_iter().chain([OWN_FOLDER.to_owned()]);
        Ok(Program {
            name,
            folders: folders.collect(),
        })
    }

    /// Shell that sets `program` to its path, or to nothing.
    pub(super) fn find(&self) -> Result<String> {
        if self.name.contains('/') {
            let path = quote::path(&self.name)?;
            return Ok(format!(
                "program={path}; is_program \"$program\" || program="
            ));
        }
        let name = quote::word(&self.name)?;
        let folders: Result<Vec<String>> =
            self.folders.iter().map(|path| quote::path(path)).collect();
        let folders = folders?.join(" ");
        Ok(format!(
            "program=$(find_program {name} {folders}) || program="
        ))
    }

    /// The folder that an upload goes to, and the name in it.
    pub(super) fn place(&self) -> Result<(String, String)> {
        match self.name.rsplit_once('/') {
            Some(("", name)) => Ok(("/".into(), name.into())),
            Some((folder, name)) => Ok((folder.into(), name.into())),
            None => Ok((self.folders[0].clone(), self.name.clone())),
        }
    }

    /// Asks it for its version.
    pub(super) async fn look(&self, host: &Host) -> Result<Found> {
        let find = self.find()?;
        let body = format!(
            "{find}\n[ -n \"$program\" ] || return 0\necho \"$program\"\n\
             said=$(briefly \"$program\" --version 2>&1); status=$?\n\
             echo \"$status\"\nprintf '%s\\n' \"$said\" | grep . | head -n 1"
        );
        let said = script::run(host, &body, host.options().command_timeout).await?;
        let said = said.ok(host, "looking for the hive's program")?;
        Ok(found(&said))
    }

    /// The same, where nothing but a working one will do.
    ///
    /// # Errors
    /// `HIVE_UNREACHABLE` with the places that were looked at and the cure.
    pub(super) async fn check(&self, host: &Host) -> Result<Preflight> {
        match self.look(host).await? {
            Found::Works(preflight) => Ok(preflight),
            Found::Broken(why) => {
                let (name, host) = (&self.name, host.name());
                let why = format!("the hive's program {name:?} on {host} {why}");
                Err(unreachable(why).detail("reason", NO_PROGRAM))
            }
            Found::Missing => {
                let why = self.missing(host.name());
                Err(unreachable(why).detail("reason", NO_PROGRAM))
            }
        }
    }

    /// What to tell of a program that is not there.
    pub(super) fn missing(&self, host: &str) -> String {
        let name = &self.name;
        let looked = match name.contains('/') {
            true => "there".to_owned(),
            false => format!("in {} and on PATH", self.folders.join(", ")),
        };
        format!(
            "the hive's program {name:?} was not found on {host}; looked {looked}. Install it \
             there, or register the hive with the install_path of its folder"
        )
    }
}

fn found(said: &str) -> Found {
    let mut lines = said.lines();
    let Some(path) = lines.next() else {
        return Found::Missing;
    };
    let status = lines.next().unwrap_or_default();
    let first = lines.next().unwrap_or_default().trim();
    let version: String = first.chars().take(LONGEST_VERSION).collect();
    match status {
        "0" => Found::Works(Preflight {
            program: path.into(),
            version,
        }),
        status => Found::Broken(format!(
            "({path}) fails at --version with status {status}: {version}; is it a hive, and built \
             for this machine?"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn program(name: &str, install_path: Option<&str>) -> Result<Program> {
        Program::of(&HiveCommand {
            template: vec![name.into()],
            install_path: install_path.map(Into::into),
            port: 9200,
            queen_url: None,
            env: Vec::new(),
            log_file: "hive.log".into(),
            start_timeout: Duration::from_secs(1),
        })
    }

    #[test]
    fn a_program_goes_to_the_install_path_or_below_the_home() {
        let place = |name, path| program(name, path).and_then(|program| program.place());
        assert_eq!(
            place("rbee-hive", Some("/opt/it's")).expect("a name"),
            ("/opt/it's".into(), "rbee-hive".into())
        );
        let own = place("rbee-hive", None).expect("a name");
        assert_eq!(own, ("~/.rbee/bin".into(), "rbee-hive".into()));
        let path = place("/srv/hive", Some("/opt")).expect("a path");
        assert_eq!(path, ("/srv".into(), "hive".into()));
        for name in ["", " ", "-rf", "bin/"] {
            assert!(program(name, None).is_err(), "{name:?}");
        }
        let missing = program("rbee-hive", Some("/opt"))
            .expect("a name")
            .missing("gpu");
        for part in ["/opt", "~/.rbee/bin", "PATH", "install_path"] {
            assert!(missing.contains(part), "{part} in {missing}");
        }
    }

    #[test]
    fn what_the_machine_said_is_understood() {
        assert_eq!(found(""), Found::Missing);
        let works = found("/opt/rbee-hive\n0\nrbee-hive 0.1.0\n");
        assert!(matches!(works, Found::Works(p) if p.version == "rbee-hive 0.1.0"));
        let broken = found("/opt/rbee-hive\n126\nExec format error\n");
        assert!(matches!(broken, Found::Broken(why) if why.contains("126")));
    }
}
