//! Skills: what servers list of them passes, each skill leads to its own server, and its manifest is a contract.

use cairn::event::Body;
use serde_json::{Value, json};

use crate::{
    harness::temp,
    record,
    speech::{Connection, ask},
    upstream::{Upstream, serve},
};

fn skill(name: &str, digit: char) -> String {
    let digest = format!("sha256:{}", digit.to_string().repeat(64));
    let uri = format!("skill://{name}/SKILL.md");
    format!(
        r#"{{"uri":"{uri}","frontmatter":{{"name":"{name}","description":"d","x-kept":1.50}},"resources":[{{"uri":"{uri}","digest":"{digest}","size":8}}]}}"#
    )
}

fn uris(listed: &Value) -> Vec<&str> {
    let skills = listed["result"]["skills"].as_array().unwrap_or_else(|| panic!("{listed}"));
    skills.iter().filter_map(|skill| skill["uri"].as_str()).collect()
}

#[test]
fn the_skills_of_one_server_pass_as_it_wrote_them() {
    let data = temp();
    let upstream = Upstream::new(&["tool"]);
    upstream.write("skills", &skill("pdf", 'a'));
    let server = serve(data.path(), &upstream.table("up", ""));
    let declared = ask(&server, "server/discover", json!({}));
    let extensions = &declared["result"]["capabilities"]["extensions"];
    assert_eq!(extensions["io.modelcontextprotocol/skills"]["directoryRead"], true, "{declared}");
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "skills/list", "params": {}});
    let reply = session.ask(&list).expect("the server answers");
    assert!(reply.text().contains(&skill("pdf", 'a')), "{}", reply.text());
    let got = ask(&server, "skills/get", json!({"uri": "skill://pdf/SKILL.md"}));
    assert_eq!(got["result"]["skill"]["frontmatter"]["x-kept"], 1.5, "{got}");
    let missing = ask(&server, "skills/get", json!({"uri": "skill://other/SKILL.md"}));
    assert_eq!(missing["error"]["code"], -32602, "{missing}");
    let directory = ask(&server, "resources/directory/read", json!({"uri": "skill://pdf"}));
    assert_eq!(directory["result"]["resources"][0]["uri"], "skill://pdf/SKILL.md", "{directory}");

    // The manifest is a contract: the same again is the same, another digest another one that names it.
    ask(&server, "skills/list", json!({}));
    upstream.write("skills", &skill("pdf", 'b'));
    ask(&server, "skills/list", json!({}));
    assert!(server.stop().success());
    let events = record::check(data.path());
    let published: Vec<_> = events
        .iter()
        .filter_map(|event| match event.body() {
            Some(Body::ContractPublished(facts)) if facts.source == "up/skills" => Some(facts),
            _ => None,
        })
        .collect();
    assert_eq!(published.len(), 2, "{published:?}");
    assert_eq!(published[1].prev, Some(published[0].contract));
    assert_eq!(published[0].name, "skill://pdf/SKILL.md");
}

#[test]
fn skills_of_one_uri_at_two_servers_are_both_reached() {
    let data = temp();
    let (one, two) = (Upstream::new(&["tool"]), Upstream::new(&["tool"]));
    one.write("skills", &skill("pdf", 'a'));
    two.write("skills", &[skill("pdf", 'b'), skill("csv", 'c')].join("\n"));
    one.write("contents", "of one");
    two.write("contents", "of two");
    let server = serve(data.path(), &[one.table("one", ""), two.table("two", "")].concat());
    let listed = ask(&server, "skills/list", json!({}));
    let here = "skill://two~/pdf/SKILL.md";
    assert_eq!(uris(&listed), ["skill://pdf/SKILL.md", here, "skill://csv/SKILL.md"]);
    let second = &listed["result"]["skills"][1];
    assert_eq!(second["resources"][0]["uri"], here, "{second}");
    assert_eq!(second["resources"][0]["digest"], format!("sha256:{}", "b".repeat(64)));
    for (uri, digit, text) in [
        ("skill://pdf/SKILL.md", "a", "of one"),
        (here, "b", "of two"),
        ("skill://csv/SKILL.md", "c", "of two"),
    ] {
        let got = ask(&server, "skills/get", json!({"uri": uri}));
        let skill = &got["result"]["skill"];
        assert_eq!(skill["uri"], uri, "{got}");
        assert_eq!(skill["resources"][0]["digest"], format!("sha256:{}", digit.repeat(64)), "{uri}");
        let read = ask(&server, "resources/read", json!({"uri": uri}));
        assert_eq!(read["result"]["contents"][0]["text"], text, "{uri}: {read}");
    }
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn without_skills_there_is_no_such_method() {
    let data = temp();
    let server = serve(data.path(), &Upstream::new(&["tool"]).table("up", ""));
    let answer = ask(&server, "skills/list", json!({}));
    assert_eq!(answer["error"]["code"], -32601, "{answer}");
    assert!(server.stop().success());
}
