//! The arguments of the commands that read a log, and of those that follow a run.
//!
//! Invariant: what is parsed here has its type: no command reads a CID, a key, a moment or a format from text again.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::{
    archive::export::Format,
    cli::{
        Data,
        moments::moment,
        naming::Name,
        place::{LogSource, Reach},
    },
    identity::Verifier,
    query::{
        peers::Sort,
        walk::{DEPTH_DEFAULT, DEPTH_MAX, Direction},
    },
    words::number,
};

#[derive(Args, Clone, Copy)]
pub struct Shown {
    /// JSON for programs: one document, or one line an event.
    #[arg(long)]
    pub json: bool,
    /// Show CIDs in full.
    #[arg(long)]
    pub wide: bool,
}

#[derive(Subcommand)]
pub enum LogCommand {
    /// Show one event or block.
    Show {
        /// The event, or a payload, a contract, a plan or any other block: its CID, 8 or more characters of the CID's beginning
        /// or end, or an event's seq.
        cid: Name,
        /// Show the content of payloads too.
        #[arg(long)]
        payloads: bool,
        #[command(flatten)]
        place: LogSource,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show the last events.
    Tail {
        /// How many.
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: u64,
        /// Go on with those that come.
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        place: LogSource,
        #[command(flatten)]
        shown: Shown,
    },
    /// Find events.
    Query {
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        place: LogSource,
        #[command(flatten)]
        shown: Shown,
    },
    /// Check every event, block, link, root and signed head.
    ///
    /// Exit 0 verified, 20 incomplete, 30 forked, 40 invalid, 50 unreadable.
    Verify(Verify),
    /// Write events for other people's programs.
    Export(Export),
    /// Take in what `log export` wrote: a whole log, or a run to replay.
    ///
    /// A whole log becomes a data directory, which must hold none yet; a run is kept in `archives` of a data directory, beside
    /// the log that is there, for `cairn replay`. Everything is checked first, and nothing is left of what is refused. Exit 0
    /// when it was taken in; of a refused archive 20 when something is missing, 40 when bytes are not what they must be, 50
    /// when it is no archive; else 1.
    Import {
        /// The archive: a CAR.
        file: PathBuf,
        #[command(flatten)]
        data: Data,
        /// Say what was imported as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Which events: those that fit all that is given.
#[derive(Args)]
pub struct Wanted {
    /// The kind, like call.succeeded.
    #[arg(long)]
    pub kind: Option<String>,
    /// The entity, like call/<id>.
    #[arg(long)]
    pub subject: Option<String>,
    /// The actor's id.
    #[arg(long)]
    pub actor: Option<String>,
    /// A tool's name: every contract it had.
    #[arg(long)]
    pub tool: Option<String>,
    /// One contract.
    #[arg(long, value_name = "CID")]
    pub contract: Option<Name>,
    /// A payload that the events hold.
    #[arg(long, value_name = "CID")]
    pub payload: Option<Name>,
    /// Later than this moment: RFC 3339, a date (UTC), or how long ago it was, like 30m, 1h or 2d.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub after: Option<u64>,
    /// Earlier than this moment.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub before: Option<u64>,
    /// From this event of the log on.
    #[arg(long, value_name = "SEQ", value_parser = number::parse)]
    pub from_seq: Option<u64>,
    /// The most events to show.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=number::MAX))]
    pub limit: u64,
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    pub data: Data,
    /// A signed head kept elsewhere, which the log must contain.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// The verifier key that the log must have, as `cairn key` shows it; by default the log says itself which it has.
    #[arg(long, value_name = "VKEY", value_parser = vkey)]
    pub key: Option<Verifier>,
    /// Derive the state again too, and compare every table.
    #[arg(long)]
    pub state: bool,
    /// Leave payloads out: neither hash them nor look whether they are there.
    #[arg(long)]
    pub no_payloads: bool,
    /// The report as one JSON document.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct Export {
    /// car, jsonl or prov-json.
    #[arg(long, default_value = "car", value_parser = format)]
    pub format: Format,
    /// Only what is about this entity; of workflow/ID, all that a replay needs.
    #[arg(long, conflicts_with = "cid")]
    pub subject: Option<String>,
    /// Only this event and what led to it, or those that hold this payload.
    #[arg(long)]
    pub cid: Option<Name>,
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub place: LogSource,
}

/// `cairn receipt CID`, or `cairn receipt verify FILE`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Receipt {
    #[command(subcommand)]
    pub command: Option<ReceiptCommand>,
    /// The event: its CID, a part of that, or its seq.
    #[arg(required = true)]
    pub cid: Option<Name>,
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    #[command(flatten)]
    pub place: LogSource,
}

#[derive(Subcommand)]
pub enum ReceiptCommand {
    /// Check a receipt, without any log at hand.
    ///
    /// Exit 0 when it proves its event, 40 when it does not, 50 when it is no receipt.
    Verify {
        /// What `cairn receipt CID` wrote.
        file: PathBuf,
        /// The verifier key of the log it is of, as `cairn key` shows it.
        #[arg(long, value_name = "VKEY", value_parser = vkey)]
        key: Verifier,
        /// One JSON document for programs.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub struct Trace {
    /// An event, a payload or a contract: its CID, a part of that, or an event's seq.
    pub cid: Name,
    /// How it is drawn.
    #[arg(long, value_enum, default_value_t = Drawn::Text)]
    pub format: Drawn,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// ancestors, descendants or both.
    #[arg(long, default_value = "ancestors", value_parser = direction)]
    pub direction: Direction,
    /// Steps from the start.
    #[arg(long, default_value_t = DEPTH_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(DEPTH_MAX)))]
    pub depth: u32,
    /// Show CIDs in full.
    #[arg(long)]
    pub wide: bool,
    #[command(flatten)]
    pub place: LogSource,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Drawn {
    Text,
    Dot,
    Mermaid,
    Json,
}

#[derive(Args)]
pub struct Erase {
    /// The payload whose content is to go; `cairn trace EVENT --wide` names those of an event.
    pub cid: Name,
    /// Why, as a short code: gdpr-17, secret, retention.
    #[arg(long, value_name = "CODE")]
    pub basis: String,
    #[command(flatten)]
    pub data: Data,
    /// One JSON document for programs.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum WorkflowCommand {
    /// Submit a definition, as `workflow_submit` takes it.
    Submit {
        /// A JSON file; `-` is standard input.
        file: PathBuf,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Show how far a run and its steps are.
    Status {
        /// The run.
        id: String,
        /// As the log stood when it had this event.
        #[arg(long, value_name = "SEQ", value_parser = number::parse)]
        as_of_seq: Option<u64>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Follow a run until it ends; exit 0 when it succeeded, else 1.
    Watch {
        /// The run.
        id: String,
        #[command(flatten)]
        reach: Reach,
        /// A line of JSON for each change, and the run's status at the end.
        #[arg(long)]
        json: bool,
    },
    /// Stop a run: no further step starts.
    Cancel {
        /// The run.
        id: String,
        /// Stop running steps too.
        #[arg(long)]
        force: bool,
        /// Why; it is recorded.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Draw a run's steps, what waits for what, and the path that took longest.
    Graph {
        /// The run.
        id: String,
        /// How it is drawn.
        #[arg(long, value_enum, default_value_t = Picture::Mermaid)]
        format: Picture,
        /// A picture: the same as --format svg.
        #[arg(long, conflicts_with = "format")]
        svg: bool,
        /// The file to write; `-` is standard output.
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        #[command(flatten)]
        reach: Reach,
    },
    /// Show what an ended run gave, as JSON.
    Result {
        /// The run.
        id: String,
        #[command(flatten)]
        reach: Reach,
    },
}

#[derive(Subcommand)]
pub enum PeersCommand {
    /// List the peers that were ever heard of.
    List {
        /// connected, connecting, disconnected or unreachable.
        #[arg(long, value_parser = ["connected", "connecting", "disconnected", "unreachable"], hide_possible_values = true)]
        status: Option<String>,
        /// What they must offer; may be given again, then all of them.
        #[arg(long, value_name = "NAME")]
        capability: Vec<String>,
        /// last_seen, latency, bandwidth, reliability or peer_id.
        #[arg(long, value_name = "BY", value_parser = Sort::WORDS, hide_possible_values = true)]
        sort: Option<String>,
        /// The most peers to show.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
        limit: u64,
        /// Where the page before ended.
        #[arg(long)]
        cursor: Option<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Look for other nodes.
    Discover {
        /// What they must offer; may be given again, then all of them.
        #[arg(long, value_name = "NAME")]
        capability: Vec<String>,
        /// Peers that are enough.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        max: Option<u64>,
        /// How long it may take.
        #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=600_000))]
        timeout_ms: Option<u64>,
        /// dht, mdns, file, github or bootstrap; may be given again.
        #[arg(long, value_name = "NAME")]
        source: Vec<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Join the network, and tell how each try went; exit 0 when enough nodes are connected, else 1.
    Bootstrap {
        /// Multiaddrs with peer ids to start from; by default those of the configuration.
        address: Vec<String>,
        /// Connections that are enough.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        min: Option<u64>,
        /// Connections after which it stops.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
        max: Option<u64>,
        /// How long it may take.
        #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=600_000))]
        timeout_ms: Option<u64>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Connect to a peer.
    Connect {
        /// Its id.
        peer: String,
        /// A multiaddr; by default where it is known to be.
        address: Option<String>,
        /// How long it may take.
        #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=600_000))]
        timeout_ms: Option<u64>,
        /// Further tries.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=10))]
        retries: Option<u64>,
        /// Do not connect again when the connection is lost.
        #[arg(long)]
        once: bool,
        /// Why; it is recorded.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Part from a peer.
    Disconnect {
        /// Its id.
        peer: String,
        /// Do not wait for running calls.
        #[arg(long)]
        now: bool,
        /// Why; it is recorded.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Show what was measured of a peer.
    Metrics {
        /// Its id.
        peer: String,
        /// Minute by minute too.
        #[arg(long)]
        history: bool,
        /// How far back.
        #[arg(long, value_name = "N", requires = "history", value_parser = clap::value_parser!(u64).range(1..=168))]
        hours: Option<u64>,
        /// As the log stood when it had this event.
        #[arg(long, value_name = "SEQ", value_parser = number::parse)]
        as_of_seq: Option<u64>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Keep a peer's log here, and check every event of it.
    Follow {
        /// Its id.
        #[arg(required_unless_present = "list")]
        peer: Option<String>,
        /// Show the logs that are kept, and how following each of them goes.
        #[arg(long, conflicts_with_all = ["peer", "release", "reason"])]
        list: bool,
        /// Let it take part again after it signed two histories.
        #[arg(long)]
        release: bool,
        /// Why; it is recorded.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
    /// Stop keeping a peer's log; what is kept stays.
    Unfollow {
        /// Its id.
        peer: String,
        /// Why; it is recorded.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        asked: ToolsQuery,
    },
}

/// A node's tools, and how their answer is shown.
#[derive(Args)]
pub struct ToolsQuery {
    #[command(flatten)]
    pub reach: Reach,
    #[command(flatten)]
    pub shown: Shown,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Picture {
    Json,
    Dot,
    Mermaid,
    Svg,
}

#[derive(Args)]
pub struct Replay {
    /// The run.
    pub workflow: String,
    /// Run repeatable tools again, and compare what they give now.
    #[arg(long)]
    pub rerun: bool,
    #[command(flatten)]
    pub asked: ToolsQuery,
}

#[derive(Args)]
pub struct Diff {
    /// A run.
    pub left: String,
    /// The run it is compared with.
    pub right: String,
    #[command(flatten)]
    pub asked: ToolsQuery,
}

fn vkey(text: &str) -> Result<Verifier, String> {
    Verifier::from_vkey(text).map_err(|err| err.to_string())
}

fn format(name: &str) -> Result<Format, String> {
    Format::parse(name).ok_or_else(|| "the formats are car, jsonl and prov-json".to_owned())
}

fn direction(name: &str) -> Result<Direction, String> {
    Direction::parse(name).ok_or_else(|| "it goes to ancestors, descendants or both".to_owned())
}
