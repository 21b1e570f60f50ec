//! The Rust SDK: has nothing to offer yet.
