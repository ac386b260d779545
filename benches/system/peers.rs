//! Calls between two nodes over loopback, each recorded on both sides; pings and calls on one stream; connections.

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use cairn::{
    frames::{FRAME_MAX, Frames},
    p2p::{self, Settings, Wire, handle::Net},
};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::{
    calls::Stateless,
    data_dir,
    load::{self, Client},
    machine::{Place, fdatasync_p50},
    server::Server,
    table::{Bound, milliseconds, quantile, row},
};

const ROUNDS: usize = 5;
const CALLERS: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
const WARM: Duration = Duration::from_secs(2);
/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(20);
const PINGS: usize = 2_000;
const CALLS: usize = 4_000;
const DIALS: usize = 40;
/// A peer may ask 10,000 times a second: each measure begins with all of them left.
const REFILL: Duration = Duration::from_millis(1_100);
/// The tool of the second node, as the first offers it.
const TOOL: &str = "peers_test_simple_text";

/// What one remote call may take beyond four fdatasyncs.
const REMOTE_EXTRA_MS: f64 = 2.0;
const PING_MAX_MS: f64 = 0.25;
const PIPELINED_MIN: f64 = 8_000.0;
const DIAL_MAX_MS: f64 = 5.0;
const STREAMS_AGAIN_MIN: f64 = 80.0;
const CONNECTIONS_AGAIN_MIN: f64 = 95.0;

pub fn section() {
    let data = || tempfile::tempdir_in(data_dir()).expect("a directory for the log");
    let (here, there, driver) = (data(), data(), p2p::local_peer(&[9; 32]));
    // A first life tells each node's id and makes its key.
    let (first, second) = (born(here.path()), born(there.path()));
    let entry = |id: &str| format!("[[p2p.peers]]\nid = \"{id}\"\nscopes = [\"mcp:call\", \"audit:read\"]\n");
    let config = format!("{ON}{}{}", entry(&first), entry(&driver));
    let there_serves = serve(there.path(), &config, &[OsStr::new("--conformance-fixtures")]);
    let address = address_of(&there_serves);
    let config = format!("{ON}{}addrs = [\"{address}\"]\n", entry(&second));
    let here_serves = serve(here.path(), &config, &[]);
    until_offered(&here_serves);

    load::run(&Stateless(TOOL), here_serves.address, CALLERS, WARM);
    let (mut fdatasync, mut alone, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        fdatasync.push(milliseconds(fdatasync_p50(here.path(), Place::Over)));
        alone.push(load::run(&Stateless(TOOL), here_serves.address, 1, ROUND));
        many.push(load::run(&Stateless(TOOL), here_serves.address, CALLERS, ROUND));
    }
    let asked = counted(&here_serves, "cairn_peer_requests_total", "direction=\"out\"");
    let again = |made: f64| vec![100.0 * (1.0 - made / asked)];
    let opened = counted(&here_serves, "cairn_peer_streams_total", "direction=\"out\"");
    let dialled = counted(&here_serves, "cairn_libp2p_swarm_connections_established_total", "");
    let fdatasync = row("fdatasync p50, overwritten file", "ms", fdatasync, Bound::None);
    let most = Bound::AtMost(4.0 * fdatasync + REMOTE_EXTRA_MS);
    row(
        "remote recorded call, one caller, p50",
        "ms",
        alone.iter().map(|load| milliseconds(load.p50)).collect(),
        most,
    );
    row(
        "remote recorded call, one caller, p99",
        "ms",
        alone.iter().map(|load| milliseconds(load.p99)).collect(),
        Bound::None,
    );
    row(
        "remote recorded call, 64 callers",
        "calls/s",
        many.iter().map(|load| load.rate).collect(),
        Bound::None,
    );

    row("calls that used a stream again", "%", again(opened), Bound::AtLeast(STREAMS_AGAIN_MIN));
    row("calls that used a connection again", "%", again(dialled), Bound::AtLeast(CONNECTIONS_AGAIN_MIN));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let settings = Settings { dht: false, ..Settings::new([9; 32]) };
        let (net, _inbound) = p2p::start(settings).expect("loopback can be listened on");
        connections(&net, &second, &address).await;
        streams(&net, &second, &address).await;
    });
}

const ON: &str = "[p2p]\nenable = true\n";

/// Starts a node once for its name among others.
fn born(data: &Path) -> String {
    let server = serve(data, ON, &[]);
    let peer = state(&server)["peer"]["peer_id"].as_str().expect("it takes part").to_owned();
    server.stop();
    peer
}

