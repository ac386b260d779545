//! Resources of several servers: each is reached by a URI that leads to its own server.

use serde_json::{Value, json};

use crate::{
    harness::temp,
    record,
    speech::{Connection, ask, result},
    upstream::{Upstream, serve},
};

/// A tool with a page, as MCP Apps name it.
fn paged(name: &str) -> String {
    json!({"name": name, "inputSchema": {"type": "object"}, "_meta": {"ui": {"resourceUri": "ui://app/page.html", "n": 1}}})
        .to_string()
}

fn uris(answer: &Value, list: &str, key: &str) -> Vec<String> {
    let listed = answer["result"][list].as_array().unwrap_or_else(|| panic!("{answer}"));
    listed.iter().filter_map(|entry| entry[key].as_str()).map(str::to_owned).collect()
}

#[test]
fn resources_of_one_uri_at_two_servers_are_both_reached() {
    let data = temp();
    let (one, two) =
        (Upstream::new(&[&paged("show"), "links"]), Upstream::new(&[&paged("show"), "links", "plain"]));
    one.write("contents", "of one");
    two.write("contents", "of two");
    let linking = |uri: &str| {
        json!({"content": [{"type": "resource_link", "uri": uri, "name": "l"}, {"type": "text", "text": uri}]}).to_string()
    };
    one.write("links.result", &linking("note://seven"));
    two.write("links.result", &linking("mem://one"));
    two.write("plain.result", &linking("note://eight"));
    let mut server = serve(data.path(), &[one.table("one", ""), two.table("two", "")].concat());
    let listed = ask(&server, "resources/list", json!({}));
    assert_eq!(uris(&listed, "resources", "uri"), ["mem://one", "mem://two~/one"]);
    assert_eq!(listed["result"]["resources"][1]["x-kept"], 1.5);
    let templates = ask(&server, "resources/templates/list", json!({}));
    assert_eq!(uris(&templates, "resourceTemplates", "uriTemplate"), ["mem://{id}", "mem://two~/{id}"]);

    let read =
        |uri: &str| ask(&server, "resources/read", json!({"uri": uri}))["result"]["contents"][0].clone();
    for (uri, text, own) in [
        ("mem://one", "of one", "mem://one"),
        ("mem://two~/one", "of two", "mem://one"),
        ("mem://two~/anything", "of two", "mem://anything"),
        ("mem://TWO~/anything", "of two", "mem://anything"),
        ("mem://anything", "of one", "mem://anything"),
        ("ui://app/page.html", "of one", "ui://app/page.html"),
        ("ui://two~/app/page.html", "of two", "ui://app/page.html"),
    ] {
        let contents = read(uri);
        assert_eq!((contents["text"].as_str(), contents["uri"].as_str()), (Some(text), Some(own)), "{uri}");
    }
    let tools = ask(&server, "tools/list", json!({}));
    let page = |name: &str| {
        let tools = tools["result"]["tools"].as_array().expect("tools");
        let tool = tools.iter().find(|tool| tool["name"] == name).unwrap_or_else(|| panic!("{name}"));
        tool["_meta"]["ui"].clone()
    };
    assert_eq!(page("one_show"), json!({"resourceUri": "ui://app/page.html", "n": 1}));
    assert_eq!(page("two_show"), json!({"resourceUri": "ui://two~/app/page.html", "n": 1}));

    // A link leads to the server that gave it: by another URI where one lists the same, else by who gave it last.
    let nowhere = ask(&server, "resources/read", json!({"uri": "note://eight"}));
    assert_eq!(nowhere["error"]["code"], -32602, "{nowhere}");
    let linked = result(&server, "two_links", json!({}));
    assert_eq!(linked["content"][0]["uri"], "mem://two~/one", "{linked}");
    assert_eq!(linked["content"][1]["text"], "mem://one", "text is nobody's to change: {linked}");
    assert_eq!(result(&server, "one_links", json!({}))["content"][0]["uri"], "note://seven");
    assert_eq!(result(&server, "two_plain", json!({}))["content"][0]["uri"], "note://eight");
    assert_eq!(
        (read("note://seven")["text"].as_str(), read("note://eight")["text"].as_str()),
        (Some("of one"), Some("of two"))
    );

    // Completion and a session find the same.
    let reference = json!({"type": "ref/resource", "uri": "mem://two~/{id}"});
    let completed = ask(
        &server,
        "completion/complete",
        json!({"ref": reference, "argument": {"name": "id", "value": "x"}}),
    );
    assert_eq!(completed["result"]["completion"]["values"], json!(["x-done"]), "{completed}");
    let mut session = Connection::open(&server.url).expect("the server listens");
    session.initialize();
    let answer = session.request(3, "resources/read", json!({"uri": "mem://two~/one"}));
    assert_eq!(answer["result"]["contents"][0]["text"], "of two", "{answer}");

    two.offer(&[&paged("show"), "links", "later"]);
    record::until("the later tool", || {
        ask(&server, "tools/list", json!({})).to_string().contains("two_later").then_some(())
    });
    server.process.signal("TERM");
    assert!(server.process.wait(record::PATIENCE).success());
    let told = server.process.last_errors();
    assert_eq!(told.matches("an earlier source has the URI of a resource").count(), 2, "once a URI: {told}");
    record::check(data.path());
}
