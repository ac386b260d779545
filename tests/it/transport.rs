//! The way to an upstream over HTTP: proxies, authorities, what we say of ourselves, and what is told when it is barred.

use std::{path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    harness::{Process, Server, cairn, needs, python, temp},
    record,
    speech::{ask, call, result},
    upstream::{configure, serve},
};

/// How long a small server may take to start.
const START_MAX: Duration = Duration::from_secs(30);
/// A port of loopback at which nobody listens.
const NOBODY: &str = "127.0.0.1:1";

/// A server of `hostile.py` with these faults, and its port.
fn hostile(faults: &[&str]) -> (Process, String) {
    let mut command = Command::new(needs("venv/bin/python"));
    command.arg(needs("../../src/runtime/upstream/tests/hostile.py")).args(faults);
    let process = Process::start(command);
    let port = process.line(START_MAX).expect("it says its port");
    (process, port)
}

fn table(name: &str, url: &str) -> String {
    format!("[[upstream]]\nname = {name:?}\nurl = {url:?}\n")
}

/// A server with this configuration and environment.
fn serve_in(data: &Path, config: &str, environment: &[(&str, &str)]) -> Server {
    let config = configure(data, config);
    let mut command = cairn(&["serve", "--listen", "127.0.0.1:0", "--config", &config, "--data"]);
    command.arg(data).envs(environment.iter().copied());
    Server::start_as(command)
}

fn error(result: &Value) -> (&str, &str) {
    let error = &result["_meta"]["io.cairn/error"];
    let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("no {key}: {result}"));
    (text("code"), text("message"))
}

#[test]
fn an_upstream_is_reached_through_a_proxy_and_hears_who_asks() {
    let data = temp();
    let (_upstream, port) = hostile(&["named=counts"]);
    let proxy = format!("http://127.0.0.1:{port}");
    // The upstream is its own proxy: it answers whatever host is asked for.
    let config =
        [table("far", "http://upstream.invalid/mcp"), table("near", &format!("{proxy}/mcp"))].concat();
    let environment = [("HTTP_PROXY", proxy.as_str()), ("NO_PROXY", "127.0.0.1")];
    let server = serve_in(data.path(), &config, &environment);
    let told = result(&server, "far_counts", json!({}));
    assert_eq!(told["agent"], concat!("cairn/", env!("CARGO_PKG_VERSION")), "{told}");
    assert!(server.stop().success());

    let environment = [("HTTP_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "127.0.0.1")];
    let server = serve_in(data.path(), &config, &environment);
    assert!(result(&server, "near_counts", json!({}))["counts"].is_object());
    let far = result(&server, "far_counts", json!({}));
    assert_eq!(error(&far).0, "unavailable", "{far}");
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn an_authority_of_ones_own_is_trusted_by_its_file() {
    let data = temp();
    let certificates = temp();
    let dir = certificates.path().to_str().expect("temporary paths are text");
    python("certificates.py", &[dir]).succeeded();
    let (_upstream, port) = hostile(&["named=counts", &format!("tls={dir}/server.pem")]);
    let config = table("up", &format!("https://127.0.0.1:{port}/mcp"));
    let authority = format!("{dir}/ca.pem");
    let server = serve_in(data.path(), &config, &[("SSL_CERT_FILE", &authority)]);
    assert!(result(&server, "up_counts", json!({}))["counts"].is_object());
    assert!(server.stop().success());

    let fresh = temp();
    let server = serve_in(fresh.path(), &config, &[]);
    let refused = result(&server, "up_counts", json!({}));
    assert!(error(&refused).1.contains("certificate"), "{refused}");
    assert!(server.stop().success());
}

#[test]
fn an_upstream_that_was_never_reached_is_told_as_that() {
    let data = temp();
    let server = serve(data.path(), &table("down", &format!("http://{NOBODY}/mcp?key=hush")));
    let refused = result(&server, "down_any", json!({}));
    let (code, message) = error(&refused);
    assert_eq!(code, "unavailable", "{refused}");
    assert!(message.starts_with("upstream down is unavailable: ") && !message.contains("hush"), "{message}");
    let unknown = ask(&server, "tools/call", call("other_any", &json!({})));
    assert_eq!(unknown["error"]["code"], -32602, "{unknown}");
    let prompt = ask(&server, "prompts/get", json!({"name": "down_any"}));
    assert!(prompt["error"]["message"].is_string(), "{prompt}");
    assert!(server.stop().success());
    record::check(data.path());
}

#[test]
fn tools_are_offered_whatever_becomes_of_the_other_lists() {
    let data = temp();
    let (_upstream, port) = hostile(&[
        "named=counts",
        "prompts=silent",
        "resources=\"error\":{\"code\":-32603}",
        "templates=\"result\":null",
    ]);
    let server = serve(data.path(), &table("up", &format!("http://127.0.0.1:{port}/mcp")));
    let listed = ask(&server, "tools/list", json!({}));
    assert!(listed.to_string().contains("\"up_counts\""), "{listed}");
    assert!(result(&server, "up_counts", json!({}))["counts"].is_object());
    assert!(server.stop().success());
}
