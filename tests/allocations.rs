//! The swap's promise about memory: without a token it asks for none.
//!
//! A counting allocator stands under the whole test binary, so everything is in one test; the
//! harness may allocate beside it, which the smallest count of many runs leaves out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::System;
use std::sync::Arc;

use bytes::Bytes;
use oshu_vault::sealed_token::{MARKER, Place, TokenId};
use oshu_vault::secret::Secret;
use oshu_vault::swap::{Lookup, Opening, Swapper};
use oshu_vault::wire::{RequestHead, parse_request};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TOKEN: &str = "SEALED_0123456789abcdef0123456789abcdef";
const RUNS: usize = 50;

struct One {
    id: TokenId,
    secret: Secret,
    name: Arc<str>,
}

impl Lookup for One {
    fn open<'a>(&'a self, id: TokenId, _: &[u8], place: Place<'_>) -> Option<Opening<'a>> {
        let here = id == self.id && matches!(place, Place::Header(_));
        here.then_some(Opening {
            prefix_length: 0,
            secret: &self.secret,
            name: &self.name,
        })
    }
}

/// Twelve fields of a usual call, with one value to choose.
fn head(authorization: &str) -> RequestHead {
    let text = format!(
        "POST /v1/messages?beta=true HTTP/1.1\r\nHost: api.example.org\r\n\
         User-Agent: sdk/1.2.3 (linux; x64) runtime/22\r\nAccept: application/json\r\n\
         Accept-Encoding: gzip, deflate, br\r\nAccept-Language: *\r\n\
         Content-Type: application/json\r\nContent-Length: 1024\r\nX-Retry-Count: 0\r\n\
         X-Timeout: 600\r\nX-Request-Id: 5f0c8d3e\r\nCookie: a=b\r\n\
         Authorization: {authorization}\r\n\r\n"
    );
    let head = parse_request(Bytes::from(text)).unwrap();
    assert_eq!(head.fields.len(), 12);
    head
}

/// Returns the number of allocations and of swapped tokens of one request.
fn measure(swapper: &Swapper, authorization: &str, lookup: &One) -> (usize, u32) {
    let head = head(authorization);
    let run = || {
        let mut head = head.clone();
        let region = Region::new(GLOBAL);
        let swapped = swapper.swap_request(&mut head, lookup).unwrap();
        let change = region.change();
        (change.allocations + change.reallocations, swapped.count)
    };
    (0..RUNS).map(|_| run()).min().unwrap()
}

#[test]
fn a_request_pays_only_for_what_is_swapped() {
    let token = TOKEN.as_bytes().get(MARKER.len()..).unwrap();
    let lookup = One {
        id: TokenId::read(token).unwrap(),
        secret: Secret::new(b"a-real-value-of-some-length".to_vec()),
        name: "NAME".into(),
    };
    let swapper = Swapper::new();
    let other = TOKEN.replace('0', "9");
    for (authorization, allocations, count) in [
        ("Bearer of-no-token-at-all", 0, 0),
        // A token of another session is looked up and left.
        (other.as_str(), 0, 0),
        // New are the list of names and the note of what stands in the field's place, which keeps
        // all other fields small. The value itself is shared.
        (TOKEN, 2, 1),
    ] {
        let measured = measure(&swapper, authorization, &lookup);
        assert_eq!(measured, (allocations, count), "{authorization}");
    }
    let (allocations, count) = measure(&swapper, &format!("Bearer {TOKEN}"), &lookup);
    assert_eq!(count, 1);
    assert!(
        (3..=5).contains(&allocations),
        "the counter counts: {allocations}"
    );
}
