//! Absolute-form requests: plain HTTP through the proxy, without a tunnel (RFC 9112 §3.2.2).
//!
//! Each request brings its own credentials and its own target; the rest is the same exchange as in
//! a tunnel. `https://` in this form is refused: it would have to be read in clear on the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::context::Lane;
use super::exchange::{self, Absolute};
use super::own::{self, Visit};
use super::reject::{self, Refusal};
use super::{After, Proxy};
use crate::audit::{Kind, Record};
use crate::host::HostPort;
use crate::policy::Scheme;
use crate::serve::Peer;
use crate::session::Authenticated;
use crate::wire::{Connection, RequestHead};

impl Proxy {
    /// Serves one absolute-form request.
    pub(super) async fn serve_plain(
        &self,
        down: &mut Connection,
        head: RequestHead,
        peer: &Peer,
    ) -> After {
        let mut record = Record::begin(&self.audit, Kind::Exchange);
        record.peer(peer.address);
        record.request(head.method_text(), exchange::path_of(head.target_text()));
        let refusal = match self.admit_plain(&head, peer, &mut record).await {
            Err(refusal) => refusal,
            Ok((caller, target, origin)) => {
                let handle = caller.handle();
                let guard = handle.enter(&target);
                if let Some(server) = self.own_service(&target) {
                    record.discard();
                    let visit = Visit {
                        server,
                        handle,
                        target: &target,
                        scheme: Scheme::Http,
                        peer: peer.clone(),
                    };
                    let mut head = head;
                    head.replace_target(origin);
                    return tokio::select! {
                        biased;
                        () = guard.cut() => After::Gone,
                        after = Box::pin(own::exchange(self, &visit, down, head)) => after,
                    };
                }
                let facts = (peer.address, Arc::default());
                match Lane::open(self, handle, target.clone(), Scheme::Http, facts) {
                    Ok(mut lane) => {
                        // The exchange has a record of its own.
                        record.discard();
                        return tokio::select! {
                            biased;
                            () = guard.cut() => After::Gone,
                            after = exchange::run(&mut lane, down, head, Some(origin)) => after,
                        };
                    }
                    Err(denial) => {
                        handle.counters().denied.fetch_add(1, Ordering::Relaxed);
                        Refusal::denied(denial, &target.host.to_string())
                    }
                }
            }
        };
        record.status(refusal.status);
        record.decision(refusal.decision(), refusal.code);
        drop(record);
        self.refuse_plain(down, &head, &refusal, peer).await
    }

    async fn admit_plain(
        &self,
        head: &RequestHead,
        peer: &Peer,
        record: &mut Record,
    ) -> Result<(Authenticated, HostPort, bytes::Bytes), Refusal> {
        let caller = self.authenticate(head, peer, record).await?;
        let absolute = Absolute::parse(head.target_text()).ok_or_else(|| {
            let message = "the request target is neither a path nor http://host/";
            Refusal::client(400, "bad_target", message)
        })?;
        if absolute.scheme.eq_ignore_ascii_case("https") {
            let message = "https:// is reached by CONNECT, not by an absolute-form request";
            return Err(Refusal::client(400, "absolute_https", message));
        }
        if !absolute.scheme.eq_ignore_ascii_case("http") {
            let message = "only http:// can be asked for in absolute form";
            return Err(Refusal::client(400, "bad_scheme", message));
        }
        let target = HostPort::parse_or(absolute.authority, 80).map_err(|_why| {
            Refusal::client(
                400,
                "bad_target",
                "the authority of the target is malformed",
            )
        })?;
        record.target(&target);
        self.refuse_own(&target)?;
        Ok((caller, target, absolute.origin_form()))
    }

    async fn refuse_plain(
        &self,
        down: &mut Connection,
        head: &RequestHead,
        refusal: &Refusal,
        peer: &Peer,
    ) -> After {
        let may_stay = !refusal.closes && !self.is_stale(peer);
        let keep_alive = self.reusable(head) && refusal.status != 400 && may_stay;
        let sent = match head.method() {
            b"HEAD" => reject::send_bodyless(down, refusal, keep_alive).await,
            _ => reject::send(down, refusal, keep_alive).await,
        };
        match sent {
            Ok(()) if keep_alive => After::KeepAlive,
            Ok(()) => After::Close,
            Err(_gone) => After::Gone,
        }
    }
}
