//! An origin that does what its test tells it to, step by step, while it records what comes.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use super::OriginConn;

/// What an origin does next.
#[derive(Debug)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Says that nothing more comes, and goes on recording.
    Close,
    /// Drops the connection.
    Abort,
}

/// The test's end: it gives orders.
#[derive(Clone)]
pub(crate) struct Steps(mpsc::UnboundedSender<Step>);

impl Steps {
    /// Gives an order.
    pub(crate) fn give(&self, step: Step) {
        self.0.send(step).expect("the origin listens");
    }

    /// Orders bytes to be sent.
    pub(crate) fn send(&self, bytes: impl Into<Vec<u8>>) {
        self.give(Step::Send(bytes.into()));
    }
}

/// The origin's end. The first connection that obeys gets all orders.
#[derive(Clone)]
pub(crate) struct Orders(Arc<Mutex<mpsc::UnboundedReceiver<Step>>>);

/// Makes both ends.
pub(crate) fn orders() -> (Steps, Orders) {
    let (steps, orders) = mpsc::unbounded_channel();
    (Steps(steps), Orders(Arc::new(Mutex::new(orders))))
}

impl Orders {
    /// Obeys, and records what comes meanwhile.
    pub(crate) async fn obey(&self, conn: &OriginConn) {
        let reading = conn.clone();
        tokio::spawn(async move { reading.wait_end().await });
        let mut orders = self.0.lock().await;
        while let Some(step) = orders.recv().await {
            match step {
                Step::Send(bytes) => conn.send(bytes).await,
                Step::Close => conn.close().await,
                Step::Abort => conn.abort().await,
            }
        }
    }
}
