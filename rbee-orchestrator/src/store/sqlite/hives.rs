//! The SQL of the `hives` table.

use std::collections::BTreeMap;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::jobs::{checked, unreadable};
use crate::domain::{HiveId, HiveMode, HiveProcess, HiveRecord, HiveSpec, SshTarget, UnixMillis};

/// Writes a hive, in place of an older one of that name.
pub(super) fn put(db: &Connection, hive: &HiveRecord) -> rusqlite::Result<()> {
    const PUT: &str = "INSERT OR REPLACE INTO hives (node_name, mode, hostname, port, ssh_host, \
         ssh_port, ssh_user, ssh_key_path, git_repo_url, git_branch, install_path, command, \
         backends, devices, labels, capabilities, process_port, process_pid, process_start_time, \
         process_started_by_queen, last_seen, tunnel, install, model_use) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let spec = &hive.spec;
    let ssh = spec.ssh.as_ref();
    let process = hive.process.as_ref();
    db.prepare_cached(PUT)?.execute(params![
        spec.id.as_str(),
        mode_name(spec.mode),
        spec.hostname,
        spec.port,
        ssh.map(|ssh| ssh.host.as_str()),
        ssh.and_then(|ssh| ssh.port),
        ssh.and_then(|ssh| ssh.user.as_deref()),
        ssh.and_then(|ssh| ssh.key_path.as_deref()),
        spec.git_repo_url,
        spec.git_branch,
        spec.install_path,
        spec.command,
        json(&spec.backends)?,
        json(&spec.devices)?,
        json(&spec.labels)?,
        hive.capabilities.as_ref().map(json).transpose()?,
        process.map(|process| process.port),
        process.and_then(|process| process.pid),
        process.and_then(|process| process.pid_start_time.map(u64::cast_signed)),
        process.map(|process| process.started_by_queen),
        hive.last_seen.map(|at| at.0),
        spec.tunnel,
        spec.install,
        json(&hive.model_use)?,
    ])?;
    Ok(())
}

/// Forgets a hive; says whether there was one.
pub(super) fn remove(db: &Connection, id: &HiveId) -> rusqlite::Result<bool> {
    let mut delete = db.prepare_cached("DELETE FROM hives WHERE node_name = ?")?;
    Ok(delete.execute([id.as_str()])? > 0)
}

/// All hives, by name.
pub(super) fn list(db: &Connection) -> rusqlite::Result<Vec<HiveRecord>> {
    const LIST: &str = "SELECT node_name, mode, hostname, port, ssh_host, ssh_port, ssh_user, \
         ssh_key_path, git_repo_url, git_branch, install_path, command, backends, devices, \
         labels, capabilities, process_port, process_pid, process_start_time, \
         process_started_by_queen, last_seen, tunnel, install, model_use FROM hives \
         ORDER BY node_name";
    db.prepare_cached(LIST)?.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<HiveRecord> {
    let spec = HiveSpec {
        id: checked(row, 0)?,
        mode: read_mode(row)?,
        hostname: row.get(2)?,
        port: row.get(3)?,
        ssh: read_ssh(row)?,
        tunnel: row.get(21)?,
        install: row.get(22)?,
        git_repo_url: row.get(8)?,
        git_branch: row.get(9)?,
        install_path: row.get(10)?,
        command: row.get(11)?,
        backends: from_json(row, 12)?,
        devices: from_json(row, 13)?,
        labels: from_json(row, 14)?,
    };
    let used = row.get_ref(23)?.data_type() != Type::Null;
    let reported = row.get_ref(15)?.data_type() != Type::Null;
    Ok(HiveRecord {
        spec,
        process: read_process(row)?,
        capabilities: reported.then(|| from_json(row, 15)).transpose()?,
        last_seen: row.get::<_, Option<i64>>(20)?.map(UnixMillis),
        model_use: match used {
            true => from_json(row, 23)?,
            false => BTreeMap::new(),
        },
    })
}

fn read_ssh(row: &Row<'_>) -> rusqlite::Result<Option<SshTarget>> {
    let Some(host) = row.get(4)? else {
        return Ok(None);
    };
    Ok(Some(SshTarget {
        host,
        port: row.get(5)?,
        user: row.get(6)?,
        key_path: row.get(7)?,
    }))
}

fn read_process(row: &Row<'_>) -> rusqlite::Result<Option<HiveProcess>> {
    let Some(port) = row.get(16)? else {
        return Ok(None);
    };
    let start_time: Option<i64> = row.get(18)?;
    Ok(Some(HiveProcess {
        port,
        pid: row.get(17)?,
        pid_start_time: start_time.map(i64::cast_unsigned),
        started_by_queen: row.get(19)?,
    }))
}

fn mode_name(mode: HiveMode) -> &'static str {
    match mode {
        HiveMode::Local => "local",
        HiveMode::Network => "network",
    }
}

fn read_mode(row: &Row<'_>) -> rusqlite::Result<HiveMode> {
    let name: String = row.get(1)?;
    let all = [HiveMode::Local, HiveMode::Network];
    let unknown = || crate::Error::internal(format!("{name:?} is no mode of a hive"));
    all.into_iter()
        .find(|mode| mode_name(*mode) == name)
        .ok_or_else(|| unreadable(1, Type::Text, unknown()))
}

pub(super) fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, Type::Text, error))
}
