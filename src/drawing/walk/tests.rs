//! Checks that no text of a walk becomes markup of its picture.

use super::*;
use crate::{block::Codec, query::walk::Other};

#[test]
fn no_subject_becomes_markup() {
    let evil = "\"];x[\"\\\n`<script>&#35;%%{init}%%;";
    let event = |text: &str| What::Event {
        seq: 1,
        kind: text.to_owned(),
        subject: text.to_owned(),
        actor: text.to_owned(),
        ts: 1,
    };
    let contract = What::Contract { name: evil.to_owned(), source: evil.to_owned() };
    let cid = |n: u8| Cid::of(Codec::DagCbor, &[n]);
    let other = Other { log: cid(9), origin: evil.to_owned() };
    let node = |n: u8, what: What| Node { cid: cid(n), what, log: Some(other.clone()), depth: 0 };
    let nodes = vec![node(1, event(evil)), node(2, contract), node(3, What::Foreign { peer: None })];
    let walk = Walk { nodes, edges: Vec::new(), truncated: false, frontier: Vec::new() };
    let dot = dot(&walk);
    let unescaped = dot.replace("\\\\", "").replace("\\\"", "");
    assert!(unescaped.lines().all(|line| line.matches('"').count() % 2 == 0), "{dot}");
    assert!(!unescaped.contains("x[\"") && !dot.replace("&amp;", "").contains('&'), "{dot}");
    let mermaid = mermaid(&walk);
    for markup in ["<script", "`", "%", "&", "x[\"", "{", "}"] {
        assert!(!mermaid.contains(markup), "{markup} in\n{mermaid}");
    }
}
