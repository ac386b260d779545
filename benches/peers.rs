//! Many nodes in one process: they start together, join the table, find and reach one another.
//!
//! `cargo bench --profile dist --bench peers [-- NODES]`, 50 by default. Fails where a node cannot be found or reached.

use std::time::{Duration, Instant};

use cairn::{
    block::{Cid, Codec},
    p2p::{self, Settings, Wire, handle::Net},
};
use tokio::task::JoinSet;

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Questions whose times are told.
const ROUNDS: usize = 200;

#[tokio::main]
async fn main() {
    let count = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(50_usize);
    let before = resident_kib();
    let begun = Instant::now();
    let mut nodes = Vec::new();
    for n in 0..count {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&n.to_le_bytes());
        let settings = Settings { connections_max: 4 * count as u32, ..Settings::new(seed) };
        let (net, mut inbound) = p2p::start(settings).expect("loopback can be listened on");
        net.listening(PATIENCE).await.expect("listens");
        tokio::spawn(async move { while inbound.recv().await.is_some() {} });
        nodes.push(net);
    }
    told("all listen", begun);

    let contract = Cid::of(Codec::Raw, b"contract");
    nodes[count / 3].provide(vec![contract]).await.expect("provided");
    let begun = Instant::now();
    let mut joining = JoinSet::new();
    for net in &nodes[1..] {
        let (net, first, addrs) = (net.clone(), nodes[0].local(), nodes[0].addrs());
        joining.spawn(async move {
            net.dial(&first, addrs, PATIENCE).await.expect("the first is reached");
            net.bootstrap_dht().await.expect("the table is joined");
        });
    }
    joining.join_all().await;
    told("all have joined", begun);

    let mut asking = JoinSet::new();
    for (n, net) in nodes.iter().cloned().enumerate() {
        let other = nodes[(n + 1 + n * 7 % (count - 1)) % count].local();
        asking.spawn(async move {
            let addrs = net.find_peer(&other, PATIENCE).await.expect("the table answers");
            net.dial(&other, addrs, PATIENCE).await.expect("reached where the table says");
        });
    }
    asking.join_all().await;
    told("each has found and reached another", begun);
    let provider = nodes[count / 3].local();
    for net in nodes.iter().filter(|net| net.local() != provider) {
        while net.providers(contract, PATIENCE).await.expect("the table answers").is_empty() {
            assert!(begun.elapsed() < PATIENCE, "a provider is not found");
        }
    }
    told("each has found who serves a contract", begun);
    println!(
        "{:<40} {:>9.1} MiB",
        "resident, each node",
        (resident_kib() - before) as f64 / 1024.0 / count as f64
    );

    let asker = &nodes[count - 1];
    times("who serves a contract", asker, async |net| drop(net.providers(contract, PATIENCE).await)).await;
    times("a stream", asker, async |net| drop(net.open(&nodes[0].local(), Wire::Mcp).await)).await;
    times("dial, identify, disconnect", asker, async |net| {
        net.disconnect(&nodes[1].local()).await;
        net.dial(&nodes[1].local(), nodes[1].addrs(), PATIENCE).await.expect("reached");
    })
    .await;
}

async fn times(what: &str, net: &Net, ask: impl AsyncFn(&Net)) {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        ask(net).await;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let (middle, tail) = (times[ROUNDS / 2], times[ROUNDS * 99 / 100]);
    println!("{what:<40} p50 {middle:>9.2?} p99 {tail:>9.2?}");
}

fn told(what: &str, begun: Instant) {
    println!("{what:<40} {:>9.2?}", begun.elapsed());
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}
