//! The end-to-end suite: the whole service in one process, driven over real sockets.
//!
//! One module per capability. The origins stand on loopback with certificates made at run time,
//! and what counts is the raw bytes that they received. No test names a fixed port or
//! leaves the machine, none sleeps but to outlast a limit that must not end anything, and every wait
//! has a deadline that only a failing test reaches.
#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test that fails should say so and stop, and its clients dial for themselves"
)]

mod support;

mod addresses;
mod answers;
mod audit;
mod authority;
mod binary;
mod bodies;
mod bounds;
mod capture;
mod claude;
mod clients;
mod connect;
mod connections;
mod curl;
mod demo;
mod endings;
mod events;
mod exhaustion;
mod fleet;
mod framing;
mod gateway;
mod grpc;
mod h2;
mod h2_rules;
mod identity;
mod image;
mod intercept;
mod leak;
mod limits;
mod metrics;
mod passthrough;
mod plain;
mod probe;
mod quotas;
mod reflection;
mod relay;
mod rotation;
mod run;
mod scale;
mod scrub;
mod sessions;
mod shutdown;
mod smoke;
mod swap_basic;
mod swap_body;
mod swap_headers;
mod swap_target;
mod tenants;
mod throttle;
mod upgrade;
mod upstream_proxy;
mod upstream_tls;
mod vault_api;
