//! Which hive of this queen has which port, so that none adopts another's process: they share one
//! token, so that does not tell them apart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// One who claims ports: a hive's handle. Not the hive's name: a hive that is registered anew has
/// a new handle while the old one still ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claimant(u64);

/// Ports by the machine. Clones share the same entries; all hives of a queen share one.
#[derive(Debug, Clone, Default)]
pub struct PortClaims(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    owners: HashMap<(String, u16), Claimant>,
    claimants: u64,
}

impl PortClaims {
    /// Someone new, without a port.
    pub(super) fn claimant(&self) -> Claimant {
        let mut entries = self.entries();
        entries.claimants += 1;
        Claimant(entries.claimants)
    }

    /// Whether a port is someone else's.
    pub(super) fn is_anothers(&self, machine: &str, port: u16, who: Claimant) -> bool {
        let entries = self.entries();
        let owner = entries.owners.get(&(machine.to_owned(), port));
        owner.is_some_and(|owner| *owner != who)
    }

    /// Gives someone this port and no other; `None` takes what it has. A port that another claims
    /// stays with that one.
    pub(super) fn set(&self, machine: &str, port: Option<u16>, who: Claimant) {
        let mut entries = self.entries();
        entries.owners.retain(|_, owner| *owner != who);
        if let Some(port) = port {
            let place = (machine.to_owned(), port);
            entries.owners.entry(place).or_insert(who);
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_hive_until_that_moves_on() {
        let claims = PortClaims::default();
        let (a, b) = (claims.claimant(), claims.claimant());
        claims.set("h", Some(9200), a);
        claims.set("h", Some(9200), b);
        assert!(claims.is_anothers("h", 9200, b) && !claims.is_anothers("h", 9200, a));
        assert!(!claims.is_anothers("other", 9200, b));
        // One that has no port takes nobody's.
        claims.set("h", None, b);
        assert!(claims.is_anothers("h", 9200, b));
        claims.set("h", None, a);
        assert!(!claims.is_anothers("h", 9200, b));
    }
}
