//! Where reservations end: in the books of this process, or in those of the one that has them by now.
//!
//! While the service passes to another process nothing is reserved, and what ends waits; then it is
//! entered here, or told to the other process, whose books have what was reserved as never settled.
//! What is told says no more than what was reserved durably, so that nothing of anybody else's is
//! given back over there. Called by the ledger's face.

use std::fmt;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::page::{Page, lock};
use crate::id::AccountId;
use crate::payment::book::{Book, Month, Tokens};

/// Tells another process how a reservation ended.
type Tell = Box<dyn Fn(String) + Send + Sync>;

/// Who has the books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// This process.
    #[default]
    Here,
    /// It is not known yet.
    Leaving,
    /// Another process.
    Away,
}

/// How a reservation ended, for whichever process has its book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settled {
    pub(super) account: String,
    pub(super) month: String,
    pub(super) sandbox: String,
    pub(super) model: String,
    /// What stands in the book for it.
    pub(super) reserved: u64,
    /// What was used, of the model that answered.
    pub(super) used: Option<(String, Tokens)>,
    /// What may have been used, where nobody knows.
    pub(super) unsettled: u64,
}

impl Settled {
    /// Returns whose book it is about, and of when.
    pub(super) fn book(&self) -> Option<(AccountId, Month)> {
        AccountId::parse(&self.account).zip(Month::parse(&self.month))
    }

    /// Tells whether it changes anything.
    fn says(&self) -> bool {
        self.reserved > 0 || self.unsettled > 0 || self.used.is_some()
    }

    /// Enters it where this process reserved it, or into a book that was read since.
    fn enter(&self, book: &mut Book, is_own: bool) {
        let at = (self.sandbox.clone(), self.model.clone());
        if is_own {
            book.release(&at, self.reserved);
        } else {
            book.release_unsettled(&at, self.reserved);
        }
        if let Some((model, tokens)) = &self.used {
            book.add(&self.sandbox, model, tokens);
        }
        if self.unsettled > 0 {
            book.add_unsettled(&at, self.unsettled);
        }
    }
}

/// What has ended and is entered nowhere yet.
enum Note {
    /// It was reserved here, in this page.
    Own(Arc<Page>, Settled),
    /// It was reserved in a process before this one.
    Other(Settled),
    /// It was to be reserved here, in this page; whether it is durable nobody knows.
    Unsure(Arc<Page>, Settled),
}

#[derive(Default)]
struct Kept {
    stage: Stage,
    notes: Vec<Note>,
    tell: Option<Tell>,
}

/// Where reservations end.
#[derive(Default)]
pub(super) struct Desk {
    kept: Mutex<Kept>,
    moved: watch::Sender<()>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = lock(&self.kept);
        f.debug_struct("Desk")
            .field("stage", &kept.stage)
            .field("notes", &kept.notes.len())
            .finish_non_exhaustive()
    }
}

impl Desk {
    /// Does something with a book, unless the books are elsewhere, or may be.
    pub(super) fn if_here<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let kept = lock(&self.kept);
        (kept.stage == Stage::Here).then(act)
    }

    /// Waits until it is known who has the books; tells whether it is this process.
    pub(super) async fn is_here(&self) -> bool {
        let mut moved = self.moved.subscribe();
        loop {
            match lock(&self.kept).stage {
                Stage::Here => return true,
                Stage::Away => return false,
                Stage::Leaving => {}
            }
            if moved.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Ends a reservation of this process.
    pub(super) fn end(&self, page: &Arc<Page>, settled: Settled) {
        self.take(Note::Own(Arc::clone(page), settled));
    }

    /// Gives back what was to be reserved in this process. No other is told: it may not have it.
    pub(super) fn give_back(&self, page: &Arc<Page>, settled: Settled) {
        self.take(Note::Unsure(Arc::clone(page), settled));
    }

    /// Ends a reservation of a process before this one, whose book was read if it is here; gives it
    /// back where that has to be done before.
    pub(super) fn end_other(&self, page: Option<&Arc<Page>>, settled: Settled) -> Option<Settled> {
        let mut kept = lock(&self.kept);
        match (kept.stage, page) {
            (Stage::Here, None) => return Some(settled),
            (Stage::Here, Some(page)) => enter(page, &settled, false),
            (Stage::Away | Stage::Leaving, _) => kept.note(Note::Other(settled)),
        }
        None
    }

    fn take(&self, note: Note) {
        let mut kept = lock(&self.kept);
        match (kept.stage, note) {
            (Stage::Here, Note::Own(page, settled) | Note::Unsure(page, settled)) => {
                enter(&page, &settled, true);
            }
            (_, note) => kept.note(note),
        }
    }

    /// Lets nothing be entered from here on, until it is known who has the books.
    pub(super) fn leave(&self) {
        lock(&self.kept).stage = Stage::Leaving;
    }

    /// Goes on with the books, which nobody took. Returns what has to be entered after its book was
    /// read.
    pub(super) fn stay(&self) -> Vec<Settled> {
        let mut others = Vec::new();
        {
            let mut kept = lock(&self.kept);
            kept.stage = Stage::Here;
            for note in std::mem::take(&mut kept.notes) {
                match note {
                    Note::Own(page, settled) | Note::Unsure(page, settled) => {
                        enter(&page, &settled, true);
                    }
                    Note::Other(settled) => others.push(settled),
                }
            }
        }
        self.moved.send_replace(());
        others
    }

    /// Tells another process, which has the books, of everything that ends from here on.
    pub(super) fn go(&self, tell: Tell) {
        {
            let mut kept = lock(&self.kept);
            kept.stage = Stage::Away;
            kept.tell = Some(tell);
            for note in std::mem::take(&mut kept.notes) {
                kept.note(note);
            }
        }
        self.moved.send_replace(());
    }
}

impl Kept {
    /// Tells of what ended, or keeps it until it is known to whom.
    fn note(&mut self, note: Note) {
        match (&self.tell, &note) {
            (Some(tell), Note::Own(_, settled) | Note::Other(settled)) => {
                let text = settled.says().then(|| serde_json::to_string(settled));
                if let Some(Ok(text)) = text {
                    tell(text);
                }
            }
            (Some(_), Note::Unsure(..)) => {}
            (None, _) => self.notes.push(note),
        }
    }
}

/// Enters what ended, to be written soon.
fn enter(page: &Arc<Page>, settled: &Settled, is_own: bool) {
    {
        let mut state = page.state();
        settled.enter(&mut state.book, is_own);
        state.changed();
    }
    page.enqueue();
}
