//! HTTP/1.1 from the workload, one exchange after the other on one connection.
//!
//! The relay reads heads and counts idle time; `exchange` does the rest. Heads and bodies travel in
//! this one task, so that the end of either side is seen by the exchange that it concerns.

use super::context::Lane;
use super::reject::Refusal;
use super::{After, exchange, reject};
use crate::audit::Record;
use crate::wire::{Connection, ReadError, parse_request_within};

/// Serves a connection to its end.
pub(super) async fn run(mut lane: Lane<'_>, down: Connection) {
    let config = lane.proxy.config;
    let mut down = down.with_head_limit(config.head.bytes);
    let drain = lane.proxy.drain.clone();
    let mut draining = std::pin::pin!(drain.draining());
    let mut wait = config.first_byte_timeout;
    loop {
        let block = tokio::select! {
            biased;
            block = down.read_head(wait, config.head_timeout) => block,
            () = &mut draining => return down.close(config.linger_timeout).await,
        };
        let after = match block.map(|block| parse_request_within(block, &config.head)) {
            Ok(Ok(head)) => exchange::run(&mut lane, &mut down, head, None).await,
            Ok(Err(error)) | Err(ReadError::Malformed(error)) => {
                refuse(lane.record(), &mut down, &error.into()).await
            }
            Err(ReadError::Late) => refuse(lane.record(), &mut down, &Refusal::late()).await,
            Err(ReadError::Idle) => return down.close(config.linger_timeout).await,
            Err(_gone) => return,
        };
        match after {
            After::KeepAlive => {}
            After::Close => return down.linger(config.linger_timeout).await,
            After::Gone => return,
        }
        wait = config.idle_timeout;
    }
}

/// Answers a head that could not be read. There is no telling where the next one starts.
async fn refuse(mut record: Record, down: &mut Connection, refusal: &Refusal) -> After {
    record.status(refusal.status);
    record.decision(refusal.decision(), refusal.code);
    match reject::send(down, refusal, false).await {
        Ok(()) => After::Close,
        Err(_gone) => After::Gone,
    }
}
