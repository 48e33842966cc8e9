//! One session for each machine and login, whichever hives are there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::host::Host;
use super::target::{Keys, Target};
use super::{SshOptions, SshTransport};
use crate::domain::{Reach, SshTarget};

/// Who logs in where, and how. The name that was registered is a part of it: what it means can
/// change with the user's SSH configuration.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Login {
    name: String,
    host: String,
    port: u16,
    user: String,
    keys: Keys,
}

/// The sessions of a queen. Clones share them.
#[derive(Debug, Clone)]
pub struct SshSessions {
    options: Arc<SshOptions>,
    hosts: Arc<Mutex<HashMap<Login, Weak<Host>>>>,
}

impl SshSessions {
    /// None yet; each is made by these options when it is needed.
    #[must_use]
    pub fn new(options: SshOptions) -> Self {
        SshSessions {
            options: Arc::new(options),
            hosts: Arc::default(),
        }
    }

    /// A way to a machine, as [`SshTransport::new`] makes it, that shares its session with all others
    /// to the same place by the same login. The session ends with the last of them.
    #[must_use]
    pub fn transport(
        &self,
        target: SshTarget,
        hostname: impl Into<String>,
        tunnel: bool,
    ) -> SshTransport {
        let resolved = Target::resolve(&target, &self.options);
        let machine = super::machine(&target, resolved.as_ref().ok());
        let name = target.host.clone();
        let make = || Arc::new(Host::new(target, Arc::clone(&self.options)));
        let host = match resolved {
            Ok(Target {
                host,
                port,
                user,
                keys,
                ..
            }) => self.shared(
                Login {
                    name,
                    host,
                    port,
                    user,
                    keys,
                },
                make,
            ),
            // What is wrong is told when it is connected to.
            Err(_) => make(),
        };
        SshTransport {
            host,
            hostname: hostname.into(),
            tunnel,
            machine,
            reach: Reach::default(),
        }
    }

    fn shared(&self, login: Login, make: impl FnOnce() -> Arc<Host>) -> Arc<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(&login).and_then(Weak::upgrade) {
            return host;
        }
        hosts.retain(|_, host| host.strong_count() > 0);
        let host = make();
        hosts.insert(login, Arc::downgrade(&host));
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hives_of_one_login_share_a_session_until_the_last_has_gone() {
        let sessions = SshSessions::new(SshOptions {
            home: Some("/nowhere".into()),
            ..SshOptions::default()
        });
        let way = |host: &str, user: &str, port| {
            let target = SshTarget {
                host: host.into(),
                user: Some(user.into()),
                port,
                key_path: None,
            };
            sessions.transport(target, host, true)
        };
        let first = way("gpu", "me", None);
        assert!(Arc::ptr_eq(&first.host, &way("gpu", "me", Some(22)).host));
        assert!(!Arc::ptr_eq(&first.host, &way("gpu", "you", None).host));
        assert!(!Arc::ptr_eq(&first.host, &way("cpu", "me", None).host));
        drop(first);
        let _other = way("cpu", "me", None);
        let hosts = sessions.hosts.lock().expect("nothing panicked");
        assert_eq!(hosts.len(), 1);
    }
}
