//! `cairn serve`, `cairn stdio`, `cairn wrap`: run a node behind a door.
//!
//! Invariants:
//! - standard output carries the ready line, or protocol messages, and nothing else; log lines go to standard error;
//! - SIGTERM and Ctrl-C drain and stop the node. If the ledger stops, the process ends with an error.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    auth::Access,
    caller::{Caller, Scope},
    cli::{Serve, Stdio, Wrap},
    config::{Config, LogFormat, Overrides},
    event::Actor,
    http::{self, App},
    log::home::Home,
    mcp,
    node::{Node, Setup},
    runtime::{
        gateway,
        upstream::{self, Sharing},
    },
    stdio,
};

/// Serves until SIGTERM or Ctrl-C, or until the ledger stops.
pub fn serve(args: Serve, quiet: bool) -> anyhow::Result<ExitCode> {
    let overrides = Overrides { listen: args.listen, no_p2p: args.no_p2p };
    let config = Config::load(args.config.as_deref(), std::env::vars(), &overrides)?;
    trace(config.telemetry.log_format);
    let home = Home::open(&args.data.data)?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(config.server.listen)
            .await
            .with_context(|| format!("cannot listen on {}; choose another --listen", config.server.listen))?;
        let address = listener.local_addr()?;
        let url = format!("http://{address}");
        let owner = format!("`cairn serve` at {url} (process {})", std::process::id());
        let _one = home.serve(&owner)?;
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
        };
        let mut node = Node::start(setup).await?;
        node.record().await.context("the tokens in force cannot be recorded")?;
        let about = node.ledger.about();
        // Signals count before the ready line: whoever has read it may ask to stop at once, and must get a drained
        // stop.
        let asked = asked_to_stop();
        let app = app(&config, &home, &node)?;
        if !quiet {
            // If the reader of the line has gone, the server still serves.
            let _ = writeln!(
                std::io::stdout(),
                "cairn ready mcp={url}/mcp http={url} log={} key={}{}",
                about.origin,
                about.vkey,
                node.peer().map(|peer| format!(" peer={peer}")).unwrap_or_default()
            );
        }
        let closing = CancellationToken::new();
        let served = tokio::spawn(http::serve(listener, app, closing.clone()));
        let failed = tokio::select! {
            () = asked => false,
            () = node.ledger.stopped() => true,
        };
        // First no new connections, then calls end and are answered, then streams and sessions end, then the rest.
        closing.cancel();
        node.quiet().await;
        served.await.context("the door failed")??;
        node.stop().await;
        if failed {
            anyhow::bail!("the ledger stopped: the log could not be written; see the error above");
        }
        Ok(ExitCode::SUCCESS)
    })
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
        env: Default::default(),
        directory: None,
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
    on_stdio(&args.data.data, &config, wrapped, "wrap")
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
    // A wrapped server is offered alone.
    let builtins = door == "stdio";
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let asked = asked_to_stop();
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
        };
        let node = Node::start(setup).await?;
        if let Some(reason) = node.lost.as_ref().filter(|_| !builtins) {
            let reason = reason.clone();
            node.stop().await;
            anyhow::bail!("the wrapped server did not start: {reason}");
        }
        let shutdown = node.stopping.clone();
        let settings = mcp::Settings { shutdown, wraps: !builtins, ..mcp::Settings::default() };
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
    done
}

fn app(config: &Config, home: &Home, node: &Node) -> anyhow::Result<App> {
    let access: Access = config.access(home.dir())?;
    let settings = mcp::Settings { shutdown: node.stopping.clone(), ..mcp::Settings::default() };
    let ledger = node.ledger.clone();
    let endpoint = Arc::new(mcp::Endpoint::new(Arc::new(node.router.clone()), settings));
    let sessions = endpoint.clone();
    let sessions: Arc<dyn Fn() -> usize + Send + Sync> = Arc::new(move || sessions.sessions());
    node.sample(sessions.clone());
    Ok(App {
        server: config.server.clone(),
        access,
        mcp: endpoint,
        audit: audit::routes(node.audit.clone()).merge(audit::status::route(node.status(sessions))),
        ready: Box::new(move || Node::unready(&ledger)),
        metrics: node.metrics.clone(),
    })
}

/// Returns a future that ends when the operating system asks the process to stop. Signals count from this call on,
/// however late it is polled.
fn asked_to_stop() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = signal(SignalKind::terminate());
    let interrupt = signal(SignalKind::interrupt());
    async {
        // Without its handler, a signal ends the process anyway.
        let (Ok(mut terminate), Ok(mut interrupt)) = (terminate, interrupt) else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Sends log lines to standard error, since standard output belongs to programs.
fn trace(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("warn,rmcp=error,libp2p_kad=error,cairn=info")
    });
    // What the library says of an authorization may hold a code or a token, so nobody can ask for it.
    let filter = match "rmcp::transport::auth=off".parse() {
        Ok(silence) => filter.add_directive(silence),
        Err(_) => tracing_subscriber::EnvFilter::new("error"),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Nobody reading them is no fault.
    let builder = builder.log_internal_errors(false);
    // A second initialisation happens only in tests; the first one stays.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
