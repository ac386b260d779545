//! Tests of graphs as text: statuses, the critical path, and labels that try to be markup.

use super::*;

#[test]
fn text_shows_status_and_the_critical_path() {
    let graph = Graph::told("a:succeeded:1200 b:failed c:odd a>b a>c");
    let dot = dot(&graph);
    assert!(
        dot.contains(
            r##"n0 [label="a\ndo-a\nsucceeded, 1.2 s", fillcolor="#e2f5e6", color="#2e8540", penwidth=3]"##
        ),
        "{dot}"
    );
    assert!(dot.contains("n0 -> n1 [penwidth=3];\n  n0 -> n2;"), "{dot}");
    let mermaid = mermaid(&graph);
    for line in [
        "  n0[\"a<br/>do-a<br/>succeeded, 1.2 s\"]\n",
        "  n0 --> n1\n",
        "  classDef failed fill:#fde4e1,stroke:#c62828,color:#1f2328\n  class n1 failed\n",
        "  class n2 pending\n",
        "  linkStyle 0 stroke-width:3px\n",
    ] {
        assert!(mermaid.contains(line), "{line} is not in\n{mermaid}");
    }
}

#[test]
fn no_label_becomes_markup() {
    let evil = "\"];x[\"\\\n`<script>&#35;%%{init}";
    let node =
        Node { id: evil.to_owned(), label: evil.to_owned(), status: evil.to_owned(), duration_ms: None };
    let graph = Graph::new(evil, vec![node], [(evil, evil)]);
    let dot = dot(&graph);
    let unescaped = dot.replace("\\\\", "").replace("\\\"", "");
    assert!(unescaped.lines().all(|line| line.matches('"').count() % 2 == 0), "{dot}");
    assert!(!unescaped.contains("x[\""), "{dot}");
    let mermaid = mermaid(&graph);
    for markup in ["<script", "`", "%%", "&", "x[\"", "{"] {
        assert!(!mermaid.contains(markup), "{markup} in\n{mermaid}");
    }
}
