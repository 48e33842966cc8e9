//! Where the programs under test are: in the folder and profile of the test that asks.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The stub engine; cargo builds it with the tests, as it is of their package.
#[must_use]
pub fn stub() -> PathBuf {
    program("stub-engine")
}

/// The daemon.
#[must_use]
pub fn queen() -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(build);
    program("queen-rbee")
}

/// The reference hive, beside the daemon.
#[must_use]
pub fn hive() -> PathBuf {
    queen().with_file_name("rbee-hive")
}

/// Copies a program to another place, by a process of its own.
///
/// Whoever writes a program and then starts it must not write it himself: another test's thread
/// that starts a process in that moment hands it the open file, and until that process runs its own
/// program the system refuses to start ours (`ETXTBSY`).
///
/// # Panics
/// When it can't be copied.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--").arg(from).arg(to).status();
    assert!(status.expect("cp runs").success(), "{}", to.display());
}

/// Writes a script that can be started, by a process of its own, as [`copy`] does.
///
/// # Panics
/// When it can't be written.
pub fn script(path: &Path, text: &str) {
    let mut sh = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh runs");
    let mut input = sh.stdin.take().expect("it is piped");
    input.write_all(text.as_bytes()).expect("it is read");
    drop(input);
    let status = sh.wait().expect("it ends");
    assert!(status.success(), "{}", path.display());
}

/// The folder of the profile: a test is `target/PROFILE/deps/TEST`, a program one floor higher.
fn profile_dir() -> PathBuf {
    let this = std::env::current_exe().expect("the system knows this program's path");
    let dir = this.parent().expect("a program stands in a folder");
    match dir.ends_with("deps") {
        true => dir.parent().expect("cargo's deps stands in a folder"),
        false => dir,
    }
    .to_owned()
}

fn program(name: &str) -> PathBuf {
    let path = profile_dir().join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// Builds the programs of other packages, so that no test runs an old one. With `RBEE_TEST_BUILT`
/// set, as by `make test`, they have just been built.
fn build() {
    if std::env::var_os("RBEE_TEST_BUILT").is_some() {
        return;
    }
    let profile_dir = profile_dir();
    let target_dir = profile_dir
        .parent()
        .expect("a profile's folder stands in the target folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // The workspace as a whole: for single packages cargo would choose other features, and build
    // everything again.
    build
        .args(["build", "--quiet", "--workspace", "--bins", "--examples"])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    if profile_dir.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo runs");
    assert!(status.success(), "{build:?}: {status}");
}
