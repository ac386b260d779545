//! Configuration: what an operator may set, the defaults, and every fault of a file at once.
//!
//! Invariants:
//! - a [`Config`] from [`Config::load`] or by default passes every rule, so no other room checks its bounds again;
//! - environment variables `CAIRN__SECTION__KEY` override the file, and flags override both;
//! - errors name keys and variables but repeat no value that may be a secret, and `Debug` shows none.

mod wording;
mod read;
mod bounds;
pub mod template;
mod references;
mod oauth;
mod offer;
mod p2p;
mod record;
mod rules;
mod renewal;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    io::Read,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use self::{
    oauth::{Grant, OAuth},
    offer::{Listing, Offer, Rule},
    p2p::{Entry, P2p},
};
use crate::{
    auth::{Access, AuthError, Tokens, Verifier},
    router::{
        capture::Capture,
        metadata::{Need, Retry},
    },
    words::words,
};

/// The largest number of bytes of a configuration file.
const FILE_MAX: u64 = 1024 * 1024;

/// The whole configuration; every section may be absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    pub server: Server,
    pub auth: Auth,
    pub log: Log,
    pub upstream: Vec<Upstream>,
    pub tasks: Tasks,
    pub p2p: P2p,
    pub capture: Captures,
    pub telemetry: Telemetry,
    pub router: Router,
    /// Metadata by public tool name; what is set here wins over what the tool's source says.
    pub tools: BTreeMap<String, Tool>,
    /// Which tools are offered to whom, as `[tools]` says.
    #[serde(skip)]
    pub offer: Offer,
}

/// `[server]`: the socket, and the bounds of what comes in by it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Default `127.0.0.1:7420`. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where health and metrics are served besides, without a token, to whoever reaches it.
    pub metrics_listen: Option<SocketAddr>,
    /// A certificate chain and its key in PEM, for TLS without a proxy; both or neither.
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// The URL callers use, without `/mcp`; by default `http://` and the listening address.
    pub public_url: Option<String>,
    /// Default 4 MiB; 1 KiB to 64 MiB.
    pub max_body_bytes: usize,
    /// How long an answer may take to begin. Default 300,000; 100 to 3,600,000.
    pub request_timeout_ms: u64,
    /// Origins of web pages that may call, as `https://host[:port]`. The server's own is always allowed.
    pub allowed_origins: Vec<String>,
    /// `Host` values beside the loopback names, the listening address and the public URL: `name[:port]`.
    pub allowed_hosts: Vec<String>,
    /// Requests a second of one principal. Default 20,000; 1 to 1,000,000.
    pub rate_limit_per_second: u32,
    /// Requests of one principal at once. Default 20,000; 1 to 1,000,000.
    pub rate_limit_burst: u32,
}

/// `[auth]`: who may call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Auth {
    pub mode: AuthMode,
    /// The keys that sign tokens, as a JWK set. For `jwt`.
    pub jwks_file: Option<PathBuf>,
    /// Where that set is fetched; exactly one of both. For `jwt`.
    pub jwks_url: Option<String>,
    /// The `iss` of every token. For `jwt`.
    pub issuer: Option<String>,
    /// The `aud` of every token; by default the public URL with `/mcp`. For `jwt`.
    pub audience: Option<String>,
}

words! {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum AuthMode {
        /// Everyone who reaches the socket may do everything; only on a loopback address.
        #[default]
        None = "none",
        /// Opaque tokens kept, hashed, in the data directory.
        Static = "static",
        /// Signed tokens of an issuer.
        Jwt = "jwt",
    }
}

/// `[log]`: how events reach the disk.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Log {
    pub store: Store,
    /// Commands that share one commit at most. Default 1024; 1 to 1024.
    pub group_max: usize,
    /// Whether a commit waits for the disk. Default true.
    pub fsync: bool,
    /// How often a new head is signed. Default 1000; 10 to 3,600,000.
    pub checkpoint_interval_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    #[default]
    Sqlite,
}

