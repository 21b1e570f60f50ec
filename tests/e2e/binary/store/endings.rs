//! How soon the real program cuts what a session has open: within a second of its deletion, and of
//! its expiry. `make soak` measures; elsewhere it has to happen.

use std::time::{Duration, Instant};

use super::{Made, Place, TARGET, create_with};
use crate::binary::Server;
use crate::support::{Origin, within};

const SECOND: Duration = Duration::from_secs(1);
/// The shortest life that there is.
const LIFE: Duration = Duration::from_mins(1);
/// What the way of an end to this test may take besides.
const TO_BE_SEEN: Duration = Duration::from_millis(100);
const ROUNDS: usize = 20;

/// Opens one of everything, waits for what ends the session, and then for the end of all of it.
/// Returns when each of these was over.
async fn ends(
    place: &Place,
    server: &Server,
    made: &Made,
    ending: impl Future<Output = ()>,
) -> (Instant, Instant) {
    let workload = place.workload(server, made).await;
    let mut h2 = workload.h2(TARGET).await;
    let mut events = h2.begin("/stream").await;
    assert_eq!(events.head().await.expect("a head").status, 200);
    events.expect_piece("ok").await;
    let open = workload.open_all(TARGET).await;
    ending.await;
    let over = Instant::now();
    within("the end of all that is open", async {
        for mut conn in open {
            let _ended = conn.rest_and_end().await;
        }
        let _ended = h2.wait_closed().await;
    })
    .await;
    (over, Instant::now())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: make soak"]
async fn soak_a_deletion_and_an_expiry_cut_all_that_is_open_within_a_second() {
    let place = Place::with(Origin::patient().await);
    let server = place.serve().await;
    let client = place.client(&server);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let made = place.create(&server).await;
        let deleted = async {
            client.delete_session(made.id()).await.expect("a deletion");
        };
        let (deleted, ended) = ends(&place, &server, &made, deleted).await;
        times.push(ended - deleted);
    }
    times.sort();
    let worst = times[ROUNDS - 1];
    println!("deleted: median {:?}, worst {worst:?}", times[ROUNDS / 2]);
    assert!(worst < SECOND, "{times:?}");

    let lives = |request: oshu_vault_sdk::CreateSession| {
        let seconds = LIFE.as_secs();
        request.ttl_seconds(seconds).max_lifetime_seconds(seconds)
    };
    let before = Instant::now();
    let made = create_with(&client, lives).await.expect("a session");
    let after = Instant::now();
    // Nothing is sent from here on: what ends it is its time. Streams in progress do not save it.
    let expired = tokio::time::sleep_until((after + LIFE).into());
    let (_expired, ended) = ends(&place, &server, &made, expired).await;
    let (least, most) = (before + LIFE, after + LIFE + SECOND + TO_BE_SEEN);
    println!(
        "expired: cut {:?} after its time at most",
        ended.saturating_duration_since(least)
    );
    assert!(ended >= least, "not before its time");
    assert!(ended < most, "{:?} too late", ended - most);
    place.is_gone(&server, &made).await;
    server.stop().await;
}
