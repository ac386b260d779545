//! Recorded calls over HTTP, beside an axum echo and an unrecorded call of the TypeScript SDK's server.

use std::{ffi::OsStr, net::SocketAddr, path::Path, process::Command, time::Duration};

use axum::{Router, body::Bytes, http::StatusCode, routing::post};
use serde_json::Value;

use crate::{
    data_dir,
    load::{self, Client, Load, Script},
    machine::{Place, fdatasync_p50},
    server::Server,
    table::{Bound, absent, milliseconds, row},
};

const ROUNDS: usize = 5;
const CALLERS: usize = 64;
const ROUND: Duration = Duration::from_secs(2);
const ROUND_ALONE: Duration = Duration::from_secs(1);
/// Before the first round: caches are filled, and another's code is compiled.
const WARM: Duration = Duration::from_secs(2);
/// Threads of the axum echo.
const ECHO_THREADS: usize = 2;

const RATE_MIN: f64 = 6_000.0;
const RATIO_MIN: f64 = 1.5;
/// What one caller may wait beyond two fdatasyncs.
const ALONE_EXTRA_MS: f64 = 1.0;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/ts1.mjs");
const TOOL: &str = "test_simple_text";

pub fn section() {
    let data = tempfile::tempdir_in(data_dir()).expect("a directory for the log");
    let cairn = Server::cairn(data.path(), &[OsStr::new("--conformance-fixtures")]);
    let peer = peer_installed().then(|| Server::start(Command::new("node").arg(PEER)));
    let echo_runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ECHO_THREADS)
        .enable_all()
        .build()
        .expect("a runtime");
    let echo = echo_runtime.block_on(serve_echo());

    load::run(&Stateless(TOOL), cairn.address, CALLERS, WARM);
    if let Some(peer) = &peer {
        load::run(&Session, peer.address, CALLERS, WARM);
    }
    let mut rounds = Rounds::default();
    for _ in 0..ROUNDS {
        let fdatasync = |place| milliseconds(fdatasync_p50(data.path(), place));
        rounds.appended.push(fdatasync(Place::End));
        rounds.overwritten.push(fdatasync(Place::Over));
        rounds.alone.push(load::run(&Stateless(TOOL), cairn.address, 1, ROUND_ALONE));
        rounds.cairn.push(load::run(&Stateless(TOOL), cairn.address, CALLERS, ROUND));
        if let Some(peer) = &peer {
            rounds.peer.push(load::run(&Session, peer.address, CALLERS, ROUND));
        }
        rounds.axum.push(load::run(&Echo, echo, CALLERS, ROUND_ALONE));
    }
    rounds.print();
}

#[derive(Default)]
struct Rounds {
    appended: Vec<f64>,
    overwritten: Vec<f64>,
    alone: Vec<Load>,
    cairn: Vec<Load>,
    peer: Vec<Load>,
    axum: Vec<Load>,
}

impl Rounds {
    fn print(self) {
        let rates = |loads: &[Load]| loads.iter().map(|load| load.rate).collect::<Vec<f64>>();
        let p50 = |loads: &[Load]| loads.iter().map(|load| milliseconds(load.p50)).collect();
        let p99 = |loads: &[Load]| loads.iter().map(|load| milliseconds(load.p99)).collect();
        row("fdatasync p50, growing file", "ms", self.appended, Bound::None);
        let fdatasync = row("fdatasync p50, overwritten file", "ms", self.overwritten, Bound::None);
        row("axum echo, 64 callers", "calls/s", rates(&self.axum), Bound::None);
        let name = "recorded call, 64 callers";
        row(name, "calls/s", rates(&self.cairn), Bound::AtLeast(RATE_MIN));
        row("recorded call, 64 callers, p50", "ms", p50(&self.cairn), Bound::None);
        row("recorded call, 64 callers, p99", "ms", p99(&self.cairn), Bound::None);
        let most = Bound::AtMost(2.0 * fdatasync + ALONE_EXTRA_MS);
        row("recorded call, one caller, p50", "ms", p50(&self.alone), most);
        row("recorded call, one caller, p99", "ms", p99(&self.alone), Bound::None);
        if self.peer.is_empty() {
            absent("TypeScript SDK 1.x", "run tests/clients/setup first");
            return;
        }
        let peer = rates(&self.peer);
        row("TypeScript SDK 1.x unrecorded, 64 callers", "calls/s", peer.clone(), Bound::None);
        row("TypeScript SDK 1.x, 64 callers, p50", "ms", p50(&self.peer), Bound::None);
        // Neighbours in time are compared, so that a disturbance of the machine meets both.
        let ratios = rates(&self.cairn).into_iter().zip(&peer).map(|(ours, theirs)| ours / theirs);
        let name = "recorded call over TypeScript SDK 1.x";
        row(name, "times", ratios.collect(), Bound::AtLeast(RATIO_MIN));
    }
}

fn peer_installed() -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients/node_modules/@modelcontextprotocol/sdk")
        .exists()
}

/// A server that reads JSON and writes it again: what the network and the framework cost.
async fn serve_echo() -> SocketAddr {
    let echo = async |body: Bytes| match serde_json::from_slice::<Value>(&body) {
        Ok(value) => (StatusCode::OK, value.to_string()),
        Err(err) => (StatusCode::BAD_REQUEST, err.to_string()),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let app = Router::new().route("/mcp", post(echo));
    // Ends with the runtime.
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Revision 2026-07-28: each call stands alone.
pub struct Stateless(pub &'static str);

impl Script for Stateless {
    async fn open(&self, _: &mut Client) -> String {
        let tool = self.0;
        format!("mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n")
    }

    fn request(&self, opened: &str, connection: usize, turn: u64) -> Vec<u8> {
        let meta = r#","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}"#;
        load::post("/mcp", opened, &call(self.0, connection, turn, meta))
    }

    fn fits(&self, body: &[u8]) -> bool {
        has(body, br#""result""#) && has(body, br#""io.cairn/event""#)
    }
}

/// The session era: one session a connection.
struct Session;

impl Script for Session {
    async fn open(&self, client: &mut Client) -> String {
        let hello = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}"#;
        let answer = client.ask(&load::post("/mcp", "", hello)).await;
        let session = answer.header("mcp-session-id").expect("a session").to_owned();
        let headers = format!("mcp-session-id: {session}\r\nmcp-protocol-version: 2025-11-25\r\n");
        let ready = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        client.ask(&load::post("/mcp", &headers, ready)).await;
        headers
    }

    fn request(&self, opened: &str, connection: usize, turn: u64) -> Vec<u8> {
        load::post("/mcp", opened, &call(TOOL, connection, turn, ""))
    }

    fn fits(&self, body: &[u8]) -> bool {
        has(body, br#""result""#)
    }
}

struct Echo;

impl Script for Echo {
    async fn open(&self, _: &mut Client) -> String {
        String::new()
    }

    fn request(&self, opened: &str, connection: usize, turn: u64) -> Vec<u8> {
        load::post("/mcp", opened, &call(TOOL, connection, turn, ""))
    }

    fn fits(&self, body: &[u8]) -> bool {
        has(body, b"tools/call")
    }
}

/// A call like no other of its connection, so that its input is stored anew.
fn call(tool: &str, connection: usize, turn: u64, meta: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":"{connection}-{turn}","method":"tools/call","params":{{"name":"{tool}","arguments":{{"message":"echo {connection} {turn}"}}{meta}}}}}"#
    )
}

fn has(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}
