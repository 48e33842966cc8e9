//! Where workers listen, and under which name others reach them.

use std::io;
use std::net::TcpListener;

use crate::config::is_loopback;

#[derive(Debug, Clone)]
pub(crate) struct WorkerHost {
    /// What engines listen on.
    pub(crate) bind: &'static str,
    /// How the hive itself reaches them.
    probe: &'static str,
    /// What others are told.
    public: String,
}

impl WorkerHost {
    /// Not every engine asks for its key on every path, so they listen on loopback unless another
    /// name was given for them.
    pub(crate) fn new(name: Option<&str>) -> Self {
        let name = name.unwrap_or("127.0.0.1");
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let is_ipv6 = bare.contains(':');
        let (bind, probe) = match (is_loopback(bare), is_ipv6) {
            (true, false) => ("127.0.0.1", "127.0.0.1"),
            (true, true) => ("::1", "[::1]"),
            (false, false) => ("0.0.0.0", "127.0.0.1"),
            (false, true) => ("::", "[::1]"),
        };
        WorkerHost {
            bind,
            probe,
            public: match is_ipv6 {
                true => format!("[{bare}]"),
                false => bare.to_owned(),
            },
        }
    }

    pub(crate) fn url(&self, port: u16) -> String {
        format!("http://{}:{port}", self.public)
    }

    pub(crate) fn probe_url(&self, port: u16, path: &str) -> String {
        format!("http://{}:{port}{path}", self.probe)
    }

    /// A port that nobody uses now. Someone may take it before the engine does, so the caller
    /// must be ready to try another one.
    pub(crate) fn free_port(&self) -> io::Result<u16> {
        Ok(TcpListener::bind((self.bind, 0))?.local_addr()?.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_listen_on_loopback_unless_another_machine_must_reach_them() {
        let local = WorkerHost::new(None);
        assert_eq!(
            (local.bind, &*local.url(1)),
            ("127.0.0.1", "http://127.0.0.1:1")
        );
        let lan = WorkerHost::new(Some("gpu-0.lan"));
        assert_eq!((lan.bind, &*lan.url(1)), ("0.0.0.0", "http://gpu-0.lan:1"));
        assert_eq!(lan.probe_url(1, "/health"), "http://127.0.0.1:1/health");
        assert_eq!(
            WorkerHost::new(Some("fd00::1")).url(1),
            "http://[fd00::1]:1"
        );
    }
}
