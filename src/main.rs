//! The `cairn` program: reads the command line and turns its outcome into an exit code.
//! Everything else is in the library, so that tests and benchmarks use what the program uses.

use std::process::ExitCode;

fn main() -> ExitCode {
    cairn::cli::main()
}
