//! Rows that a node refuses: whose they are to delete, and whose not.

use super::*;

fn key(created: &Created) -> RowKey {
    RowKey {
        tenant: tenant("acme"),
        session: created.handle.id().clone(),
    }
}

#[tokio::test]
async fn a_row_that_a_node_refuses_is_its_tenant_s_to_delete_and_never_comes_back() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    let id = created.handle.id();
    let key = key(&created);
    let row = pair.store.rows.get(&key).await.unwrap().unwrap();
    let mut changed = row.clone();
    changed.sealed[20] ^= 1;
    pair.store.rows.put(&key, changed).await.unwrap();
    let there = async || pair.store.rows.get(&key).await.unwrap().is_some();
    let another_s = pair.b.0.delete(&tenant("other"), id).await;
    assert!(
        matches!(another_s, Err(SessionError::NotFound)),
        "{another_s:?}"
    );
    assert!(there().await);
    pair.store.is_read_only.store(true, Ordering::SeqCst);
    let failed = pair.b.0.delete(&tenant("acme"), id).await;
    assert!(matches!(failed, Err(SessionError::Store(_))), "{failed:?}");
    assert!(there().await);
    pair.store.is_read_only.store(false, Ordering::SeqCst);
    pair.b.0.delete(&tenant("acme"), id).await.unwrap();
    assert!(!there().await);
    let again = pair.b.0.delete(&tenant("acme"), id).await;
    assert!(matches!(again, Err(SessionError::NotFound)), "{again:?}");
    // Where it was served: it is over there, too.
    pair.pass(SECOND).await;
    assert!(created.handle.is_cut());
    // Wherever its row comes from again.
    pair.store.rows.put(&key, row).await.unwrap();
    assert_eq!(pair.b.admits(&created).await, Err(NotAdmitted::Unknown));
    pair.pass(SECOND).await;
    assert!(!there().await);
}

#[tokio::test]
async fn a_deletion_of_what_was_refused_is_made_up_for() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    let key = key(&created);
    let mut row = pair.store.rows.get(&key).await.unwrap().unwrap();
    row.sealed[20] ^= 1;
    pair.store.rows.put(&key, row).await.unwrap();
    pair.store.is_read_only.store(true, Ordering::SeqCst);
    let failed = pair.b.0.delete(&key.tenant, &key.session).await;
    assert!(matches!(failed, Err(SessionError::Store(_))), "{failed:?}");
    pair.b.turn().await;
    assert!(pair.store.rows.get(&key).await.unwrap().is_some());
    pair.store.is_read_only.store(false, Ordering::SeqCst);
    pair.b.turn().await;
    assert!(pair.store.rows.get(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_row_under_another_tenant_s_name_ends_nothing_that_lives() {
    let pair = Pair::new().await;
    let created = pair.a.create(one_secret()).await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
    let own = key(&created);
    let forged = RowKey {
        tenant: tenant("other"),
        ..own.clone()
    };
    let row = pair.store.rows.get(&own).await.unwrap().unwrap();
    pair.store.rows.delete(&own).await.unwrap();
    pair.store.rows.put(&forged, row).await.unwrap();
    pair.store.note(&own);
    pair.b.turn().await;
    assert!(pair.b.0.refused().contains(&forged), "it was looked at");
    let another_s = pair.b.0.delete(&forged.tenant, &forged.session).await;
    assert!(
        matches!(another_s, Err(SessionError::NotFound)),
        "{another_s:?}"
    );
    pair.b.turn().await;
    assert_eq!(pair.b.admits(&created).await, Ok(()));
}
