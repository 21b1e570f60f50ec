//! Stripe's deliveries beside those of anybody else: who sends nothing, or little, or all of what one
//! address may have, keeps no other out.

use std::net::Ipv4Addr;

use crate::support::{Conn, dial_from};

use super::payment::{WHSEC, checkout, now, sign, with_stripe};
use super::{ACCOUNT, Stage, jwt};

/// A field that anybody can write.
fn unsigned() -> String {
    format!("t={},v1={}", now(), "0".repeat(64))
}

/// Announces a delivery from an address; its body is waited for when this returns.
async fn announce(stage: &Stage, from: Ipv4Addr, field: &str, bytes: usize) -> Conn {
    let mut conn = dial_from(from, stage.address()).await;
    conn.send(format!(
        "POST /api/webhooks/stripe HTTP/1.1\r\nHost: v\r\nStripe-Signature: \
         {field}\r\nContent-Length: {bytes}\r\nExpect: 100-continue\r\n\r\n"
    ))
    .await;
    assert_eq!(conn.answer_head().await.status, 100);
    conn
}

/// Delivers that the account has paid, in so many bytes.
async fn pay(stage: &Stage, from: Ipv4Addr, bytes: usize) -> u16 {
    let event = checkout("evt_1", now()).to_string();
    let body = format!("{event}{}", " ".repeat(bytes - event.len()));
    let field = sign(WHSEC, now(), &body);
    let mut conn = announce(stage, from, &field, body.len()).await;
    conn.send(body).await;
    conn.answer().await.status
}

const ANYBODY: Ipv4Addr = Ipv4Addr::LOCALHOST;
const STRIPE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[tokio::test]
async fn slow_bodies_that_nobody_signed_keep_no_delivery_out() {
    for from in [ANYBODY, STRIPE] {
        let stage = with_stripe().await;
        let mut slow = Vec::new();
        for first in ["", "{"].repeat(50) {
            let mut conn = announce(&stage, ANYBODY, &unsigned(), 256 * 1024).await;
            conn.send(first).await;
            slow.push(conn);
        }
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 402);
        assert_eq!(pay(&stage, from, 64 * 1024).await, 200, "{from}");
        assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200, "{from}");
        // What does not move ends, and was no delivery.
        for mut conn in slow {
            assert_eq!(conn.answer().await.status, 408);
        }
    }
}

#[tokio::test]
async fn what_one_address_may_have_under_way_is_its_own() {
    const ALMOST: usize = 256 * 1024 - 1;
    let stage = with_stripe().await;
    let mut long = Vec::new();
    for _ in 0..8 {
        let mut conn = announce(&stage, ANYBODY, &unsigned(), 256 * 1024).await;
        conn.send(" ".repeat(ALMOST)).await;
        long.push(conn);
    }
    assert_eq!(pay(&stage, STRIPE, ALMOST).await, 200);
    assert_eq!(stage.message(&jwt(ACCOUNT)).await.status, 200);
    for mut conn in long {
        // Half of them found no room in time, or did when the others ended.
        let status = conn.answer().await.status;
        assert!(matches!(status, 408 | 429), "{status}");
    }
}
