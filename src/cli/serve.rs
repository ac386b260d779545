//! `cairn serve`, `cairn stdio`, `cairn wrap`: run a node behind a door.
//!
//! Invariants:
//! - standard output carries the ready line, or protocol messages, and nothing else; log lines go to standard error;
//! - SIGTERM and Ctrl-C drain and stop the node, and so does SIGHUP where standard input is its only door. If the ledger
//!   stops, the process ends with an error;
//! - SIGHUP puts a server under its configuration as it is now;
//! - no other process of our user reads the memory or the environment of a node.

use std::{io::Write, process::ExitCode, sync::Arc};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    auth::AuthError,
    caller::{Caller, Scope},
    cli::{Serve, Stdio, Wrap, guard::guard, logging::trace},
    config::{self, Config, LogFormat, Overrides},
    event::Actor,
    http::{
        App, descriptors,
        door::{Door, Opener, serve_health},
        health::Health,
        tls::Tls,
    },
    ledger::Ledger,
    log::home::Home,
    mcp,
    metrics::Metrics,
    node::{
        Node, Setup, Starting, WRAP, control,
        steering::{Prepare, Source, Steering},
        upstreams::whole_environment,
    },
    questions::Audit,
    runtime::{
        gateway,
        upstream::{self, Sharing, leftovers},
    },
    stdio,
};

/// Serves until SIGTERM or Ctrl-C, or until the ledger stops.
pub fn serve(args: Serve, quiet: bool) -> anyhow::Result<ExitCode> {
    let overrides = Overrides { listen: args.listen, no_p2p: args.no_p2p };
    let config = Config::load(args.config.as_deref(), std::env::vars(), &overrides)?;
    trace(config.telemetry.log_format);
    let home = Home::open(&args.data.data)?;
    guard(&home);
    descriptors::raise();
    let source = Source { path: args.config.clone(), overrides };
    let done = runtime()?.block_on(async {
        // From here on a hangup does not end the process; one that comes before the node is ready waits until it is.
        let hangups = signal(SignalKind::hangup())?;
        let closing = CancellationToken::new();
        let bound = Bound::at(&config.server).await?;
        let (url, opener, starting) = (bound.url.clone(), bound.door.opener(), bound.starting.clone());
        let owner = format!("`cairn serve` at {url} (process {})", std::process::id());
        let _one = home.serve(&owner)?;
        let served = bound.serve(&config.server, &closing).await?;
        let setup = Setup {
            home: &home,
            config: &config,
            owner,
            base: Some(config.server.public_url.clone().unwrap_or_else(|| url.clone())),
            upstreams: Vec::new(),
            builtins: true,
            fixtures: args.conformance_fixtures,
            networked: true,
            door: "serve",
            starting,
        };
        let mut node = Node::start(setup).await?;
        node.record().await.context("the tokens in force cannot be recorded")?;
        // Signals count before the ready line: whoever has read it may ask to stop at once, and must get a drained
        // stop.
        let asked = asked_to_stop(false);
        let control = control::open(home.dir());
        let renewal = Doors::open(&config, &home, &node, opener)?;
        let steering = Arc::new(node.steer(source, (&config, "serve"), renewal));
        if !quiet {
            announce(&node, &url);
        }
        let steered = tokio::spawn(steer(steering, hangups, control, closing.clone()));
        let failed = tokio::select! {
            () = asked => false,
            () = node.ledger.stopped() => true,
        };
        // First no new connections, then calls end and are answered, then streams and sessions end, then the rest.
        closing.cancel();
        node.quiet().await;
        served.await.context("the door failed")?;
        steered.await.context("the control failed")?;
        node.stop().await;
        if failed {
            anyhow::bail!("the ledger stopped: the log could not be written; see the error above");
        }
        Ok(ExitCode::SUCCESS)
    });
    leftovers::resign();
    done
}

/// The sockets of a server, where health alone is answered until there is a node.
struct Bound {
    door: Door,
    health: Arc<Health>,
    starting: Starting,
    url: String,
}

impl Bound {
    async fn at(server: &config::Server) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind(server.listen)
            .await
            .with_context(|| format!("cannot listen on {}; choose another --listen", server.listen))?;
        let address = listener.local_addr()?;
        let tls = match (&server.tls_cert, &server.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Tls::open(cert, key)?)),
            (Some(_) | None, _) => None,
        };
        let url = format!("{}://{address}", if tls.is_some() { "https" } else { "http" });
        let starting = Starting::default();
        let begun = starting.clone();
        let waits = Box::new(move || vec![begun.reason()]);
        let health = Arc::new(Health::new(starting.metrics.clone(), waits));
        let door = Door::new(listener, server, tls, health.clone())?;
        Ok(Self { door, health, starting, url })
    }

    /// Serves until `closing`. Errors: the address for health alone cannot be bound.
    async fn serve(
        self,
        server: &config::Server,
        closing: &CancellationToken,
    ) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        if let Some(at) = server.metrics_listen {
            let listener = tokio::net::TcpListener::bind(at).await;
            let listener = listener
                .with_context(|| format!("cannot listen on {at}; choose another server.metrics_listen"))?;
            tracing::info!(at = %listener.local_addr()?, "health and metrics are served here too");
            tokio::spawn(serve_health(listener, self.health, closing.clone()));
        }
        Ok(tokio::spawn(self.door.serve(closing.clone())))
    }
}

