//! The command line: what was typed, and what it means.
//!
//! Exit codes: 0 done, 1 the tool or server answered with an error, 2 wrong usage; `log verify` has its own.
//! Errors go to standard error, one line, with what to do next.

mod serve;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Wrong usage.
const USAGE: u8 = 2;

#[derive(Parser)]
#[command(
    name = "cairn",
    version,
    about = "A recording gateway for MCP: every tool call is an event by CID."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print only errors.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serve MCP and the audit API over HTTP.
    Serve(Serve),
    /// Serve this node itself over standard input and output.
    Stdio(Stdio),
    /// Stand in front of a stdio MCP server: same tools, every call recorded.
    Wrap(Wrap),
}

/// Where the log is.
#[derive(Args, Clone)]
struct Data {
    /// The data directory.
    #[arg(
        long,
        default_value = "./cairn-data",
        env = "CAIRN_DATA",
        value_name = "DIR"
    )]
    data: PathBuf,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    data: Data,
    /// The address to listen on.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do not join a network of peers.
    #[arg(long)]
    no_p2p: bool,
    /// Offer the tools, resources and prompts that the MCP conformance suite names.
    #[arg(long)]
    conformance_fixtures: bool,
}

#[derive(Args)]
struct Stdio {
    #[command(flatten)]
    data: Data,
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Wrap {
    #[command(flatten)]
    data: Data,
    /// The name the wrapped server is recorded under; its program's name by default.
    #[arg(long)]
    name: Option<String>,
    /// The server's program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Reads the command line, does what it says, and tells the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            let usage = err.use_stderr();
            // Help goes to standard output, usage errors to standard error; nothing can be done if that fails.
            let _ = err.print();
            return if usage {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve::serve(args, cli.quiet),
        Command::Stdio(args) => serve::stdio(args),
        Command::Wrap(args) => serve::wrap(args),
    };
    match done {
        Ok(code) => code,
        Err(err) => {
            eprintln!("cairn: {err:#}");
            ExitCode::FAILURE
        }
    }
}
