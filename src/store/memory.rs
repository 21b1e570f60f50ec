//! The store that keeps rows in memory: for tests, `run` and `demo`.
//!
//! It is durable for as long as the process lives and never fails. It must never hold a guard of
//! the map across an await.

use std::fmt;

use dashmap::DashMap;

use crate::store::{BoxFuture, Error, RecordKey, RecordKind, RecordRows, Row, RowKey, Rows, Store};

/// Keeps rows in memory; they are gone with the process.
#[derive(Default)]
pub struct Memory {
    rows: DashMap<RowKey, Row>,
    records: DashMap<RecordKey, Vec<u8>>,
}

impl Memory {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("rows", &self.rows.len())
            .field("records", &self.records.len())
            .finish()
    }
}

impl Store for Memory {
    fn put(&self, key: &RowKey, row: Row) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.rows.insert(key, row);
            Ok(())
        })
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Row>, Error>> {
        let key = key.clone();
        Box::pin(async move { Ok(self.rows.get(&key).map(|row| row.value().clone())) })
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move { Ok(self.rows.remove(&key).is_some()) })
    }

    fn touch(&self, used: Vec<(RowKey, u64)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            for (key, last_used) in used {
                if let Some(mut row) = self.rows.get_mut(&key) {
                    row.last_used = last_used;
                }
            }
            Ok(())
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Rows, Error>> {
        Box::pin(async move {
            let mut rows: Vec<_> = self
                .rows
                .iter()
                .map(|row| (row.key().clone(), row.value().clone()))
                .collect();
            rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            Ok(Rows {
                rows,
                strange: Vec::new(),
            })
        })
    }

    fn put_record(&self, key: &RecordKey, sealed: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.records.insert(key, sealed);
            Ok(())
        })
    }

    fn record(&self, key: &RecordKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let key = key.clone();
        Box::pin(async move { Ok(self.records.get(&key).map(|one| one.value().clone())) })
    }

    fn delete_record(&self, key: &RecordKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move { Ok(self.records.remove(&key).is_some()) })
    }

    fn load_records(&self, kind: RecordKind) -> BoxFuture<'_, Result<RecordRows, Error>> {
        Box::pin(async move {
            let own = self.records.iter().filter(|one| one.key().kind == kind);
            let mut records: Vec<_> = own
                .map(|one| (one.key().clone(), one.value().clone()))
                .collect();
            records.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            Ok(RecordRows {
                records,
                strange: Vec::new(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{SessionId, TenantId};

    fn row(sealed: &[u8]) -> Row {
        Row {
            sealed: sealed.to_vec(),
            last_used: 7,
        }
    }

    fn record(name: &str) -> RecordKey {
        RecordKey::new(RecordKind::Tenant, name)
    }

    fn key(tenant: &str) -> RowKey {
        RowKey {
            tenant: TenantId::new(tenant),
            session: SessionId::generate(),
        }
    }

    #[tokio::test]
    async fn rows_are_kept_replaced_and_deleted() {
        let store: Arc<dyn Store> = Arc::new(Memory::new());
        let first = key("acme");
        assert_eq!(store.get(&first).await.unwrap(), None);
        store.put(&first, row(b"one")).await.unwrap();
        store.put(&first, row(b"two")).await.unwrap();
        assert_eq!(store.get(&first).await.unwrap(), Some(row(b"two")));
        assert!(store.delete(&first).await.unwrap());
        assert!(!store.delete(&first).await.unwrap());
        assert_eq!(store.get(&first).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_row_belongs_to_its_tenant_and_session() {
        let store = Memory::new();
        let own = key("acme");
        store.put(&own, row(b"row")).await.unwrap();
        let other_tenant = RowKey {
            tenant: TenantId::new("umbrella"),
            ..own.clone()
        };
        assert_eq!(store.get(&other_tenant).await.unwrap(), None);
        assert!(!store.delete(&other_tenant).await.unwrap());
        assert_eq!(store.get(&key("acme")).await.unwrap(), None);
        assert!(store.get(&own).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn load_returns_every_row_in_order() {
        let store = Memory::new();
        let mut keys: Vec<_> = ["b", "a", "c", "a"].map(key).into();
        for (number, key) in (0_u8..).zip(&keys) {
            store.put(key, row(&[number])).await.unwrap();
        }
        let loaded = store.load().await.unwrap().rows;
        keys.sort();
        assert_eq!(
            loaded.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            keys.iter().collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn a_use_is_noted_beside_the_row_and_brings_none_back() {
        let store = Memory::new();
        let (own, gone) = (key("acme"), key("acme"));
        store.put(&own, row(b"row")).await.unwrap();
        let used = vec![(own.clone(), 9), (gone.clone(), 9)];
        store.touch(used).await.unwrap();
        let expected = Row {
            last_used: 9,
            ..row(b"row")
        };
        assert_eq!(store.get(&own).await.unwrap(), Some(expected));
        assert_eq!(store.get(&gone).await.unwrap(), None);
    }

    #[tokio::test]
    async fn nothing_happens_before_the_future_is_polled() {
        let store = Memory::new();
        let own = key("acme");
        drop(store.put(&own, row(b"row")));
        assert_eq!(store.get(&own).await.unwrap(), None);
    }

    #[tokio::test]
    async fn records_are_kept_beside_the_rows() {
        let store = Memory::new();
        let (one, two) = (record("b"), record("a/with a slash"));
        store.put_record(&one, b"one".to_vec()).await.unwrap();
        store.put_record(&one, b"new".to_vec()).await.unwrap();
        store.put_record(&two, b"two".to_vec()).await.unwrap();
        let expected = RecordRows {
            records: vec![
                (two.clone(), b"two".to_vec()),
                (one.clone(), b"new".to_vec()),
            ],
            strange: Vec::new(),
        };
        assert_eq!(
            store.load_records(RecordKind::Tenant).await.unwrap(),
            expected
        );
        assert_eq!(store.record(&two).await.unwrap(), Some(b"two".to_vec()));
        assert!(store.delete_record(&two).await.unwrap());
        assert!(!store.delete_record(&two).await.unwrap());
        assert_eq!(store.record(&two).await.unwrap(), None);
        assert_eq!(store.load().await.unwrap(), Rows::default());
    }

    #[test]
    fn debug_shows_no_row() {
        let store = Memory::new();
        store.rows.insert(key("acme"), row(b"row"));
        assert_eq!(format!("{store:?}"), "Memory { rows: 1, records: 0 }");
    }
}
