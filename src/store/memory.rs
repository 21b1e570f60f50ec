//! The store that keeps rows in memory: for tests, `run` and `demo`.
//!
//! It is durable for as long as the process lives and never fails. It must never hold a guard of
//! the map across an await.

use std::fmt;

use dashmap::DashMap;

use crate::store::{BoxFuture, Error, Row, RowKey, Store};

/// Keeps rows in memory; they are gone with the process.
#[derive(Default)]
pub struct Memory {
    rows: DashMap<RowKey, Vec<u8>>,
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
            .finish()
    }
}

impl Store for Memory {
    fn put(&self, key: &RowKey, row: Vec<u8>) -> BoxFuture<'_, Result<(), Error>> {
        let key = key.clone();
        Box::pin(async move {
            self.rows.insert(key, row);
            Ok(())
        })
    }

    fn get(&self, key: &RowKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Error>> {
        let key = key.clone();
        Box::pin(async move { Ok(self.rows.get(&key).map(|row| row.value().clone())) })
    }

    fn delete(&self, key: &RowKey) -> BoxFuture<'_, Result<bool, Error>> {
        let key = key.clone();
        Box::pin(async move { Ok(self.rows.remove(&key).is_some()) })
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<Row>, Error>> {
        Box::pin(async move {
            let mut rows: Vec<_> = self
                .rows
                .iter()
                .map(|row| (row.key().clone(), row.value().clone()))
                .collect();
            rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
            Ok(rows)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{SessionId, TenantId};

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
        store.put(&first, b"one".to_vec()).await.unwrap();
        store.put(&first, b"two".to_vec()).await.unwrap();
        assert_eq!(store.get(&first).await.unwrap(), Some(b"two".to_vec()));
        assert!(store.delete(&first).await.unwrap());
        assert!(!store.delete(&first).await.unwrap());
        assert_eq!(store.get(&first).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_row_belongs_to_its_tenant_and_session() {
        let store = Memory::new();
        let own = key("acme");
        store.put(&own, b"row".to_vec()).await.unwrap();
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
            store.put(key, vec![number]).await.unwrap();
        }
        let loaded = store.load().await.unwrap();
        keys.sort();
        assert_eq!(
            loaded.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            keys.iter().collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn nothing_happens_before_the_future_is_polled() {
        let store = Memory::new();
        let own = key("acme");
        drop(store.put(&own, b"row".to_vec()));
        assert_eq!(store.get(&own).await.unwrap(), None);
    }

    #[test]
    fn debug_shows_no_row() {
        let store = Memory::new();
        store.rows.insert(key("acme"), b"row".to_vec());
        assert_eq!(format!("{store:?}"), "Memory { rows: 1 }");
    }
}