/// `[[upstream]]`: an MCP server this node stands in front of.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Upstream {
    /// 1 to 64 of `A-Z a-z 0-9 _ -`, used once.
    pub name: String,
    /// The program of a stdio server; exactly one of `command` and `url`.
    pub command: Option<String>,
    pub args: Vec<String>,
    pub env: Secrets,
    /// Variables of this node's environment that the program gets too. Of the others it gets `HOME`, `LOGNAME`, `PATH`,
    /// `SHELL`, `TERM` and `USER`.
    pub inherit_env: Vec<String>,
    pub cwd: Option<PathBuf>,
    /// The user that the program runs as. Only a node that runs as root can name one.
    pub user: Option<String>,
    /// The URL of a Streamable HTTP server.
    pub url: Option<String>,
    pub headers: Secrets,
    /// How tokens for the URL are asked for; by default `cairn upstream login` finds out.
    pub oauth: Option<OAuth>,
    /// Put before every tool and prompt name. Default `<name>_`; empty shows the names as they are.
    pub prefix: Option<String>,
    /// When not empty, only these tools, by their names at the source.
    pub enable: Vec<String>,
    pub disable: Vec<String>,
    /// How long one call may take. By default the lane's timeout.
    pub timeout_ms: Option<u64>,
    pub lane: Option<String>,
    /// Whether each session of a client has a connection, and so a process, of its own. Default false.
    pub isolate: bool,
    /// Whether each caller has a login of its own at the URL. Default false.
    pub per_caller: bool,
}

/// Named values that `Debug` replaces by `***`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

/// `[tasks]`: the task queue.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Tasks {
    /// Default 30,000; 100 to 86,400,000.
    pub lease_ms: u64,
    /// A waiting task gains one step of priority each. Default 60,000; 100 to 86,400,000.
    pub ageing_ms: u64,
    /// Default 10,000; 1 to 10,000,000. The steps of an accepted workflow wait whatever the bound.
    pub max_queue: usize,
    /// Attempts that may end without an outcome. Default 5; 1 to 1000.
    pub max_attempts: u32,
    /// By rate key: how often its tasks may start; keys without one are not bounded.
    #[serde(skip)]
    pub rates: BTreeMap<String, Rate>,
}

/// `[tasks.rates.<key>]`: `burst` at once, then one an interval.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Rate {
    /// Default 1000; 1 to 86,400,000.
    pub interval_ms: u64,
    /// Default 1; 1 to 1,000,000.
    pub burst: u64,
}

/// `[capture]`: how much of a payload the log keeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Captures {
    pub default: Capture,
    /// By public tool name.
    pub tools: BTreeMap<String, Capture>,
}

