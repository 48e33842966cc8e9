//! Checks of hives.

use super::samples::{complete_hive, hive_id};
use crate::domain::{HiveProcess, HiveRecord, HiveSpec};
use crate::store::Store;

async fn put<S: Store>(store: &S, hive: &HiveRecord) {
    store.put_hive(hive.clone()).await.expect("a hive is put");
}

async fn list<S: Store>(store: &S) -> Vec<HiveRecord> {
    store.hives().await.expect("hives are listed")
}

pub(super) async fn a_hive_reads_back_as_it_was_put<S: Store>(store: &S) {
    assert!(list(store).await.is_empty(), "a new store has no hives");
    let sparse = HiveRecord::new(HiveSpec::local(hive_id("a")));
    let process = HiveProcess {
        port: 1,
        pid: None,
        pid_start_time: None,
        started_by_queen: false,
    };
    let found = HiveRecord {
        process: Some(process),
        capabilities: Some(Default::default()),
        ..HiveRecord::new(HiveSpec {
            ssh: Some(Default::default()),
            install: true,
            ..HiveSpec::local(hive_id("b"))
        })
    };
    let complete = complete_hive("c");
    for hive in [&sparse, &found, &complete] {
        put(store, hive).await;
    }
    assert_eq!(list(store).await, [sparse, found, complete]);
}

pub(super) async fn a_hive_that_is_put_again_is_replaced<S: Store>(store: &S) {
    put(store, &complete_hive("gpu-0")).await;
    let sparse = HiveRecord::new(HiveSpec::local(hive_id("gpu-0")));
    put(store, &sparse).await;
    assert_eq!(list(store).await, [sparse]);
}

pub(super) async fn hives_are_listed_by_name<S: Store>(store: &S) {
    for name in ["b", "a-2", "A", "_", "a", "10", "9"] {
        put(store, &complete_hive(name)).await;
    }
    let hives = list(store).await;
    let names: Vec<&str> = hives.iter().map(|hive| hive.spec.id.as_str()).collect();
    assert_eq!(
        names,
        ["10", "9", "A", "_", "a", "a-2", "b"],
        "in byte order"
    );
}

pub(super) async fn a_removed_hive_is_gone<S: Store>(store: &S) {
    put(store, &complete_hive("a")).await;
    put(store, &complete_hive("b")).await;
    let removed = store.remove_hive(&hive_id("a")).await;
    assert!(removed.expect("a hive is removed"), "there was one");
    let removed = store.remove_hive(&hive_id("a")).await;
    assert!(!removed.expect("no hive is removed"), "there was none");
    assert_eq!(list(store).await, [complete_hive("b")]);
}
