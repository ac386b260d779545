//! Graphs of a few steps and of many, and what they read as.

use super::*;

fn critical(text: &str) -> String {
    let graph = Graph::told(text);
    graph
        .critical_path()
        .into_iter()
        .map(|place| graph.nodes[place].id.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_critical_path_is_the_longest_by_time_then_by_steps_then_by_name() {
    for (text, expected) in [
        ("a", "a"),
        ("a b c a>b a>c", "a b"),
        ("a b c a>c a>b", "a b"),
        ("a:succeeded:5 b:succeeded:90 c:succeeded:100 d:succeeded:5 a>b a>c b>d c>d", "a c d"),
        ("a b:succeeded:900 c d a>c c>d", "b"),
        ("a:succeeded:0 b:succeeded:0 c:succeeded:0 a>b b>c", "a b c"),
        ("a b c d a>d b>c c>d", "b c d"),
        ("a b x y a>x b>y", "a x"),
        ("a a>a", ""),
        ("a b a>b a>nobody nobody>b", "a b"),
    ] {
        assert_eq!(critical(text), expected, "{text}");
    }
    assert_eq!(Graph::new("none", Vec::new(), []).critical_path(), [0_usize; 0]);
}

#[test]
fn a_graph_is_read_from_its_own_json() {
    let graph = Graph::told("a:succeeded:12 b:running c a>b b>c");
    let json = graph.json();
    assert_eq!(Graph::read("g", &json), Some(graph));
    assert_eq!(
        json,
        json!({
            "nodes": [
                {"id": "a", "label": "do-a", "status": "succeeded", "duration_ms": 12},
                {"id": "b", "label": "do-b", "status": "running"},
                {"id": "c", "label": "do-c", "status": "pending"},
            ],
            "edges": [{"from": "a", "to": "b"}, {"from": "b", "to": "c"}],
            "critical_path": ["a", "b", "c"],
        })
    );
    assert_eq!(Graph::read("g", &json!({"nodes": [{"id": 7}], "edges": []})), None);
}

#[test]
fn ten_thousand_steps_are_walked_wide_and_deep() {
    let node = |place: usize| Node {
        id: format!("s{place}"),
        label: String::new(),
        status: "succeeded".to_owned(),
        duration_ms: Some(1),
    };
    let names: Vec<String> = (0..10_000).map(|place| format!("s{place}")).collect();
    let chain = names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str()));
    let chain = Graph::new("chain", (0..10_000).map(node).collect(), chain);
    assert_eq!(chain.critical_path().len(), 10_000);
    let star = names[1..].iter().map(|name| ("s0", name.as_str()));
    let star = Graph::new("star", (0..10_000).map(node).collect(), star);
    assert_eq!(star.critical_path(), [0, 1]);
}

#[test]
fn durations_have_two_units_at_most() {
    for (ms, expected) in [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_250, "1.2 s"),
        (59_999, "59.9 s"),
        (61_000, "1 min 01 s"),
        (3_600_000, "1 h 00 min"),
    ] {
        assert_eq!(span(ms), expected);
    }
}
