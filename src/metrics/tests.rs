//! Tests of the text that a scrape returns.

use super::{Metrics, TOOLS_MAX, peers::Request};

#[test]
fn a_scrape_shows_what_was_counted() {
    let metrics = Metrics::new();
    metrics.call_ended("echo", "succeeded", "builtin", 0.002);
    metrics.call_ended("echo", "succeeded", "builtin", 90.0);
    metrics.commit(64, 0.003);
    metrics.queue_depth("ledger", 7);
    metrics.log_size(10, 4096);
    metrics.log_wal(8192, 1.5);
    metrics.sessions(3);
    metrics.upstream_up("files", true);
    metrics.peers.standing("connected", 2);
    metrics.peers.request(Request { direction: "out", method: "tools/call", known: true }, "ok");
    metrics.peers.request(Request { direction: "in", method: "made up", known: false }, "refused");
    metrics.peers.stream("out", "mcp");
    metrics.peers.searched("mdns", false);
    metrics.peers.bootstrapped(true);
    metrics.peers.followed("denied", 1);
    let text = metrics.encode();
    for line in [
        r#"cairn_calls_total{tool="echo",outcome="succeeded"} 2"#,
        r#"cairn_call_seconds_bucket{le="0.001",tool="echo",lane="builtin"} 0"#,
        r#"cairn_call_seconds_bucket{le="0.0025",tool="echo",lane="builtin"} 1"#,
        r#"cairn_call_seconds_bucket{le="60.0",tool="echo",lane="builtin"} 1"#,
        r#"cairn_call_seconds_bucket{le="+Inf",tool="echo",lane="builtin"} 2"#,
        r#"cairn_commit_events_bucket{le="64.0"} 1"#,
        "cairn_commit_seconds_count 1",
        r#"cairn_queue_depth{queue="ledger"} 7"#,
        "cairn_log_events 10",
        "cairn_log_bytes 4096",
        "cairn_log_wal_bytes 8192",
        "cairn_log_wal_held_seconds 1.5",
        "cairn_sessions 3",
        r#"cairn_upstream_up{upstream="files"} 1"#,
        r#"cairn_peers{status="connected"} 2"#,
        r#"cairn_peer_requests_total{direction="out",method="tools/call",class="known",outcome="ok"} 1"#,
        r#"cairn_peer_requests_total{direction="in",method="other",class="stranger",outcome="refused"} 1"#,
        r#"cairn_peer_streams_total{direction="out",wire="mcp"} 1"#,
        r#"cairn_discovery_total{source="mdns",outcome="failed"} 1"#,
        r#"cairn_bootstrap_total{outcome="ok"} 1"#,
        r#"cairn_followed{status="denied"} 1"#,
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn names_past_the_bound_are_counted_together() {
    let metrics = Metrics::new();
    for number in 0..TOOLS_MAX + 500 {
        metrics.call_ended(&format!("tool{number}"), "failed", "builtin", 0.1);
    }
    let text = metrics.encode();
    let series = text.lines().filter(|line| line.starts_with("cairn_calls_total")).count();
    assert_eq!(series, TOOLS_MAX + 1);
    assert!(text.contains(r#"cairn_calls_total{tool="other",outcome="failed"} 500"#));
}