/// Says that the node is ready, and where.
fn announce(node: &Node, url: &str) {
    let about = node.ledger.about();
    let peer = node.peer().map(|peer| format!(" peer={peer}")).unwrap_or_default();
    let ready = format!("cairn ready mcp={url}/mcp http={url} log={} key={}{peer}", about.origin, about.vkey);
    // If the reader of the line has gone, the server still serves.
    let _ = writeln!(std::io::stdout(), "{ready}");
}

/// Puts the node under another configuration whenever that is asked for, until `stop`.
async fn steer(
    steering: Arc<Steering>,
    mut hangups: Signal,
    control: std::io::Result<tokio::net::UnixListener>,
    stop: CancellationToken,
) {
    let control = async {
        match control {
            Ok(listener) => control::serve(listener, steering.clone(), stop.clone()).await,
            Err(err) => {
                tracing::warn!(%err, "`cairn upstream` cannot reach this node: its socket cannot be made");
                stop.cancelled().await;
            }
        }
    };
    let hangups = async {
        while stop.run_until_cancelled(hangups.recv()).await.flatten().is_some() {
            steering.reload_and_tell().await;
        }
    };
    tokio::join!(control, hangups);
}

/// Serves this node on standard input and output.
pub fn stdio(args: Stdio) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.as_deref(), std::env::vars(), &Overrides::default())?;
    trace(config.telemetry.log_format);
    on_stdio(&args.data.data, &config, |_| Vec::new(), "stdio")
}

/// Serves a wrapped server on standard input and output.
pub fn wrap(args: Wrap) -> anyhow::Result<ExitCode> {
    trace(LogFormat::Text);
    let config = Config::load(args.config.as_deref(), [], &Overrides::default())?;
    let config = Config { upstream: Vec::new(), ..config };
    let (program, arguments) = args.command.split_first().context("name the server's program after `--`")?;
    let name = args.name.unwrap_or_else(|| server_name(program, arguments));
    let transport = upstream::Transport::Child {
        command: program.clone(),
        args: arguments.to_vec(),
        env: whole_environment(),
        directory: None,
        user: None,
    };
    let wrapped = |hello: mcp::Hello| {
        let at = upstream::Settings {
            name: name.clone(),
            transport,
            timeout: gateway::REQUEST_MAX,
            capabilities: hello.capabilities,
            sharing: Sharing::All,
            sessions_first: hello.in_session,
            updates: Default::default(),
        };
        let shown = gateway::Settings {
            name,
            prefix: String::new(),
            enable: Vec::new(),
            disable: Vec::new(),
            rank: 1,
            lane: None,
            // The client gives up when it wants to, as it would without us.
            timeout_ms: Some(gateway::REQUEST_MAX.as_millis() as u64),
        };
        vec![(at, shown)]
    };
    on_stdio(&args.data.data, &config, wrapped, WRAP)
}

/// Returns the default name of a server: its program, or what a launcher is told to launch.
fn server_name(program: &str, arguments: &[String]) -> String {
    const LAUNCHERS: &[&str] = &["bun", "bunx", "deno", "node", "npx", "python", "python3", "uv", "uvx"];
    // Names of entry files and their folders that say nothing about the server.
    const PLAIN: &[&str] = &["bin", "build", "cli", "dist", "index", "lib", "main", "out", "server", "src"];
    let stem = |path: &str| {
        let stems = path.rsplit('/').map(|part| part.split(['.', '@']).next().unwrap_or(part));
        let mut stems = stems.filter(|stem| !stem.is_empty());
        let last = stems.next().unwrap_or(path).to_owned();
        if PLAIN.contains(&last.as_str()) {
            stems.find(|stem| !PLAIN.contains(stem)).map_or(last, str::to_owned)
        } else {
            last
        }
    };
    let program = stem(program);
    let launched = arguments.iter().find(|argument| !argument.starts_with('-') && *argument != "run");
    let name = match launched {
        Some(launched) if LAUNCHERS.contains(&program.as_str()) => stem(launched),
        _ => program,
    };
    if name.is_empty() { "wrapped".to_owned() } else { name }
}

