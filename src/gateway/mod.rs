//! The Claude Gateway: model calls of sandboxes, paid for by their accounts.
//!
//! So far it reads what an answer used: [`UsageReader`]. It must never change a byte of what passes,
//! and keeps nothing of it but numbers and the model's name.

mod usage;

pub use usage::{Counted, UsageReader};
