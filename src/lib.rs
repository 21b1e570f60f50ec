//! Oshu Vault: a forward proxy that puts real secrets into requests.
//!
//! Sandboxed code holds sealed tokens; the proxy swaps them for the real values on the way out,
//! only towards the hosts each secret belongs to. The modules stand in rows, lowest first; a
//! module names only modules of lower rows, and `tests/architecture.rs` holds that.
#![warn(missing_docs)]

pub mod host;
pub mod id;
pub mod pace;
pub mod sealed_token;
pub mod secret;
pub mod shutdown;
pub mod telemetry;

pub mod wire;

pub mod authority;
pub mod policy;
pub mod seal;

pub mod client_env;
pub mod swap;

pub mod audit;
pub mod serve;
pub mod store;
pub mod upstream;

pub mod callout;
pub mod records;

pub mod identity;
pub mod tenant;

pub mod session;

pub mod payment;
pub mod proxy;

pub mod web;

pub mod api;
pub mod gateway;

pub mod config;

pub mod app;

pub mod cli;
