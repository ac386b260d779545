//! The `cairn` program: reads the command line and turns its outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    cairn::cli::main()
}
