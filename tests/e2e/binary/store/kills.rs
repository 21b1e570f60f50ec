//! kill -9 in the middle of creations and deletions: what was answered holds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use oshu_vault_sdk::{ListSessions, UpdateSession};
use rustix::process::Signal;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{Made, Place, create, kill};
use crate::binary::{Server, get};
use crate::support::within;

/// What workers were told before the kill.
#[derive(Default)]
struct Told {
    /// Created, and nobody asked to delete them.
    kept: Vec<Made>,
    /// A deletion was answered.
    deleted: Vec<Made>,
    /// A deletion was asked for and not answered: either is right.
    open: Vec<Made>,
}

/// Creates and deletes with several workers until the server is gone. It is killed when the given
/// number of answers has come, while the other workers wait for theirs.
async fn churn(place: &Place, server: Server, answers: usize) -> Told {
    let told = Arc::new(Mutex::new(Told::default()));
    let (count, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let mut workers = JoinSet::new();
    for worker in 0..4 {
        let client = place.client(&server);
        let (told, count, enough) = (Arc::clone(&told), Arc::clone(&count), Arc::clone(&enough));
        workers.spawn(async move {
            let answered = || {
                if count.fetch_add(1, Ordering::SeqCst) + 1 == answers {
                    enough.notify_one();
                }
            };
            for turn in worker.. {
                let Ok(made) = create(&client).await else {
                    return;
                };
                answered();
                if turn % 3 != 0 {
                    told.lock().unwrap().kept.push(made);
                    continue;
                }
                let deleted = client.delete_session(made.id()).await.is_ok();
                answered();
                let mut told = told.lock().unwrap();
                if deleted {
                    told.deleted.push(made);
                } else {
                    told.open.push(made);
                    return;
                }
            }
        });
    }
    within("answers", enough.notified()).await;
    kill(server).await;
    within("the workers", workers.join_all()).await;
    Arc::into_inner(told).unwrap().into_inner().unwrap()
}

async fn rounds(count: usize) {
    let place = Place::new().await;
    let mut server = place.serve().await;
    let ca = get(server.plain(), "/v1/ca.pem").await.text().to_owned();
    let mut gone: Vec<Made> = Vec::new();
    for round in 0..count {
        let told = churn(&place, server, 1 + round * 7 % 23).await;
        server = place.serve().await;
        assert_eq!(get(server.plain(), "/v1/ca.pem").await.text(), ca);
        let log = place.found(&server).await;
        assert!(!log.contains("is refused"), "no half rows: {log}");
        for made in &told.kept {
            place.works(&server, made).await;
        }
        for made in told.deleted.iter().chain(gone.iter().rev().take(5)) {
            place.is_gone(&server, made).await;
        }
        // The table starts small again.
        let client = place.client(&server);
        for made in told.kept.iter().chain(&told.open) {
            client.delete_session(made.id()).await.unwrap();
        }
        // What was created and never answered: nobody has its credential.
        let page = client.list_sessions(ListSessions::default()).await.unwrap();
        for session in page.sessions {
            client.delete_session(&session.session_id).await.unwrap();
        }
        gone.extend(told.kept);
        gone.extend(told.deleted);
        place.origin.forget();
    }
    server.stop().await;
}

#[tokio::test]
async fn what_was_answered_holds_after_a_kill() {
    rounds(10).await;
}

#[tokio::test]
#[ignore = "takes minutes: make soak"]
async fn what_was_answered_holds_after_two_hundred_kills() {
    rounds(200).await;
}

#[tokio::test]
async fn a_patch_and_an_orderly_end_are_kept_as_well() {
    let place = Place::new().await;
    let server = place.serve().await;
    let (mut kept, narrowed) = (place.create(&server).await, place.create(&server).await);
    let client = place.client(&server);
    "real-value-that-is-new-0123".clone_into(&mut kept.value);
    let rotate = UpdateSession::new().secret("EXAMPLE_KEY", kept.value.as_str());
    client.update_session(kept.id(), &rotate).await.unwrap();
    let narrow = UpdateSession::new().allowed_egress(["other.example.com"]);
    client.update_session(narrowed.id(), &narrow).await.unwrap();
    kill(server).await;
    let server = place.serve().await;
    place.works(&server, &kept).await;
    let workload = place.workload(&server, &narrowed).await;
    assert_eq!(workload.refused(super::TARGET).await.status, 403);
    let (code, _events, log) = server.end(Signal::TERM).await;
    assert_eq!(code, Some(0), "{log}");
    let server = place.serve().await;
    place.works(&server, &kept).await;
    server.stop().await;
}
