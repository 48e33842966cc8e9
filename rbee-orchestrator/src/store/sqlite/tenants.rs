//! The SQL of the `tenants` table.

use rusqlite::{Connection, Row, params};

use super::hives::{from_json, json};
use super::jobs::checked;
use crate::domain::{Tenant, TenantId};

/// Writes a tenant, in place of an older one of that name.
pub(super) fn put(db: &Connection, tenant: &Tenant) -> rusqlite::Result<()> {
    let mut put = db.prepare_cached("INSERT OR REPLACE INTO tenants (id, limits) VALUES (?, ?)")?;
    put.execute(params![tenant.id.as_str(), json(&tenant.limits)?])?;
    Ok(())
}

/// Forgets a tenant; says whether there was one.
pub(super) fn remove(db: &Connection, id: &TenantId) -> rusqlite::Result<bool> {
    let mut delete = db.prepare_cached("DELETE FROM tenants WHERE id = ?")?;
    Ok(delete.execute([id.as_str()])? > 0)
}

/// All tenants, by name.
pub(super) fn list(db: &Connection) -> rusqlite::Result<Vec<Tenant>> {
    let mut list = db.prepare_cached("SELECT id, limits FROM tenants ORDER BY id")?;
    list.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Tenant> {
    Ok(Tenant {
        id: checked(row, 0)?,
        limits: from_json(row, 1)?,
    })
}