/// `[telemetry]`: what this process says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Telemetry {
    pub otlp_endpoint: Option<String>,
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[router]`: lanes by name.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Router {
    pub lanes: BTreeMap<String, Lane>,
}

/// `[router.lanes.<name>]`: what is not set keeps the lane's own default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lane {
    /// 1 to 10,000.
    pub concurrency: Option<usize>,
    /// 0 to 1,000,000.
    pub queue: Option<usize>,
    /// 1 to 86,400,000.
    pub timeout_ms: Option<u64>,
}

/// `[tools."<name>"]`: what the router is told of a tool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tool {
    pub runtime: Option<String>,
    pub category: Option<String>,
    /// 0 to 100.
    pub priority: Option<u8>,
    /// 1 to 86,400,000.
    pub timeout_ms: Option<u64>,
    pub retry: Option<Retry>,
    pub cpu: Option<Need>,
    pub io: Option<Need>,
    pub memory: Option<Need>,
}

/// The values of flags, which override the file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub listen: Option<SocketAddr>,
    pub no_p2p: bool,
}

/// One fault of a configuration, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, as `section.key` or `upstream[0].key`; empty for the file itself.
    pub place: String,
    pub origin: Origin,
    pub message: String,
}

/// Where a value came from, for the message of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of the file, counted from 1.
    Line(usize),
    /// An environment variable, by its name.
    Variable(String),
    /// A flag, a default, or a missing key.
    Elsewhere,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("configuration is not usable: {}", join(.0))]
    Faults(Vec<Fault>),
}

impl Config {
    /// Reads the file, applies the environment and the flags, and checks every rule.
    ///
    /// `env` is every variable of the process: those that begin with `CAIRN__` set keys, and upstreams may refer to any.
    /// Errors: `Faults` holds all faults, not only the first.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let text = match path {
            Some(path) => {
                read_file(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?
            }
            None => String::new(),
        };
        Self::parse(&text, env, overrides)
    }

    /// Does the same with the text of a file.
    pub fn parse(
        text: &str,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let env: BTreeMap<String, String> = env.into_iter().collect();
        let (mut config, mut report) = read::read(text, env.clone());
        references::resolve(&mut config.upstream, &env, &mut report);
        if let Some(listen) = overrides.listen {
            config.server.listen = listen;
        }
        if overrides.no_p2p {
            config.p2p.enable = false;
        }
        rules::check(&config, &mut report);
        match report.into_faults() {
            faults if faults.is_empty() => Ok(config),
            faults => Err(ConfigError::Faults(faults)),
        }
    }
}

impl Config {
    /// Opens what callers are authenticated with. Static tokens are those of `directory`.
    pub fn access(&self, directory: &Path) -> Result<Access, AuthError> {
        match self.auth.mode {
            AuthMode::None => Ok(Access::Open),
            AuthMode::Static => Tokens::open(directory).map(Access::Static),
            AuthMode::Jwt => {
                let public = self.server.public_url.as_deref().unwrap_or_default();
                let canonical = || format!("{}/mcp", public.trim_end_matches('/'));
                let audience = self.auth.audience.clone().unwrap_or_else(canonical);
                let issuer = self.auth.issuer.as_deref().unwrap_or_default();
                let verifier = match &self.auth.jwks_url {
                    Some(url) => Verifier::fetching(url, issuer, &audience),
                    None => {
                        let keys = self.auth.jwks_file.clone().unwrap_or_default();
                        Verifier::open(keys, issuer, &audience)
                    }
                };
                verifier.map(Access::Jwt)
            }
        }
    }
}

impl Upstream {
    /// Returns the prefix of every public tool and prompt name.
    pub fn prefix(&self) -> String {
        self.prefix.clone().unwrap_or_else(|| format!("{}_", self.name))
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7420)),
            metrics_listen: None,
            tls_cert: None,
            tls_key: None,
            public_url: None,
            max_body_bytes: 4 * 1024 * 1024,
            request_timeout_ms: 300_000,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            rate_limit_per_second: 20_000,
            rate_limit_burst: 20_000,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { store: Store::Sqlite, group_max: 1024, fsync: true, checkpoint_interval_ms: 1000 }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            lease_ms: 30_000,
            ageing_ms: 60_000,
            max_queue: 10_000,
            max_attempts: 5,
            rates: BTreeMap::new(),
        }
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self { interval_ms: 1000, burst: 1 }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Upstream");
        text.field("name", &self.name).field("env", &self.env).field("headers", &self.headers);
        text.finish_non_exhaustive()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, "***"))).finish()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.place.as_str()) {
            (Origin::Line(line), "") => write!(f, "line {line}: {}", self.message),
            (Origin::Line(line), place) => write!(f, "line {line}: {place}: {}", self.message),
            (Origin::Variable(name), _) => write!(f, "{name}: {}", self.message),
            (Origin::Elsewhere, place) => write!(f, "{place}: {}", self.message),
        }
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is over 1 MiB"));
    }
    Ok(text)
}

fn join(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}
