use super::*;
use crate::store::testing::conformance;

#[tokio::test]
async fn a_sqlite_store_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    conformance(|| async {
        count.set(count.get() + 1);
        let path = folder.path().join(format!("{}.db", count.get()));
        SqliteStore::open(path).await.unwrap()
    })
    .await;
}
