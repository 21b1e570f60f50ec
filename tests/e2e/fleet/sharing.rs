//! What one node does holds on the other: creation, deletion and patches, with and without the
//! announcement.

use oshu_vault_sdk::{Error, ListSessions, UpdateSession};

use super::{Fleet, GOOD, NAME, TARGET, get_with, request};
use crate::support::{Origin, REAL, contains, soon, within};

/// A value that takes the place of the first.
const OTHER: &str = "other-value/0123456789+abcdef";

#[tokio::test]
async fn a_session_made_on_one_node_works_at_once_on_the_other() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    for is_silent in [false, true] {
        if is_silent {
            fleet.b.relay.silence();
        }
        for _ in 0..10 {
            let session = fleet.create().await;
            // Not waited for: the other node looks for what it was not told of.
            fleet.works(&fleet.b, &session).await;
            fleet.works(&fleet.a, &session).await;
        }
        let session = fleet.create().await;
        let shown = fleet.b.vault.sdk().get_session(&session.session_id).await;
        assert_eq!(shown.unwrap().session_id, session.session_id);
        let patch = UpdateSession::new().metadata("a", "b");
        let session = fleet.create().await;
        let patched = fleet
            .b
            .vault
            .sdk()
            .update_session(&session.session_id, &patch)
            .await;
        assert_eq!(patched.unwrap().metadata["a"], "b");
        let session = fleet.create().await;
        fleet
            .b
            .vault
            .sdk()
            .delete_session(&session.session_id)
            .await
            .unwrap();
        fleet.a.becomes(&session, 407).await;
    }
}

#[tokio::test]
async fn case_62_a_deletion_on_one_node_cuts_what_is_open_on_the_other() {
    let Some(fleet) = Fleet::around(Origin::patient().await, |vault| vault).await else {
        return;
    };
    for is_silent in [false, true] {
        if is_silent {
            fleet.b.relay.silence();
        }
        let (session, other) = (fleet.create().await, fleet.create().await);
        fleet.works(&fleet.b, &other).await;
        let workload = fleet.b.vault.workload(&session);
        let mut open = workload.open_all(TARGET).await;
        fleet.good.forget();
        fleet
            .a
            .vault
            .sdk()
            .delete_session(&session.session_id)
            .await
            .unwrap();
        assert_eq!(
            fleet.a.status(&session).await,
            407,
            "at once where it was deleted"
        );
        soon("the end of what was open", async {
            for conn in &mut open {
                let _ended = conn.rest_and_end().await;
            }
            // Whoever comes again is told that there is nothing.
            fleet.b.becomes(&session, 407).await;
        })
        .await;
        let shown = fleet.b.vault.sdk().get_session(&session.session_id).await;
        assert!(matches!(shown, Err(Error::NotFound(_))), "{shown:?}");
        fleet.works(&fleet.b, &other).await;
    }
}

#[tokio::test]
async fn a_patch_on_one_node_applies_to_open_tunnels_of_the_other() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    for is_silent in [false, true] {
        if is_silent {
            fleet.b.relay.silence();
        }
        let session = fleet.create().await;
        let workload = fleet.b.vault.workload(&session);
        let mut kept = workload.connect(TARGET).await;
        let mut lost = workload.connect("side.example.com:443").await;
        let rotated = UpdateSession::new()
            .secret(NAME, OTHER)
            .allowed_egress([GOOD]);
        let patched = fleet
            .a
            .vault
            .sdk()
            .update_session(&session.session_id, &rotated)
            .await;
        patched.unwrap();
        // What the policy no longer allows is cut.
        let _ended = soon("the end of the tunnel", lost.rest_and_end()).await;
        // What it allows goes on, with the new value, under the old token.
        within("the new value", async {
            loop {
                fleet.good.forget();
                kept.send(get_with(&session)).await;
                assert_eq!(kept.answer().await.status, 200);
                if contains(&fleet.good.bytes(), OTHER) {
                    return;
                }
                assert!(contains(&fleet.good.bytes(), REAL));
            }
        })
        .await;
        let shown = fleet.b.vault.sdk().get_session(&session.session_id).await;
        assert_eq!(shown.unwrap().allowed_egress, Some(vec![GOOD.to_owned()]));
    }
}

#[tokio::test]
async fn patches_of_two_nodes_at_once_lose_none_that_was_accepted() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let session = fleet.create().await;
    let patch = async |node: &super::Node, side: &str| {
        let mut refused = 0;
        for number in 0..20 {
            let name = format!("{side}{number}");
            let patch = UpdateSession::new().metadata(&name, "there");
            loop {
                match node
                    .vault
                    .sdk()
                    .update_session(&session.session_id, &patch)
                    .await
                {
                    Ok(_) => break,
                    // The other node was faster: nothing was changed.
                    Err(Error::Conflict(_)) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        refused
    };
    let refused = within("all patches", async {
        tokio::join!(patch(&fleet.a, "a"), patch(&fleet.b, "b"))
    })
    .await;
    println!("patches refused for the sake of the other node: {refused:?}");
    for node in [&fleet.a, &fleet.b] {
        within("all that was accepted", async {
            loop {
                let shown = node
                    .vault
                    .sdk()
                    .get_session(&session.session_id)
                    .await
                    .unwrap();
                if shown.metadata.len() == 40 {
                    let names = (0..20).flat_map(|n| [format!("a{n}"), format!("b{n}")]);
                    assert!(
                        names
                            .into_iter()
                            .all(|name| shown.metadata.contains_key(&name))
                    );
                    return;
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn case_82_two_nodes_mint_from_the_same_ca() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    assert_eq!(fleet.a.vault.ca_pem(), fleet.b.vault.ca_pem());
    let session = fleet.a.vault.session(&request()).await;
    // The workload trusts what the node shows that it asks; here they are the same.
    fleet.works(&fleet.a, &session).await;
    fleet.works(&fleet.b, &session).await;
}

#[tokio::test]
async fn lists_of_two_nodes_become_the_same() {
    let Some(fleet) = Fleet::new().await else {
        return;
    };
    let mut made = Vec::new();
    for node in [&fleet.a, &fleet.b, &fleet.a, &fleet.b] {
        made.push(node.vault.session(&request()).await.session_id);
    }
    made.sort();
    for node in [&fleet.a, &fleet.b] {
        within("all sessions", async {
            loop {
                let page = node
                    .vault
                    .sdk()
                    .list_sessions(ListSessions::default())
                    .await
                    .unwrap();
                let ids: Vec<String> = page
                    .sessions
                    .into_iter()
                    .map(|own| own.session_id)
                    .collect();
                if ids == made {
                    return;
                }
            }
        })
        .await;
    }
}
