//! Checks of tenants.

use super::samples::tenant;
use crate::domain::{Tenant, TenantLimits};
use crate::store::Store;

async fn list<S: Store>(store: &S) -> Vec<Tenant> {
    store.tenants().await.expect("tenants are listed")
}

async fn put<S: Store>(store: &S, name: &str, limits: TenantLimits) -> Tenant {
    let tenant = Tenant {
        id: tenant(name),
        limits,
    };
    let put = store.put_tenant(tenant.clone()).await;
    put.expect("a tenant is put");
    tenant
}

fn limits() -> TenantLimits {
    TenantLimits {
        weight: u32::MAX,
        models: Some(vec!["smollm2".into(), "'\"ä".into()]),
        max_concurrent: Some(0),
        tokens_per_day: Some(u64::MAX),
        requests_per_minute: Some(1),
        tokens_per_minute: Some(u32::MAX),
    }
}

pub(super) async fn tenants_are_listed_by_name_as_they_were_put<S: Store>(store: &S) {
    assert_eq!(list(store).await, [], "a new store has no tenants");
    let b = put(store, "b", limits()).await;
    let upper = put(store, "B", TenantLimits::default()).await;
    let none = TenantLimits {
        models: Some(Vec::new()),
        ..TenantLimits::default()
    };
    let a = put(store, "a-2", none).await;
    assert_eq!(list(store).await, [upper, a, b], "in byte order");
}

pub(super) async fn a_tenant_that_is_put_again_is_replaced<S: Store>(store: &S) {
    put(store, "a", limits()).await;
    let newer = put(store, "a", TenantLimits::default()).await;
    assert_eq!(list(store).await, [newer]);
}

pub(super) async fn a_removed_tenant_is_gone<S: Store>(store: &S) {
    put(store, "a", limits()).await;
    let b = put(store, "b", limits()).await;
    for was_there in [true, false] {
        let removed = store.remove_tenant(&tenant("a")).await;
        assert_eq!(removed.expect("a tenant is removed"), was_there);
    }
    assert_eq!(list(store).await, [b]);
}
