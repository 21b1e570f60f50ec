//! Real clients, each over both listeners, with the variables that `run` sets and no others.
//!
//! What they are and what is expected stands in `rows`; the modules here say how each is called.
//! `docs/clients.md` is written by these runs and held to them.

mod agents;
mod compiled;
mod edges;
mod git;
mod javascript;
mod model_apis;
mod programs;
mod python;
mod registries;
mod row;
mod rows;
mod stage;
mod table;
mod tap;
mod websockets;
