//! The program: hands its arguments to the command line and leaves with its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    oshu_vault::cli::main(std::env::args_os())
}
