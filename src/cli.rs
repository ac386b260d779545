//! The command line: what was typed, and what it means.
//!
//! Exit codes: 0 done, 1 the tool or server answered with an error, 2 wrong usage. A command that judges a log, an
//! archive, a backup, a receipt or a run ends with the code of its verdict.
//! Errors go to standard error, each on one line that says what to do next.

/// Prints a line on standard error; takes what `format!` takes.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::cli::out::say(format_args!($($part)*))
    };
}

mod moments;
mod naming;
mod table;
mod out;
mod remote;
mod place;
mod args;
mod logging;
mod guard;
mod progress;
mod source;
mod erase;
mod key;
mod manual;
mod door;
mod call;
mod serve;
mod config;
mod client;
mod status;
mod peers;
mod rebuild;
mod receipt;
mod replay;
mod token;
mod tools;
mod upstream;
mod doctor;
mod trace;
mod verify;
mod backup;
mod export;
mod log;
mod restore;
mod watch;
mod workflow;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};

use self::{call::Called, out::OutError, place::Reach, serve::runtime};
use crate::{caller::Scope, log::home::Home, runtime::upstream::warden, verify::Verdict, visible};

/// The exit code for wrong usage.
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
    /// Call one tool: its result on standard output, its event's CID on standard error.
    Call(Call),
    /// List the tools on offer.
    Tools(Tools),
    /// Read, verify, export and import a log.
    #[command(subcommand)]
    Log(args::LogCommand),
    /// Write events for other people's programs: the same as `log export`.
    Export(args::Export),
    /// Take an offline proof of one event, or check one.
    Receipt(args::Receipt),
    /// Show what produced something, and what came of it.
    Trace(args::Trace),
    /// Submit, follow, draw and stop runs of workflows.
    #[command(subcommand)]
    Workflow(args::WorkflowCommand),
    /// Find other nodes, connect to them, and keep their logs.
    #[command(subcommand)]
    Peers(args::PeersCommand),
    /// Decide a run again from the log, or run it again, and compare.
    ///
    /// Exit 0 when all is the same, 1 when something differs, 20 when nothing does and content was erased that a comparison
    /// needs.
    Replay(args::Replay),
    /// Compare two runs step by step; exit 0 when they are the same, 1 when not.
    Diff(args::Diff),
    /// Delete a payload's content; its name and every proof stay.
    Erase(args::Erase),
    /// Copy the data directory, also while a server writes it, and verify the copy.
    ///
    /// Exit 0 when the copy is verified; where the log does not verify, the code of `cairn log verify`; else 1.
    Backup(backup::Backup),
    /// Put a backup in the place of a log, and do again what was erased since.
    ///
    /// Exit 0 when it is restored; where the backup does not verify, the code of `cairn log verify`; else 1.
    Restore(restore::Restore),
    /// Derive the state again from the log, and compare.
    Rebuild(Rebuild),
    /// Show who signs a log, or put another key in its place.
    Key(Key),
    /// Make, list and revoke tokens of callers.
    Token(Token),
    /// Add, remove, list and restart upstream servers; log in to them, and out.
    #[command(subcommand)]
    Upstream(upstream::UpstreamCommand),
    /// Watch over the program of an upstream server, for a node.
    #[command(hide = true)]
    Warden(Warden),
    /// Say how a running node is: version, log, upstreams, peers, what waits.
    ///
    /// Exit 0 when it is ready, 1 when it is not, or does not run.
    Status(status::Status),
    /// Look at the directory, the disk, the log, the configuration and the upstreams, and say what to do.
    ///
    /// Exit 0 when nothing is wrong, else 1. Warnings change nothing.
    Doctor(doctor::Doctor),
    /// Write a configuration file, or check one.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages: one of the program and one of each command.
    Manual {
        /// The directory to write them to; it is made if there is none.
        dir: PathBuf,
    },
}

/// Where the log is.
#[derive(Args, Clone)]
struct Data {
    /// The data directory.
    #[arg(long, default_value = "./cairn-data", env = "CAIRN_DATA", value_name = "DIR")]
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
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG")]
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
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Wrap {
    #[command(flatten)]
    data: Data,
    /// The name the wrapped server is recorded under; its program's name by default.
    #[arg(long)]
    name: Option<String>,
    /// The configuration file (TOML): its lanes, limits, capture and tools count; its upstreams do not.
    #[arg(long, value_name = "FILE", env = "CAIRN_CONFIG")]
    config: Option<PathBuf>,
    /// The server's program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct Call {
    /// The tool's name.
    tool: String,
    /// Its arguments, a JSON object; `-` reads them from standard input.
    #[arg(value_name = "JSON")]
    arguments: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args)]
struct Tools {
    #[command(flatten)]
    reach: Reach,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
    /// Show CIDs in full.
    #[arg(long)]
    wide: bool,
}