fn serve(data: &Path, config: &str, flags: &[&OsStr]) -> Server {
    let file = data.join("cairn.toml");
    fs::write(&file, config).expect("a configuration is written");
    let flags: Vec<&OsStr> =
        [OsStr::new("--config"), file.as_os_str()].into_iter().chain(flags.iter().copied()).collect();
    Server::cairn(data, &flags)
}

fn state(server: &Server) -> Value {
    load::runtime().block_on(async {
        let mut client = Client::connect(server.address).await;
        let answer = client.ask(&load::get("/v1/state")).await;
        serde_json::from_slice(answer.body).expect("a state")
    })
}

/// The sum of a counter's series that have these labels.
fn counted(server: &Server, name: &str, labels: &str) -> f64 {
    load::runtime().block_on(async {
        let mut client = Client::connect(server.address).await;
        let answer = client.ask(&load::get("/metrics")).await;
        let text = String::from_utf8_lossy(answer.body);
        let series =
            text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(labels));
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    })
}

fn address_of(server: &Server) -> String {
    let address = state(server)["peer"]["multiaddrs"][0].as_str().expect("it listens").to_owned();
    address.rsplit_once("/p2p/").expect("it names the peer").0.to_owned()
}

fn until_offered(server: &Server) {
    let begun = Instant::now();
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    let headers = "mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/list\r\n";
    loop {
        let offered = load::runtime().block_on(async {
            let mut client = Client::connect(server.address).await;
            let answer = client.ask(&load::post("/mcp", headers, list)).await;
            String::from_utf8_lossy(answer.body).contains(TOOL)
        });
        if offered {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the peer's tools are not offered");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Dials and lets go, again and again.
async fn connections(net: &Net, peer: &str, address: &str) {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut times = Vec::with_capacity(DIALS);
        for _ in 0..DIALS {
            let begun = Instant::now();
            net.dial(peer, vec![address.to_owned()], PATIENCE).await.expect("it is reached");
            times.push(begun.elapsed());
            net.disconnect(peer).await;
        }
        rounds.push(milliseconds(quantile(&mut times, 0.5)));
    }
    row("connection set up, with identify, p50", "ms", rounds, Bound::AtMost(DIAL_MAX_MS));
}

/// What one stream carries: pings one by one, and pings and recorded calls with many in flight.
async fn streams(net: &Net, peer: &str, address: &str) {
    net.dial(peer, vec![address.to_owned()], PATIENCE).await.expect("it is reached");
    let stream = net.open(peer, Wire::Mcp).await.expect("a stream");
    let (reader, mut writer) = tokio::io::split(stream);
    let mut frames = Frames::new(reader, FRAME_MAX);
    let hello = r#"{"jsonrpc":"2.0","id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
    writer.write_all(&framed(hello)).await.expect("sent");
    frames.next().await.expect("a frame").expect("an answer");
    writer
        .write_all(&framed(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#))
        .await
        .expect("sent");
    let ping = |id: usize| framed(&format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#));
    let call = |id: usize| {
        framed(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"test_simple_text","arguments":{{"n":{id}}}}}}}"#
        ))
    };
    let (mut pings, mut piped, mut called) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        tokio::time::sleep(REFILL).await;
        let mut times = Vec::with_capacity(PINGS);
        for id in 0..PINGS {
            let begun = Instant::now();
            writer.write_all(&ping(id)).await.expect("sent");
            writer.flush().await.expect("sent");
            frames.next().await.expect("a frame").expect("an answer");
            times.push(begun.elapsed());
        }
        pings.push(milliseconds(quantile(&mut times, 0.5)));
        for (make, count, rates) in
            [(&ping as &dyn Fn(usize) -> Vec<u8>, 4 * PINGS, &mut piped), (&call, CALLS, &mut called)]
        {
            tokio::time::sleep(REFILL).await;
            let begun = Instant::now();
            let (mut sent, mut come) = (0, 0);
            while come < count {
                while sent < count && sent - come < CALLERS {
                    writer.write_all(&make(sent)).await.expect("sent");
                    sent += 1;
                }
                writer.flush().await.expect("sent");
                let answer = frames.next().await.expect("a frame").expect("an answer");
                assert!(
                    answer.windows(8).any(|part| part == b"\"result\""),
                    "{}",
                    String::from_utf8_lossy(&answer)
                );
                come += 1;
            }
            rates.push(count as f64 / begun.elapsed().as_secs_f64());
        }
    }
    row("ping on an open stream, p50", "ms", pings, Bound::AtMost(PING_MAX_MS));
    row("pings on one stream, 64 in flight", "pings/s", piped, Bound::AtLeast(PIPELINED_MIN));
    row("recorded calls on one stream, 64 in flight", "calls/s", called, Bound::None);
}

fn framed(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("a short message");
    [&len.to_be_bytes()[..], text.as_bytes()].concat()
}
