//! Tests of pictures: what stands where, and that no text becomes markup.

use super::*;
use crate::workflow::graph::Node;

fn node(id: &str, status: &str, duration_ms: Option<u64>) -> Node {
    Node { id: id.to_owned(), label: "act".to_owned(), status: status.to_owned(), duration_ms }
}

fn plain(names: &[&str], edges: &[(&str, &str)]) -> Graph {
    let nodes = names.iter().map(|name| node(name, "pending", None)).collect();
    Graph::new("run", nodes, edges.iter().copied())
}

/// Returns the corners of the boxes of a graph, by place.
fn corners(graph: &Graph) -> Vec<(i64, i64)> {
    let layout = Layout::of(graph);
    layout.place.iter().map(|spot| layout.corner(spot.expect("small graphs are drawn whole"))).collect()
}

#[test]
fn a_diamond_is_symmetric() {
    let graph = plain(&["a", "b", "c", "d"], &[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]);
    let at = corners(&graph);
    assert_eq!((at[0].0, at[1].0, at[2].0, at[3].0), (24, 264, 264, 504));
    assert_eq!(at[2].1 - at[1].1, BOX_HEIGHT + ROW_GAP);
    assert_eq!((at[0].1, at[0].1), (at[3].1, (at[1].1 + at[2].1) / 2));
}

#[test]
fn a_chain_beside_a_shortcut_leaves_it_room() {
    let graph = plain(&["a", "b", "c", "d"], &[("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]);
    let layout = Layout::of(&graph);
    let bends = layout.bends[&3].clone();
    assert_eq!(bends.len(), 2);
    let apart = (layout.middle[bends.start] - layout.middle[1]).abs();
    assert!(apart >= (BOX_HEIGHT / 2 + ROW_GAP) as f64, "{apart}");
}

#[test]
fn no_two_boxes_of_a_column_overlap() {
    let names: Vec<String> = (0..120).map(|number| format!("s{number}")).collect();
    let edge = |number: usize| (names[number * 7 % (number + 1) / 2].as_str(), names[number + 1].as_str());
    let edges: Vec<_> =
        (0..119).map(edge).chain((0..50).map(|n| (names[n].as_str(), names[n + 60].as_str()))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut at = corners(&plain(&names, &edges));
    at.sort_unstable();
    for pair in at.windows(2) {
        assert!(pair[0].0 != pair[1].0 || pair[1].1 - pair[0].1 >= BOX_HEIGHT, "{pair:?}");
    }
}

#[test]
fn status_duration_and_the_critical_path_are_seen() {
    let nodes = vec![node("a", "succeeded", Some(1500)), node("b", "failed", None), node("c", "odd", None)];
    let svg = draw(&Graph::new("run", nodes, [("a", "b"), ("a", "c")]));
    for part in [
        "<title>run: 1 succeeded, 1 failed, 1 pending</title>",
        "<title>a: act, succeeded, 1.5 s</title>",
        "fill=\"#fde4e1\" stroke=\"#c62828\" stroke-width=\"3\"",
        "stroke=\"#1f2328\" stroke-width=\"3\"",
        "stroke=\"#8b949e\" stroke-width=\"1\"",
    ] {
        assert!(svg.contains(part), "{part} is not in\n{svg}");
    }
}

#[test]
fn text_stays_text() {
    let evil = "</title><script>&\"'\u{0}\u{ffff}";
    let svg = draw(&Graph::new(evil, vec![node(evil, evil, None)], []));
    assert!(!svg.contains("<script"), "{svg}");
    assert!(!svg.contains(['\u{0}', '\u{ffff}']), "{svg}");
    assert_eq!(svg.matches("<title>").count(), svg.matches("</title>").count());
}

#[test]
fn a_picture_is_bounded() {
    let names: Vec<String> = (0..10_000).map(|number| format!("s{number}")).collect();
    let nodes = || names.iter().map(|name| node(name, "pending", None)).collect();
    let chain = || names.windows(2).map(|pair| (pair[0].as_str(), pair[1].as_str()));
    let first = || names[2..].iter().map(|name| ("s0", name.as_str()));
    for svg in [
        draw(&Graph::new("chain", nodes(), chain())),
        draw(&Graph::new("star", nodes(), first())),
        draw(&Graph::new("both", nodes(), chain().chain(first()))),
        draw(&Graph::new("none", Vec::new(), [])),
    ] {
        assert!(svg.len() < 1024 * 1024, "{} bytes", svg.len());
    }
}
