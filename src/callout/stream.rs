//! An answer that is passed on as it comes.
//!
//! Each piece is handed over when it arrives and nothing is kept. Who drops it before its end ends
//! the connection, so that the service stops too. How long a silence may last is the reader's
//! matter. Called through [`Opened`].

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::Error;
use super::call::Begun;
use crate::upstream::Lease;
use crate::wire::{Body, Fields, Framing, Progress};

/// An answer whose head has come.
#[derive(Debug)]
pub struct Opened {
    /// The status, 200 or above.
    pub status: u16,
    /// The fields of the head.
    pub fields: Fields,
    /// The body, to be read.
    pub body: Reading,
}

impl Opened {
    pub(super) fn new(begun: Begun) -> Self {
        let Begun {
            lease,
            head,
            framing,
            keeps,
        } = begun;
        let length = match framing {
            Framing::None => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        let reading = Reading {
            lease: Some(lease),
            body: Body::new(framing).without_framing(),
            length,
            keeps,
        };
        Self {
            status: head.status,
            fields: head.fields,
            body: reading,
        }
    }
}

/// The body of an answer, under way.
#[derive(Debug)]
pub struct Reading {
    /// Nothing after the end, or after a failure.
    lease: Option<Lease>,
    body: Body,
    length: Option<u64>,
    keeps: bool,
}

impl Reading {
    /// Returns how many bytes the whole body has, where its head says so.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Returns the next piece; nothing at the end.
    ///
    /// # Errors
    /// [`Error::Cut`] and [`Error::Malformed`]; nothing comes after one.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(Ok(None));
        };
        let polled = ready!(poll(lease, &mut self.body, cx));
        match &polled {
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Some(lease) = self.lease.take().filter(|_| self.keeps) {
                    lease.give_back();
                }
            }
            Err(_) => self.lease = None,
        }
        Poll::Ready(polled)
    }
}

fn poll(
    lease: &mut Lease,
    body: &mut Body,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Bytes>, Error>> {
    let connection = &mut lease.connection;
    let mut out = Vec::new();
    loop {
        let progress = body.step(&mut connection.input, &mut out);
        let progress = progress.map_err(Error::Malformed)?;
        if !out.is_empty() {
            return Poll::Ready(Ok(Some(out.into())));
        }
        match progress {
            Progress::Done => return Poll::Ready(Ok(None)),
            Progress::Full => {}
            Progress::Hungry => match ready!(connection.poll_read_answer(cx)) {
                Ok(0) => body.close().map_err(|_unfinished| Error::Cut)?,
                Ok(_) => {}
                // Also TLS that ends without saying so, which may have been cut by anybody.
                Err(_failed) => return Poll::Ready(Err(Error::Cut)),
            },
        }
    }
}
