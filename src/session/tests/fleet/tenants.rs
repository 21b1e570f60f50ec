//! Tenants in a fleet: whose a session is that another node made, and what two that change the same
//! thing in one moment do to each other.

use super::*;
use crate::tenant::{Change as TenantChange, State};

#[tokio::test]
async fn a_session_of_a_tenant_that_is_not_known_is_refused() {
    let clock = Clock::default();
    let store = TestFleet::new(&clock);
    let node = || Node::with_tenants(&store, &clock);
    let (a, b, late, acme) = (node(), node(), node(), tenant("acme"));
    for node in [&a, &b, &late] {
        node.0.load().await.unwrap();
    }
    a.0.tenants()
        .create(&acme, Limits::default())
        .await
        .unwrap();
    let created = a.create(one_secret()).await;
    // Nobody told of the tenant: it is asked for with the session.
    assert_eq!(b.admits(&created).await, Ok(()));
    assert_eq!(b.0.tenants().about(&acme).unwrap().sessions, 1);
    // Whether there is one cannot be known.
    let rows = async || store.rows.load().await.unwrap().rows.len();
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    let record = store.rows.record(&key).await.unwrap().unwrap();
    let fleet = a.0.store.fleet().unwrap();
    let (row_key, row) = fleet.find(created.handle.id()).await.unwrap().unwrap();
    let opened = late.0.open(&row_key, &row).await.unwrap();
    store.are_records_down.store(true, Ordering::SeqCst);
    assert_eq!(late.admits(&created).await, Err(NotAdmitted::Unavailable));
    store.are_records_down.store(false, Ordering::SeqCst);
    assert_eq!(late.admits(&created).await, Ok(()));
    // There is none, or what stands there was not sealed by us: refused, and nothing is deleted.
    let mut forged = record.clone();
    *forged.last_mut().unwrap() ^= 1;
    for there in [None, Some(forged)] {
        store.rows.delete_record(&key).await.unwrap();
        if let Some(sealed) = there {
            store.rows.put_record(&key, sealed).await.unwrap();
        }
        let late = node();
        late.0.load().await.unwrap();
        assert_eq!(late.admits(&created).await, Err(NotAdmitted::Unknown));
        late.turn().await;
        assert_eq!(rows().await, 2);
    }
    // Another of that name, which is younger.
    store.rows.delete_record(&key).await.unwrap();
    clock.advance(2 * SECOND);
    let other = node();
    let made = other.0.tenants().create(&acme, Limits::default()).await;
    assert!(made.unwrap().created.unwrap() > opened.created);
    other.0.load().await.unwrap();
    assert_eq!(other.admits(&created).await, Err(NotAdmitted::Unknown));
    assert_eq!(rows().await, 2);
    // Closed, and that is the end of the session.
    store.rows.put_record(&key, record).await.unwrap();
    let late = node();
    let disabled = TenantChange {
        state: Some(State::Disabled),
        ..TenantChange::default()
    };
    late.0.tenants().patch(&acme, disabled).await.unwrap();
    late.0.load().await.unwrap();
    assert_eq!(late.admits(&created).await, Err(NotAdmitted::Unknown));
    late.turn().await;
    assert_eq!(rows().await, 1, "the proof");
}

#[tokio::test]
async fn what_is_deleted_elsewhere_while_it_is_made_here_is_over() {
    let pair = Pair::new().await;
    let held = pair.store.held.lock().await;
    let mut making = Box::pin(pair.a.create(one_secret()));
    assert!((&mut making).now_or_never().is_none());
    pair.b.turn().await;
    let rows = pair.store.rows.load().await.unwrap().rows;
    let (key, _) = rows
        .iter()
        .find(|(key, _)| key.tenant == tenant("acme"))
        .unwrap();
    pair.b
        .0
        .delete(&tenant("acme"), &key.session)
        .await
        .unwrap();
    pair.a.turn().await;
    drop(held);
    let made = making.await;
    assert!(made.handle.is_cut());
    assert_eq!(pair.a.admits(&made).await, Err(NotAdmitted::Unknown));
    assert!(pair.a.0.is_empty());
}

#[tokio::test]
async fn two_nodes_write_a_record_over_what_they_read_alone() {
    let clock = Clock::default();
    let store = TestFleet::new(&clock);
    let (a, b) = (
        Node::with_tenants(&store, &clock),
        Node::with_tenants(&store, &clock),
    );
    let key = RecordKey::new(RecordKind::Tenant, "acme");
    let (one, two) = (a.0.records(), b.0.records());
    let none = || async { two.read(&key).await.unwrap().1 };
    let seen = none().await;
    assert!(one.put_over(&key, b"1", none().await).await.unwrap());
    assert!(!two.put_over(&key, b"2", seen).await.unwrap());
    let (opened, seen) = two.read(&key).await.unwrap();
    assert_eq!(*opened.unwrap().unwrap(), b"1");
    assert!(two.put_over(&key, b"2", seen.clone()).await.unwrap());
    // The same content, sealed again, is another.
    assert!(!one.put_over(&key, b"1", seen).await.unwrap());
    let seen = none().await;
    assert!(one.delete(&key).await.unwrap());
    assert!(!two.put_over(&key, b"3", seen).await.unwrap());
    assert!(one.open(&key).await.unwrap().is_none());
}
