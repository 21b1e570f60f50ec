//! The answer of an exchange over HTTP/1.1 whose request is not through when the answer begins.
//!
//! A workload that takes nothing of the answer is not asked about it, and the request has to go up
//! all the same: it may be what the workload waits for. A task of the exchange's own moves both and
//! is at most one piece ahead. It ends with the stream. Called by the crossing.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;

use super::crossing::{Crossing, Piece};
use crate::audit::Decision;
use crate::shutdown::Drain;

/// A piece, or nothing at the end; and whether nothing comes behind it.
type Fed = (Option<Piece>, bool);

/// The receiving end of an answer.
pub(super) struct Feed {
    pieces: mpsc::Receiver<Fed>,
    over: bool,
}

impl Feed {
    /// Starts the task. The drain waits for it.
    pub(super) fn start(crossing: Crossing, drain: &Drain) -> Self {
        let (give, pieces) = mpsc::channel(1);
        drain.spawn(run(crossing, give));
        Self {
            pieces,
            over: false,
        }
    }

    /// Tells whether nothing more comes.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.over {
            return Poll::Ready(None);
        }
        // A task that ended without a word did not see the end of the answer.
        let lost = (Some(Err((Decision::Failed, "upstream_cut"))), true);
        let (piece, over) = ready!(self.pieces.poll_recv(cx)).unwrap_or(lost);
        self.over = over;
        Poll::Ready(piece)
    }
}

async fn run(mut crossing: Crossing, give: mpsc::Sender<Fed>) {
    loop {
        let room = {
            let mut room = pin!(give.reserve());
            poll_fn(|cx| {
                crossing.poll_upload(cx);
                room.as_mut().poll(cx)
            })
            .await
        };
        let Ok(room) = room else {
            return;
        };
        let piece = tokio::select! {
            biased;
            () = give.closed() => return,
            piece = poll_fn(|cx| crossing.poll_piece(cx)) => piece,
        };
        let over = crossing.is_over() || !matches!(piece, Some(Ok(_)));
        room.send((piece, over));
        if over {
            return;
        }
    }
}
