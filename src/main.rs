//! The program: hands its arguments to the command line and leaves with its exit code.
//!
//! It has an allocator of its own, which gives memory back to the system when a crowd has gone;
//! how soon is said in `.cargo/config.toml`.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    oshu_vault::cli::main(std::env::args_os())
}
