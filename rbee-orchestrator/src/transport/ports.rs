//! Ports on this machine: free ones, and who listens on the others.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::error::{Code, Error, Result};

/// How many ports are looked at before giving up.
const PORTS_TRIED: u16 = 200;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// The first port from `from` on where nothing listens. Another process may take it meanwhile.
/// Blocks.
pub(super) fn first_free(from: u16) -> Result<u16> {
    let last = from.saturating_add(PORTS_TRIED);
    (from.max(1)..=last)
        .find(|port| is_free(*port))
        .ok_or_else(|| {
            Error::new(
                Code::HiveUnreachable,
                format!("no port from {from} to {last} is free for a hive; set another in [hives]"),
            )
        })
}

/// Whether something accepts connections on a loopback port. Blocks.
pub(super) fn is_taken(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok()
}

fn is_free(port: u16) -> bool {
    // Binding alone is no proof: some systems let a specific address bind beside a wildcard one.
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && !is_taken(port)
}

/// Whether a process of the group that `leader` leads listens on a port. `false` where the
/// platform does not tell. Blocks for milliseconds.
pub(super) fn is_served_by_group(port: u16, leader: u32) -> bool {
    #[cfg(target_os = "linux")]
    return linux::is_served_by_group(port, leader);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (port, leader);
        false
    }
}

/// Whether only the user of this process, or root, listens on a port. Where the platform does not
/// tell, nobody is suspected. Blocks for milliseconds.
pub(super) fn is_served_by_own_user(port: u16) -> bool {
    #[cfg(target_os = "linux")]
    return linux::is_served_by_own_user(port);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = port;
        true
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashSet;
    use std::fs;

    /// A listening socket.
    #[derive(Debug, PartialEq, Eq)]
    struct Listener {
        uid: u32,
        inode: u64,
    }

    pub(super) fn is_served_by_own_user(port: u16) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let trusted = |listener: &Listener| listener.uid == own || listener.uid == 0;
        listeners(port).iter().all(trusted)
    }

    pub(super) fn is_served_by_group(port: u16, leader: u32) -> bool {
        let inodes: HashSet<u64> = listeners(port).iter().map(|l| l.inode).collect();
        if inodes.is_empty() {
            return false;
        }
        let Ok(entries) = fs::read_dir("/proc") else {
            return false;
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| group_of(*pid) == Some(leader))
            .any(|pid| sockets_of(pid).any(|inode| inodes.contains(&inode)))
    }

    /// Field 5 of `/proc/<pid>/stat`.
    fn group_of(pid: u32) -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_ascii_whitespace().nth(2)?.parse().ok()
    }

    fn sockets_of(pid: u32) -> impl Iterator<Item = u64> {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        files.filter_map(|file| {
            let target = fs::read_link(file.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            inode.parse().ok()
        })
    }

    fn listeners(port: u16) -> Vec<Listener> {
        let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
        let texts = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
        texts
            .iter()
            .flat_map(|text| parse_listeners(text, port))
            .collect()
    }

    /// Reads the table of proc_pid_net(5). The address is not looked at: who owns a port on some
    /// address of this machine owns it for our purposes.
    fn parse_listeners(table: &str, port: u16) -> impl Iterator<Item = Listener> {
        table.lines().skip(1).filter_map(move |line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
            let listens = *fields.get(3)? == "0A";
            if !listens || u16::from_str_radix(local_port, 16) != Ok(port) {
                return None;
            }
            Some(Listener {
                uid: fields.get(7)?.parse().ok()?,
                inode: fields.get(9)?.parse().ok()?,
            })
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_listener_is_found_with_its_user() {
            let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when \
                         retrnsmt   uid  timeout inode\n   \
                         0: 0100007F:23F0 00000000:0000 0A 00000000:00000000 00:00000000 00000000 \
                          1000        0 77 1 0 100 0 0 10 0\n   \
                         1: 0100007F:23F0 0100007F:9999 01 00000000:00000000 00:00000000 00000000 \
                          1001        0 78 1 0 100 0 0 10 0\n";
            let found: Vec<Listener> = parse_listeners(table, 9200).collect();
            assert_eq!(
                found,
                [Listener {
                    uid: 1000,
                    inode: 77
                }]
            );
            assert_eq!(parse_listeners(table, 9201).count(), 0);
        }

        #[test]
        fn a_port_of_this_process_is_not_one_of_another_group() {
            let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
            let port = socket.local_addr().expect("bound").port();
            let group = rustix::process::getpgrp().as_raw_nonzero().get();
            let group = u32::try_from(group).expect("pids are positive");
            assert!(is_served_by_own_user(port));
            assert!(is_served_by_group(port, group));
            assert!(!is_served_by_group(port, u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_where_something_listens_is_skipped() {
        let listener = TcpListener::bind(("0.0.0.0", 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        assert!(is_taken(port));
        assert_ne!(first_free(port).expect("one of the next is free"), port);
    }
}
