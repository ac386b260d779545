//! Tasks over HTTP: eight workers that claim in batches and complete each task by a call of its own.

use std::{net::SocketAddr, time::Instant};

use serde_json::{Value, json};

use crate::{
    data_dir,
    load::{self, Client, post},
    server::Server,
    table::{Bound, row},
};

const ROUNDS: usize = 5;
const WORKERS: usize = 8;
const SUBMITTERS: usize = 32;
const TASKS: usize = 8_000;
const BATCH: usize = 50;
const CHAIN: usize = 100;

const DRAIN_MIN: f64 = 2_500.0;

pub fn section() {
    let (mut drained, mut submitted, mut chained) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let data = tempfile::tempdir_in(data_dir()).expect("a directory for the log");
        let cairn = Server::cairn(data.path(), &[]);
        let (submits, drain) = load::runtime().block_on(tasks(cairn.address));
        submitted.push(submits);
        drained.push(drain);
        chained.push(load::runtime().block_on(chain(cairn.address)));
    }
    row("submits over HTTP, 32 callers", "tasks/s", submitted, Bound::None);
    row("claim and complete over HTTP, 8 workers", "tasks/s", drained, Bound::AtLeast(DRAIN_MIN));
    row("a chain of 100 steps that the node runs itself", "ms a step", chained, Bound::None);
}

async fn tasks(server: SocketAddr) -> (f64, f64) {
    let mut client = Client::connect(server).await;
    for n in 0..WORKERS {
        let worker =
            json!({"worker_id": format!("w{n}"), "capabilities": ["noop"], "max_concurrent_tasks": 100});
        call(&mut client, "worker_register", &worker).await;
    }
    let begun = Instant::now();
    let submits = (0..SUBMITTERS).map(|n| async move {
        let mut client = Client::connect(server).await;
        for turn in 0..TASKS / SUBMITTERS {
            let task =
                json!({"task_id": format!("t{n}-{turn}"), "task_type": "noop", "payload": {"n": turn}});
            call(&mut client, "task_submit", &task).await;
        }
    });
    futures_util::future::join_all(submits).await;
    let submits = TASKS as f64 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let workers = (0..WORKERS).map(|n| async move {
        let mut client = Client::connect(server).await;
        let worker = format!("w{n}");
        loop {
            let claim = json!({"worker_id": worker, "max_tasks": BATCH});
            let claimed = call(&mut client, "task_claim", &claim).await;
            let tasks = claimed["tasks"].as_array().cloned().unwrap_or_default();
            if tasks.is_empty() {
                return;
            }
            for task in tasks {
                let done = json!({
                    "worker_id": worker, "task_id": task["task_id"], "fence": task["fence"], "output": {},
                });
                call(&mut client, "task_complete", &done).await;
            }
        }
    });
    futures_util::future::join_all(workers).await;
    (submits, TASKS as f64 / begun.elapsed().as_secs_f64())
}

/// Milliseconds a step of a chain of builtin tool calls, from its submission to its end.
async fn chain(server: SocketAddr) -> f64 {
    let mut client = Client::connect(server).await;
    let step = |n: usize| match n {
        0 => json!({"step_id": "s0", "action": "tools_list_categories"}),
        n => json!({
            "step_id": format!("s{n}"), "action": "tools_list_categories", "depends_on": [format!("s{}", n - 1)],
        }),
    };
    let steps: Vec<Value> = (0..CHAIN).map(step).collect();
    let workflow = json!({"workflow_id": "chain", "name": "chain", "steps": steps});
    let begun = Instant::now();
    call(&mut client, "workflow_submit", &workflow).await;
    loop {
        let asked = json!({"workflow_id": "chain", "include_steps": false});
        let told = call(&mut client, "workflow_status", &asked).await;
        match told["status"].as_str() {
            Some("succeeded") => return begun.elapsed().as_secs_f64() * 1e3 / CHAIN as f64,
            Some("submitted" | "running") => {}
            _ => panic!("a chain of no-ops ends otherwise: {told}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// One tool call of revision 2026-07-28; its structured result.
async fn call(client: &mut Client, tool: &str, arguments: &Value) -> Value {
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {
            "name": tool, "arguments": arguments,
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    });
    let headers =
        format!("mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n");
    let answer = client.ask(&post("/mcp", &headers, &body.to_string())).await;
    let told: Value = serde_json::from_slice(answer.body).unwrap_or_default();
    let structured = &told["result"]["structuredContent"];
    assert!(structured["success"] == true, "an answer is not the wanted one: {} {told}", answer.head);
    structured.clone()
}
