//! A look at a machine before a hive is started on it.

use std::time::SystemTime;

use super::SshTransport;
use super::connect::{Peer, Refused, Stage};
use super::program::{Found, Program};
use super::script;
use crate::error::Result;
use crate::transport::HiveCommand;
use crate::transport::report::{Item, Report};
use crate::transport::version::is_older;

/// Less free disk is worth a warning: models are large.
const LITTLE_DISK_KIB: u64 = 10 << 20;
/// A larger difference of the clocks is worth a warning, in seconds.
const LARGE_SKEW: u64 = 10;
/// The version that hives should have.
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Looks at everything, as far as a failure lets it.
pub(super) async fn inspect(transport: &SshTransport, command: &HiveCommand) -> Report {
    let host = &transport.host;
    // Whoever asks for this has just cured something.
    host.forget_failures();
    let mut items = match host.reach().await {
        Err(refused) => {
            return Report {
                items: refused_items(&refused),
            };
        }
        Ok(peer) => peer_items(&peer),
    };
    match look(transport, command).await {
        Ok(more) => items.extend(more),
        Err(error) => items.push(Item::failed(
            "shell",
            error.in_full().into_owned(),
            "give the user a POSIX shell and a home on that machine",
        )),
    }
    Report { items }
}

fn refused_items(refused: &Refused) -> Vec<Item> {
    let message = refused.error.in_full().into_owned();
    let reached = || Item::ok("reachable", "sshd answers");
    let known = || Item::ok("host_key", "the host key is known");
    match refused.stage {
        Stage::Reach => vec![Item::failed(
            "reachable",
            message,
            "see that the machine is on and sshd runs; check ssh_host and ssh_port",
        )],
        Stage::HostKey => vec![
            reached(),
            Item::failed(
                "host_key",
                message,
                "compare the fingerprint, then correct known_hosts as the message says",
            ),
        ],
        Stage::LogIn => vec![
            reached(),
            known(),
            Item::failed(
                "authenticated",
                message,
                "let the machine take a key of the queen's, as the message says",
            ),
        ],
    }
}

fn peer_items(peer: &Peer) -> Vec<Item> {
    vec![
        Item::ok("reachable", format!("{} answers", peer.address)),
        Item::ok("host_key", peer.host_key.clone()),
        Item::ok("authenticated", format!("logged in {}", peer.login)),
    ]
}

/// What one script tells of the machine.
struct Facts {
    system: String,
    engine: String,
    devices: Vec<String>,
    disk_free_kib: Option<u64>,
    port_is_taken: bool,
    /// Seconds since 1970, there.
    clock: Option<u64>,
}

async fn look(transport: &SshTransport, command: &HiveCommand) -> Result<Vec<Item>> {
    let facts = Facts::ask(transport, command.port).await?;
    let program = Program::of(command)?;
    let found = program.look(&transport.host).await?;
    let name = transport.host.name();
    Ok(vec![
        architecture(&facts.system, &found),
        hive(&found, &program.missing(name)),
        engine(&facts.engine),
        devices(&facts.devices),
        disk(facts.disk_free_kib),
        port(command.port, facts.port_is_taken),
        clock(facts.clock),
    ])
}

impl Facts {
    async fn ask(transport: &SshTransport, port: u16) -> Result<Self> {
        let body = format!(
            "echo \"system $(uname -sm)\"\n\
             engine=${{RBEE_LLAMA_SERVER-}}\n\
             [ -n \"$engine\" ] || engine=$(command -v llama-server)\n\
             echo \"engine $engine\"\n\
             df -Pk \"$HOME\" | awk 'NR == 2 {{ print \"disk \" $4 }}'\n\
             if listens {port}; then echo taken yes; fi\n\
             command -v nvidia-smi >/dev/null && briefly nvidia-smi -L 2>/dev/null | sed 's/^/device /'\n\
             echo \"clock $(date +%s)\""
        );
        let host = &transport.host;
        let said = script::run(host, &body, host.options().command_timeout).await?;
        Ok(Facts::read(&said.ok(host, "a look at the machine")?))
    }

    fn read(said: &str) -> Self {
        let all = |key: &str| -> Vec<String> {
            let lines = said.lines().filter_map(|line| line.split_once(' '));
            let fitting = lines.filter(|(name, _)| *name == key);
            fitting.map(|(_, value)| value.trim().to_owned()).collect()
        };
        let one = |key: &str| all(key).into_iter().next().unwrap_or_default();
        Facts {
            system: one("system"),
            engine: one("engine"),
            devices: all("device"),
            disk_free_kib: one("disk").parse().ok(),
            port_is_taken: one("taken") == "yes",
            clock: one("clock").parse().ok(),
        }
    }
}

