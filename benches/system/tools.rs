//! A large catalogue, an empty start, and the size of the program.

use std::{
    ffi::OsStr,
    fs,
    time::{Duration, Instant},
};

use crate::{
    data_dir,
    load::{self, Client},
    server::{CAIRN, Server},
    table::{Bound, milliseconds, quantile, row},
};

const ROUNDS: usize = 5;
/// Lists in one round.
const LISTS: usize = 100;
/// Tools of the upstream server.
const TOOLS: usize = 400;
/// How long the upstream may take until all its tools are on offer.
const OFFER_MAX: Duration = Duration::from_secs(30);

const LIST_MAX_MS: f64 = 20.0;
const START_MAX_MS: f64 = 100.0;
const SIZE_MAX_MB: f64 = 40.0;

const UPSTREAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/tools400.py");

pub fn section() {
    let mut starts = Vec::new();
    for _ in 0..ROUNDS {
        let data = tempfile::tempdir_in(data_dir()).expect("a directory");
        let server = Server::cairn(data.path(), &[]);
        starts.push(milliseconds(server.started_in));
        server.stop();
    }
    row("cold start of an empty server", "ms", starts, Bound::AtMost(START_MAX_MS));
    let size = fs::metadata(CAIRN).expect("the program is built").len() as f64 / 1e6;
    row("size of the program", "MB", vec![size], Bound::AtMost(SIZE_MAX_MB));

    let data = tempfile::tempdir_in(data_dir()).expect("a directory");
    let config = data.path().join("cairn.toml");
    let text = format!(
        "[[upstream]]\nname = \"many\"\ncommand = \"python3\"\nargs = [{UPSTREAM:?}]\nprefix = \"\"\n"
    );
    fs::write(&config, text).expect("the configuration is written");
    let log = data.path().join("data");
    let server = Server::cairn(&log, &[OsStr::new("--config"), config.as_os_str()]);
    let rounds = load::runtime().block_on(lists(&server));
    row("list of 400 upstream tools, p50", "ms", rounds, Bound::AtMost(LIST_MAX_MS));
    server.stop();
}

/// Whole lists, page after page: the median time of each round, in milliseconds.
async fn lists(server: &Server) -> Vec<f64> {
    let mut client = Client::connect(server.address).await;
    let begun = Instant::now();
    while list(&mut client).await < TOOLS {
        assert!(begun.elapsed() < OFFER_MAX, "the upstream's tools do not appear");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut times = Vec::new();
        for _ in 0..LISTS {
            let begun = Instant::now();
            list(&mut client).await;
            times.push(begun.elapsed());
        }
        rounds.push(milliseconds(quantile(&mut times, 0.5)));
    }
    rounds
}

/// Reads the whole list, and gives the number of tools on it.
async fn list(client: &mut Client) -> usize {
    let headers = "mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/list\r\n";
    let mut cursor = String::new();
    let mut listed = 0;
    loop {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{{cursor}"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{{"name":"bench","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#
        );
        let answer = client.ask(&load::post("/mcp", headers, &body)).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(answer.body));
        let answer: List = serde_json::from_slice(answer.body).expect("a list");
        listed += answer.result.tools.len();
        match answer.result.next {
            Some(next) => cursor = format!(r#""cursor":{},"#, serde_json::json!(next)),
            None => return listed,
        }
    }
}

#[derive(serde::Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    result: Page<'a>,
}

#[derive(serde::Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    tools: Vec<&'a serde_json::value::RawValue>,
    #[serde(rename = "nextCursor")]
    next: Option<String>,
}
