//! What must hold for every input: one function for each fuzz target.
//!
//! Each takes any bytes and panics where a property does not hold. They reach the program through
//! its public face alone. The targets beside this folder call them with what the fuzzer makes up;
//! `tests/corpora.rs` calls them with what is kept.

mod body;
mod config;
mod cut;
mod hosts;
mod outer;
mod scrub;
mod swap;
mod table;
mod wire;

pub use body::swap_body;
pub use config::config;
pub use hosts::host_port;
pub use outer::{detect, session_json};
pub use scrub::scrub;
pub use swap::{basic, sealed_token, target};
pub use wire::{chunks, head};

/// Takes any input, and panics where it breaks a property.
pub type Property = fn(&[u8]);

/// Every target: its name, which is that of its folder of inputs, and its property.
pub const ALL: [(&str, Property); 11] = [
    ("basic", basic),
    ("chunks", chunks),
    ("config", config),
    ("detect", detect),
    ("head", head),
    ("host_port", host_port),
    ("scrub", scrub),
    ("sealed_token", sealed_token),
    ("session_json", session_json),
    ("swap_body", swap_body),
    ("target", target),
];