fn on_stdio(
    data: &std::path::Path,
    config: &Config,
    upstreams: impl FnOnce(mcp::Hello) -> Vec<(upstream::Settings, gateway::Settings)>,
    door: &'static str,
) -> anyhow::Result<ExitCode> {
    let home = Home::open(data)?;
    guard(&home);
    let wraps = door == WRAP;
    // A wrapped server is offered alone, unless the configuration says more.
    let builtins = !wraps || config.offer.builtin.as_ref().is_some_and(|groups| !groups.is_empty());
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let asked = asked_to_stop(true);
        tokio::pin!(asked);
        let input = tokio::select! {
            input = stdio::Input::open() => input.context("standard input cannot be read")?,
            () = &mut asked => return anyhow::Ok(ExitCode::SUCCESS),
        };
        // A wrapped server hears what its client can do, as it would without us.
        let upstreams = upstreams(mcp::Hello::read(&input.first));
        let owner = format!("a cairn process on standard input and output (process {})", std::process::id());
        let setup = Setup {
            home: &home,
            config,
            owner,
            base: None,
            upstreams,
            builtins,
            fixtures: false,
            networked: false,
            door,
            starting: Default::default(),
        };
        let node = Node::start(setup).await?;
        if let Some(reason) = node.lost.as_ref().filter(|_| wraps) {
            let reason = reason.clone();
            node.stop().await;
            anyhow::bail!("the wrapped server did not start: {reason}");
        }
        let shutdown = node.stopping.clone();
        let settings = mcp::Settings { shutdown, wraps, ..mcp::Settings::default() };
        let caller = Caller {
            actor: Actor { id: "local".to_owned(), role: "client".to_owned(), proof: None },
            scopes: vec![Scope::Call, Scope::Audit, Scope::Admin],
        };
        let served = tokio::select! {
            served = stdio::serve(Arc::new(node.router.clone()), settings, caller, input) => served,
            () = &mut asked => Ok(()),
        };
        node.stop().await;
        served.context("standard input or output failed")?;
        anyhow::Ok(ExitCode::SUCCESS)
    });
    // A blocking read of standard input cannot be cancelled, and must not keep the process alive.
    runtime.shutdown_background();
    leftovers::resign();
    done
}

/// What the HTTP door of a node is made of, under any configuration.
struct Doors {
    home: Home,
    ledger: Ledger,
    audit: Audit,
    metrics: Arc<Metrics>,
    endpoint: Arc<mcp::Endpoint>,
    status: audit::status::Told,
}

impl Doors {
    /// Opens the door, and returns what opens it anew under another configuration.
    fn open(config: &Config, home: &Home, node: &Node, opener: Opener) -> anyhow::Result<Prepare> {
        let settings = mcp::Settings { shutdown: node.stopping.clone(), ..mcp::Settings::default() };
        let endpoint = Arc::new(mcp::Endpoint::new(Arc::new(node.router.clone()), settings));
        let sessions = endpoint.clone();
        let sessions: Arc<dyn Fn() -> usize + Send + Sync> = Arc::new(move || sessions.sessions());
        node.sample(sessions.clone());
        let doors = Self {
            home: home.clone(),
            ledger: node.ledger.clone(),
            audit: node.audit.clone(),
            metrics: node.metrics.clone(),
            endpoint,
            status: node.status(sessions),
        };
        opener.open(doors.app(config)?);
        Ok(Box::new(move |config| {
            let app = doors.app(config).map_err(|err| format!("{:#}", anyhow::Error::new(err)))?;
            let opener = opener.clone();
            Ok(Box::new(move || opener.open(app)))
        }))
    }

    fn app(&self, config: &Config) -> Result<App, AuthError> {
        let ledger = self.ledger.clone();
        let access = Arc::new(config.access(self.home.dir())?);
        // Keys at a URL are fetched now, before the first caller needs them.
        access.version();
        Ok(App {
            server: config.server.clone(),
            access,
            mcp: self.endpoint.clone(),
            audit: audit::routes(self.audit.clone()).merge(audit::status::route(self.status.clone())),
            ready: Box::new(move || Node::unready(&ledger)),
            metrics: self.metrics.clone(),
        })
    }
}

/// Returns a future that ends when the operating system asks the process to stop. Signals count from this call on,
/// however late it is polled. A hangup counts, too, if `hangup`.
fn asked_to_stop(hangup: bool) -> impl Future<Output = ()> {
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    let hangups = hangup.then(|| signal(SignalKind::hangup()).ok()).flatten();
    async {
        // Without its handler, a signal ends the process anyway.
        let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
            return std::future::pending().await;
        };
        let hangup = async {
            match hangups {
                Some(mut hangups) => drop(hangups.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = hangup => {}
        }
    }
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}