/// Another architecture is no failure where a hive runs all the same.
fn architecture(system: &str, found: &Found) -> Item {
    let name = "architecture";
    let os = match std::env::consts::OS {
        "linux" => "Linux",
        "macos" => "Darwin",
        other => other,
    };
    let machine = match (os, std::env::consts::ARCH) {
        ("Darwin", "aarch64") => "arm64",
        (_, machine) => machine,
    };
    let own = format!("{os} {machine}");
    if system == own {
        return Item::ok(name, format!("{system}, as the queen's"));
    }
    match found {
        Found::Works(_) => Item::ok(
            name,
            format!("{system}; the queen's is {own}, and the hive there runs"),
        ),
        _ => Item::failed(
            name,
            format!("{system}; the queen's is {own}, so her hive does not run there"),
            format!("put a hive that is built for {system} on the machine, then add it again"),
        ),
    }
}

fn hive(found: &Found, missing: &str) -> Item {
    let name = "hive";
    match found {
        Found::Missing => Item::warning(
            name,
            missing,
            "install it there, or register the hive with \"install\": true",
        ),
        Found::Broken(why) => Item::warning(
            name,
            format!("the hive's program {why}"),
            "replace it, or register the hive with \"install\": true",
        ),
        Found::Works(preflight) => {
            let (program, version) = (preflight.program.display(), &preflight.version);
            let shown = format!("{program}: {version}");
            match is_older(version, OWN_VERSION) {
                Some(true) => Item::warning(
                    name,
                    format!("{shown}, older than the queen's {OWN_VERSION}"),
                    "update it, or register the hive with \"install\": true",
                ),
                _ => Item::ok(name, shown),
            }
        }
    }
}

fn engine(engine: &str) -> Item {
    match engine {
        "" => Item::warning(
            "engine",
            "no llama-server on PATH and no RBEE_LLAMA_SERVER",
            "install one on the machine, or configure the hive for another engine",
        ),
        engine => Item::ok("engine", engine),
    }
}

fn devices(devices: &[String]) -> Item {
    match devices {
        [] => Item::ok(
            "devices",
            "no NVIDIA device; the hive tells of others itself",
        ),
        devices => Item::ok("devices", devices.join("; ")),
    }
}

fn disk(free_kib: Option<u64>) -> Item {
    let name = "disk";
    let Some(free) = free_kib else {
        return Item::warning(name, "the free disk is unknown", "look with: df -h ~");
    };
    let gib = free as f64 / f64::from(1 << 20);
    let message = format!("{gib:.1} GiB are free where the home is");
    match free < LITTLE_DISK_KIB {
        true => Item::warning(name, message, "make room: models take gigabytes"),
        false => Item::ok(name, message),
    }
}

fn port(port: u16, is_taken: bool) -> Item {
    match is_taken {
        true => Item::warning(
            "port",
            format!("something listens on port {port}"),
            "if it is no hive of this queen, register another port; else it is taken over, or the \
             next free one is used",
        ),
        false => Item::ok("port", format!("port {port} is free")),
    }
}

fn clock(there: Option<u64>) -> Item {
    let name = "clock";
    let here = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let (Some(there), Ok(here)) = (there, here) else {
        return Item::warning(name, "its clock is unknown", "look with: date");
    };
    let skew = there.abs_diff(here.as_secs());
    match skew > LARGE_SKEW {
        true => Item::warning(
            name,
            format!("its clock is {skew} s off the queen's"),
            "set both by NTP: times in logs will not fit together",
        ),
        false => Item::ok(name, "as the queen's, within seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Preflight;
    use crate::transport::report::Status;

    #[test]
    fn what_a_machine_says_becomes_items_with_cures() {
        let facts = Facts::read(
            "system Plan9 mips\nengine \ndisk 1048576\ntaken yes\n\
             device GPU 0: NVIDIA A\ndevice GPU 1: NVIDIA B\nclock 12\n",
        );
        assert_eq!(facts.devices.len(), 2);
        let old = Found::Works(Preflight {
            program: "/opt/rbee-hive".into(),
            version: "rbee-hive 0.0.1".into(),
        });
        let failed = architecture(&facts.system, &Found::Missing);
        assert_eq!(failed.status, Status::Failed);
        assert!(failed.message.contains("Plan9 mips"), "{failed:?}");
        assert!(
            failed.message.contains(std::env::consts::ARCH),
            "{failed:?}"
        );
        assert_eq!(architecture(&facts.system, &old).status, Status::Ok);
        for item in [
            hive(&old, ""),
            hive(&Found::Missing, "it was not found"),
            engine(&facts.engine),
            disk(facts.disk_free_kib),
            port(9200, facts.port_is_taken),
            clock(facts.clock),
        ] {
            assert_eq!(item.status, Status::Warning, "{item:?}");
            assert!(item.cure.is_some_and(|cure| !cure.is_empty()));
        }
    }
}
