//! Finds a hive's program, makes its command line, and asks for its version.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::process::kill_group_of_child;
use super::{HiveCommand, Preflight, environment};
use crate::error::{Code, Error, Result};

/// How long `--version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_VERSION: usize = 200;

fn unreachable(message: String) -> Error {
    Error::new(Code::HiveUnreachable, message)
}

/// The program's file on this machine: a path as it is; a bare name beside the running executable,
/// and on `PATH`. `install_path` is for other machines: a registration must not choose what the
/// queen runs on her own. Blocks on the file system.
pub(super) fn find(command: &HiveCommand) -> Result<PathBuf> {
    let own_folder = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = own_folder.into_iter().chain(std::env::split_paths(&path));
    find_in(command, places)
}

fn find_in(command: &HiveCommand, places: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
    let Some(name) = command.template.first().filter(|name| !name.is_empty()) else {
        return Err(unreachable(
            "the hive's command is empty; give it a program in [hives.commands]".into(),
        ));
    };
    let candidates: Vec<PathBuf> = match name.contains('/') {
        true => vec![PathBuf::from(name)],
        false => places.map(|place| place.join(name)).collect(),
    };
    if let Some(found) = candidates.iter().find(|file| is_executable(file)) {
        return std::path::absolute(found)
            .map_err(|error| unreachable(format!("{}: {error}", found.display())));
    }
    if let Some(file) = candidates.iter().find(|file| file.is_file()) {
        let file = file.display();
        return Err(unreachable(format!(
            "the hive's program {file} is not executable; run: chmod +x {file}"
        )));
    }
    let looked: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
    Err(unreachable(format!(
        "the hive's program {name:?} was not found; looked at {}. Put it beside the queen's own \
         executable or on PATH, or name another program in [hives.commands]",
        looked.join(", ")
    )))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The arguments with their placeholders filled in. Each stays one argument, whatever is in it.
pub(super) fn arguments(command: &HiveCommand, host: &str, port: u16) -> Result<Vec<String>> {
    let queen_url = command.queen_url.as_deref();
    let fill = |argument: &String| {
        if queen_url.is_none() && argument.contains("{queen_url}") {
            return Err(unreachable(format!(
                "the hive's argument {argument:?} needs an address of the queen's that the hive can \
                 reach, and none is known; set queen_url in [hives], and \"tunnel\": false for a \
                 hive over SSH"
            )));
        }
        Ok(argument
            .replace("{port}", &port.to_string())
            .replace("{host}", host)
            .replace("{queen_url}", queen_url.unwrap_or_default()))
    };
    command.template.iter().skip(1).map(fill).collect()
}

/// A hive's program in a process group of its own, with its part of the queen's environment and the
/// variables of these names.
pub(super) fn in_its_environment(program: &Path, pass_env: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(environment::for_hive(pass_env))
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// Runs the program with `--version`, in the environment that a hive would have. Dropped midway, it
/// is killed.
pub(crate) async fn version(program: PathBuf, pass_env: &[String]) -> Result<Preflight> {
    let shown = program.display().to_string();
    let failed = |what: String| unreachable(format!("the hive's program {shown} {what}"));
    let child = in_its_environment(&program, pass_env)
        .arg("--version")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("can't be run: {error}")))?;
    let pid = child.id();
    let ended = tokio::time::timeout(VERSION_TIMEOUT, child.wait_with_output()).await;
    let Ok(ended) = ended else {
        pid.into_iter().for_each(kill_group_of_child);
        return Err(failed(format!(
            "did not answer --version within {VERSION_TIMEOUT:?}; is it a hive?"
        )));
    };
    let output = ended.map_err(|error| failed(format!("can't be run: {error}")))?;
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first: String = first
        .unwrap_or_default()
        .chars()
        .take(LONGEST_VERSION)
        .collect();
    match output.status.success() {
        true => Ok(Preflight {
            program,
            version: first,
        }),
        false => Err(failed(format!(
            "failed at --version with {}: {first}",
            output.status
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(template: &[&str]) -> HiveCommand {
        HiveCommand {
            template: template.iter().map(|&a| a.to_owned()).collect(),
            install_path: None,
            port: 9200,
            queen_url: Some("http://127.0.0.1:8080".into()),
            env: vec![("RBEE_API_TOKEN".into(), "secret".into())],
            log_file: "hive.log".into(),
            start_timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn placeholders_are_filled_in_and_nothing_is_split() {
        let template = [
            "hive",
            "--addr",
            "{host}:{port}",
            "--queen={queen_url}",
            "a b; $(c)",
        ];
        let argv = arguments(&command(&template), "127.0.0.1", 9201).expect("all values are known");
        let filled = [
            "--addr",
            "127.0.0.1:9201",
            "--queen=http://127.0.0.1:8080",
            "a b; $(c)",
        ];
        assert_eq!(argv, filled);

        let mut alone = command(&template);
        alone.queen_url = None;
        let error = arguments(&alone, "127.0.0.1", 9201).expect_err("there is no queen_url");
        assert!(error.message.contains("queen_url"), "{error}");
    }

    #[test]
    fn a_missing_program_is_told_with_every_place_and_the_cure() {
        let places = ["/nowhere/a", "/nowhere/b"].map(PathBuf::from).into_iter();
        let error = find_in(&command(&["rbee-hive"]), places).expect_err("there is none");
        assert_eq!(error.code, Code::HiveUnreachable);
        for part in [
            "/nowhere/a/rbee-hive",
            "/nowhere/b/rbee-hive",
            "hives.commands",
            "PATH",
        ] {
            assert!(error.message.contains(part), "{part} in {error}");
        }
        let error = find_in(&command(&["/nowhere/x"]), std::iter::empty()).expect_err("none");
        assert!(error.message.contains("/nowhere/x"), "{error}");
        assert!(find_in(&command(&[]), std::iter::empty()).is_err());
    }

    #[test]
    fn a_file_that_is_not_executable_is_told_as_such() {
        let file = tempfile::NamedTempFile::new().expect("temp dir is writable");
        let path = file.path().to_str().expect("temp paths are UTF-8");
        let error = find_in(&command(&[path]), std::iter::empty()).expect_err("mode is 0600");
        assert!(error.message.contains("chmod +x"), "{error}");
    }

    #[test]
    fn the_debug_form_of_a_command_shows_no_secret() {
        let shown = format!("{:?}", command(&["hive"]));
        assert!(
            shown.contains("RBEE_API_TOKEN") && !shown.contains("secret"),
            "{shown}"
        );
    }

    #[tokio::test]
    async fn the_version_is_the_first_line_and_a_failure_is_told() {
        let found = version("/bin/cat".into(), &[])
            .await
            .expect("cat has --version");
        assert!(found.version.contains("cat"), "{found:?}");
        let failed = version("/bin/false".into(), &[]).await;
        let error = failed.expect_err("false fails");
        assert!(error.message.contains("exit status: 1"), "{error}");
    }
}
