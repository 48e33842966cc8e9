//! Which hive of this queen has which port, so that none adopts another's process: they share one
//! token, so that does not tell them apart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::domain::HiveId;

/// Ports by the machine's host. Clones share the same entries; all hives of a queen share one.
#[derive(Debug, Clone, Default)]
pub struct PortClaims(Arc<Mutex<HashMap<(String, u16), HiveId>>>);

impl PortClaims {
    /// Whether a port is another hive's.
    pub(super) fn is_anothers(&self, host: &str, port: u16, hive: &HiveId) -> bool {
        let claims = self.entries();
        claims
            .get(&(host.to_owned(), port))
            .is_some_and(|owner| owner != hive)
    }

    /// Gives a hive this port and no other; `None` takes what it has. A port that another hive
    /// claims stays with that one.
    pub(super) fn set(&self, host: &str, port: Option<u16>, hive: &HiveId) {
        let mut claims = self.entries();
        claims.retain(|_, owner| owner != hive);
        if let Some(port) = port {
            claims
                .entry((host.to_owned(), port))
                .or_insert_with(|| hive.clone());
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<(String, u16), HiveId>> {
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
        let [a, b] = ["a", "b"].map(|name| HiveId::new(name).expect("a name"));
        claims.set("h", Some(9200), &a);
        claims.set("h", Some(9200), &b);
        assert!(claims.is_anothers("h", 9200, &b) && !claims.is_anothers("h", 9200, &a));
        assert!(!claims.is_anothers("other", 9200, &b));
        claims.set("h", None, &a);
        assert!(!claims.is_anothers("h", 9200, &b));
    }
}