#[derive(Args)]
struct Rebuild {
    #[command(flatten)]
    data: Data,
    /// Show digests in full.
    #[arg(long)]
    wide: bool,
    /// Sign the log as it stands, in the place of a head that is lost or does not fit. Only for a log you trust.
    #[arg(long)]
    sign: bool,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct Key {
    #[command(subcommand)]
    command: Option<KeyCommand>,
    #[command(flatten)]
    data: Data,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Sign heads with another key from now on; the log says so, signed by the key before. Stop the server first.
    Rotate(Rotate),
}

#[derive(Args)]
struct Rotate {
    #[command(flatten)]
    data: Data,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token and print it, this once.
    Add(TokenAdd),
    /// Show who has a token.
    List(TokenList),
    /// Take a token out of force.
    Revoke(TokenRevoke),
}

#[derive(Args)]
struct TokenAdd {
    /// Whose token it is: the actor of every event it asks for.
    name: String,
    /// What it allows: mcp:call, audit:read, admin, or a part of them such as tasks:submit or tools:github_*; may be
    /// repeated.
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = token::scope)]
    scopes: Vec<Scope>,
    /// How long it is good for, like 30d or 12h; for ever by default.
    #[arg(long, value_name = "PERIOD", value_parser = moments::period)]
    expires: Option<u64>,
    #[command(flatten)]
    data: Data,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct TokenList {
    #[command(flatten)]
    data: Data,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct TokenRevoke {
    /// The token's id, as `cairn token list` shows it.
    id: String,
    #[command(flatten)]
    data: Data,
    /// One JSON document for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Warden {
    /// The process id of the node.
    #[arg(long)]
    node: i32,
    /// The user that the program runs as.
    #[arg(long)]
    user: Option<String>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Runs a program as `runtime::upstream::warden` says.
fn warden(args: Warden) -> ExitCode {
    let mut arguments = args.program.into_iter();
    let program = arguments.next().unwrap_or_default();
    let watch = warden::Watch { node: args.node, user: args.user, program, arguments: arguments.collect() };
    match warden::run(watch) {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            let err = format!("{:#}", anyhow::Error::new(err));
            say!("cairn: the program of an upstream was not started: {}", visible::line(&err));
            ExitCode::from(warden::UNSTARTED)
        }
    }
}

/// Returns the data directory of an existing log.
fn existing(data: &Path) -> anyhow::Result<Home> {
    Home::existing(data)
        .with_context(|| format!("there is no log in {}; name its directory with --data", data.display()))
}

/// Does the same for commands that judge a log: if there is none, the verdict is "unreadable".
fn readable(data: &Path) -> anyhow::Result<Home> {
    existing(data).map_err(|err| judged(err, Some(Verdict::Unreadable)))
}

/// A log, an archive or a receipt did not pass. The verdict gives the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
struct Unsound {
    verdict: Verdict,
    said: String,
}

/// Adds the exit code of a verdict to an error, if there is a verdict.
fn judged(err: impl Into<anyhow::Error>, verdict: Option<Verdict>) -> anyhow::Error {
    let err = err.into();
    match verdict {
        Some(verdict) => Unsound { verdict, said: format!("{err:#}") }.into(),
        None => err,
    }
}

/// A command line that can be parsed but makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command line and returns the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            let usage = err.use_stderr();
            // Help goes to standard output, usage errors to standard error. If printing fails, nothing can be done.
            let _ = err.print();
            return if usage { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    run(cli).unwrap_or_else(|err| {
        if let Some(OutError::Closed) = err.downcast_ref() {
            return ExitCode::SUCCESS;
        }
        say!("cairn: {}", visible::line(&format!("{err:#}").replace('\n', " ")));
        match (err.downcast_ref::<Unsound>(), err.is::<Usage>()) {
            (Some(unsound), _) => ExitCode::from(unsound.verdict.exit_code()),
            (None, true) => ExitCode::from(USAGE),
            (None, false) => ExitCode::FAILURE,
        }
    })
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let quiet = cli.quiet;
    match cli.command {
        Command::Serve(args) => serve::serve(args, quiet),
        Command::Stdio(args) => serve::stdio(args),
        Command::Wrap(args) => serve::wrap(args),
        Command::Call(args) => call::run(args, quiet),
        Command::Tools(args) => tools::run(args),
        Command::Log(command) => log::run(command, quiet),
        Command::Export(args) => export::run(args, quiet),
        Command::Receipt(args) => receipt::run(args, quiet),
        Command::Trace(args) => trace::run(args, quiet),
        Command::Workflow(command) => workflow::run(command, quiet),
        Command::Peers(command) => peers::run(command),
        Command::Replay(args) => replay::replay(args),
        Command::Diff(args) => replay::diff(args),
        Command::Erase(args) => erase::run(args, quiet),
        Command::Backup(args) => backup::run(args, quiet),
        Command::Restore(args) => restore::run(args, quiet),
        Command::Rebuild(args) => rebuild::run(args, quiet),
        Command::Key(args) => key::run(args, quiet),
        Command::Token(args) => token::run(args, quiet),
        Command::Upstream(command) => upstream::run(command, quiet),
        Command::Warden(args) => Ok(warden(args)),
        Command::Status(args) => status::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(command) => config::run(command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cairn", &mut script);
            out::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Manual { dir } => manual::run(Cli::command(), &dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects the path of every command and argument without a help text.
    fn silent(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
        let mute = arguments.filter(|argument| argument.get_help().is_none());
        found.extend(mute.map(|argument| format!("{path} {}", argument.get_id())));
        for inner in command.get_subcommands() {
            let path = format!("{path} {}", inner.get_name());
            if inner.get_about().is_none() {
                found.push(path.clone());
            }
            silent(inner, &path, found);
        }
    }

    #[test]
    fn every_command_and_argument_says_what_it_is_for() {
        let mut found = Vec::new();
        silent(&Cli::command(), "cairn", &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
}
