//! A file that passes to another process: one chain of both, nothing lost, and back where that fails.

use super::*;
use crate::audit::{Parcel, Parcels, Released};

const FAR: std::time::Duration = std::time::Duration::from_mins(1);

async fn released(sink: &Sink) -> Released {
    sink.release().await.expect("a file")
}

async fn next(parcels: &mut Parcels) -> Parcel {
    let parcel = tokio::time::timeout(FAR, parcels.next()).await;
    parcel.expect("in time").expect("a parcel")
}

/// Flushes on a thread of its own: what is flushed needs this one.
async fn flushed(sink: &Sink) {
    let sink = sink.clone();
    tokio::task::spawn_blocking(move || sink.flush())
        .await
        .unwrap();
}

fn paths(place: &Place) -> Vec<String> {
    let lines = place.lines().into_iter();
    let paths = lines.filter_map(|line| {
        let line: Value = serde_json::from_str(&line).unwrap();
        line["path"].as_str().map(str::to_owned)
    });
    paths.collect()
}

#[tokio::test]
async fn both_processes_write_one_chain() {
    let place = Place::new();
    let (before, after);
    before = place.open();
    emit(&before, 1);
    let file = released(&before).await;
    after = place.open();
    // What comes before it is known where lines go waits.
    emit(&before, 2);
    let mut parcels = file.send_away();
    let mut sent = 0;
    while sent < 2 {
        let parcel = next(&mut parcels).await;
        sent += parcel.lines().lines().count();
        assert!(after.relay(parcel.lines().to_owned()).await);
        parcel.arrived();
    }
    emit(&after, 3);
    let closing = before.clone();
    let closed = tokio::spawn(async move { closing.close_away().await });
    closed.await.unwrap();
    after.close();
    end(after);
    drop(parcels);
    end(before);
    let marks = [
        "begin new",
        "end handed_over",
        "begin started",
        "end stopped",
    ];
    assert_eq!(place.marks(), marks);
    assert_eq!(paths(&place), ["/0", "/0", "/1", "/0", "/1", "/2"]);
    let report = place.verify().unwrap();
    assert_eq!((report.closed, report.crashes, report.lost), (true, 0, 0));
}

#[tokio::test]
async fn a_parcel_that_did_not_arrive_is_written_here() {
    let place = Place::new();
    let before = place.open();
    let mut parcels = released(&before).await.send_away();
    place.crash(2);
    emit(&before, 3);
    let lost = next(&mut parcels).await;
    assert!(!lost.lines().is_empty());
    drop((lost, parcels));
    emit(&before, 1);
    flushed(&before).await;
    before.close();
    end(before);
    assert_eq!(paths(&place), ["/0", "/1", "/0", "/1", "/2", "/0"]);
    let report = place.verify().unwrap();
    assert_eq!((report.closed, report.crashes, report.lost), (true, 1, 0));
}

#[tokio::test]
async fn a_file_that_nobody_took_comes_back() {
    let place = Place::new();
    let sink = place.open();
    emit(&sink, 1);
    let file = released(&sink).await;
    emit(&sink, 2);
    drop(file);
    flushed(&sink).await;
    // Also where nobody waits for it any more.
    let asked = sink.release();
    drop(tokio::time::timeout(std::time::Duration::ZERO, asked).await);
    emit(&sink, 1);
    flushed(&sink).await;
    sink.close();
    end(sink);
    assert_eq!(paths(&place), ["/0", "/0", "/1", "/0"]);
    let report = place.verify().unwrap();
    assert_eq!((report.closed, report.crashes, report.lost), (true, 0, 0));
}

#[tokio::test]
async fn a_file_that_another_holds_yet_is_waited_for() {
    let place = Place::new();
    let before = place.open();
    let file = released(&before).await;
    let after = place.open();
    emit(&before, 1);
    drop(file.send_away());
    // It is told that it goes on, and it does when the lock is free.
    emit(&after, 1);
    end(after);
    flushed(&before).await;
    while paths(&place).len() < 2 {
        tokio::task::yield_now().await;
    }
    before.close();
    end(before);
    assert!(place.verify().unwrap().closed);
}

#[tokio::test]
async fn what_is_no_record_is_not_relayed_and_readers_hear_the_rest() {
    let place = Place::new();
    let sink = place.open();
    let session = crate::id::SessionId::generate();
    let tenant = crate::id::TenantId::new("acme");
    let mut reader = sink.subscribe(&tenant, &session).unwrap();
    let good = format!(
        "{{\"event\":\"session\",\"session\":\"{session}\",\"action\":\"deleted\",\
         \"decision\":\"allowed\"}}"
    );
    let bad = [
        "",
        "no JSON",
        "{\"event\":\"audit_end\",\"why\":\"stopped\"}",
        "{\"event\":\"audit_begin\"}",
    ];
    let lines = format!("{}\n{good}\n", bad.join("\n"));
    assert!(sink.relay(lines).await);
    let told = reader.next().await.expect("a record");
    assert_eq!(told, crate::audit::Told::Record(good.as_bytes().into()));
    assert!(reader.is_over(), "it was the last one");
    sink.close();
    end(sink);
    assert_eq!(place.lines().len(), 3);
    assert!(place.verify().unwrap().closed);
}

#[tokio::test]
async fn a_stream_lets_go_of_nothing() {
    let (sink, captured) = crate::audit::capture();
    assert!(sink.release().await.is_none());
    assert!(Sink::discard().release().await.is_none());
    assert!(sink.relay("{\"event\":\"exchange\"}\n".to_owned()).await);
    assert!(Sink::discard().relay(String::new()).await);
    emit(&sink, 1);
    assert_eq!(captured.lines().len(), 2);
}
