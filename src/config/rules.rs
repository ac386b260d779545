//! The rules of a configuration that its types do not express.
//!
//! Invariants:
//! - every broken rule is reported, not only the first;
//! - no rule reads a file, resolves a name or opens a socket.

use std::{collections::BTreeSet, net::IpAddr};

use http::{HeaderName, HeaderValue, Uri, uri::Authority};

use super::{
    AuthMode, Config, Server, Tool, Upstream,
    bounds::{DAY_MS, LISTED_MAX, NAME_MAX, bound, is_name, is_url, optional, plain_name, tool_name},
    oauth, offer, p2p,
    read::Report,
};
use crate::router::metadata::Retry;

const UPSTREAMS_MAX: usize = 256;
/// How the variables of this node itself begin.
const OURS: &str = "CAIRN_";
const HOUR_MS: u64 = 60 * 60 * 1000;

/// Adds a fault for every rule that `config` breaks.
pub(super) fn check(config: &Config, report: &mut Report) {
    server(&config.server, report);
    auth(config, report);
    let (log, tasks) = (&config.log, &config.tasks);
    bound("log.group_max", log.group_max as u64, 1..=1_024, report);
    bound("log.checkpoint_interval_ms", log.checkpoint_interval_ms, 10..=HOUR_MS, report);
    bound("tasks.lease_ms", tasks.lease_ms, 100..=DAY_MS, report);
    bound("tasks.ageing_ms", tasks.ageing_ms, 100..=DAY_MS, report);
    bound("tasks.max_queue", tasks.max_queue as u64, 1..=10_000_000, report);
    bound("tasks.max_attempts", tasks.max_attempts.into(), 1..=1000, report);
    for (key, rate) in &tasks.rates {
        bound(&format!("tasks.rates.{key}.interval_ms"), rate.interval_ms, 1..=DAY_MS, report);
        bound(&format!("tasks.rates.{key}.burst"), rate.burst, 1..=1_000_000, report);
    }
    p2p::check(&config.p2p, report);
    if config.telemetry.otlp_endpoint.is_some() {
        report.fault("telemetry.otlp_endpoint", "export of traces is not in this build; leave it out");
    }
    for name in config.capture.tools.keys() {
        tool_name("capture.tools", name, report);
    }
    for (name, lane) in &config.router.lanes {
        let place = format!("router.lanes.{name}");
        plain_name(&place, name, report);
        optional(&format!("{place}.concurrency"), lane.concurrency.map(|n| n as u64), 1..=10_000, report);
        optional(&format!("{place}.queue"), lane.queue.map(|n| n as u64), 0..=1_000_000, report);
        optional(&format!("{place}.timeout_ms"), lane.timeout_ms, 1..=DAY_MS, report);
    }
    for (name, metadata) in &config.tools {
        tool(name, metadata, report);
    }
    offer::check(&config.offer, report);
    upstreams(&config.upstream, report);
}

fn server(server: &Server, report: &mut Report) {
    bound("server.max_body_bytes", server.max_body_bytes as u64, 1024..=64 * 1024 * 1024, report);
    bound("server.request_timeout_ms", server.request_timeout_ms, 100..=HOUR_MS, report);
    bound("server.rate_limit_per_second", server.rate_limit_per_second.into(), 1..=1_000_000, report);
    bound("server.rate_limit_burst", server.rate_limit_burst.into(), 1..=1_000_000, report);
    if server.public_url.as_deref().is_some_and(|url| !is_url(url) || url.contains('?')) {
        report.fault("server.public_url", "expected http(s)://host[:port][/path], without user or query");
    }
    if server.tls_cert.is_some() != server.tls_key.is_some() {
        report.fault("server.tls_cert", "and server.tls_key are needed together");
    }
    if server.metrics_listen.is_some_and(|at| at == server.listen && at.port() != 0) {
        report.fault("server.metrics_listen", "is the address of server.listen; take another port");
    }
    for list in [&server.allowed_origins, &server.allowed_hosts] {
        if list.len() > LISTED_MAX {
            report.fault("server", format!("a list has more than {LISTED_MAX} entries"));
        }
    }
    for (index, origin) in server.allowed_origins.iter().enumerate() {
        let bare = origin.splitn(4, '/').count() == 3;
        if !is_url(origin) || !bare || *origin != origin.to_ascii_lowercase() {
            let place = format!("server.allowed_origins[{index}]");
            report.fault(&place, "expected http(s)://host[:port] in lower case, without a path or wildcard");
        }
    }
    for (index, host) in server.allowed_hosts.iter().enumerate() {
        if host.contains(['@', '*']) || host.parse::<Authority>().is_err() {
            report
                .fault(&format!("server.allowed_hosts[{index}]"), "expected name[:port], without a wildcard");
        }
    }
}

fn auth(config: &Config, report: &mut Report) {
    let auth = &config.auth;
    match auth.mode {
        AuthMode::None if !is_loopback(config.server.listen.ip()) => report.fault(
            "auth.mode",
            "none is only for a loopback address; set auth.mode to static or jwt, or listen on 127.0.0.1",
        ),
        AuthMode::None | AuthMode::Static => {}
        AuthMode::Jwt => {
            match (&auth.jwks_file, &auth.jwks_url) {
                (None, None) => report.fault("auth.jwks_file", "is needed for mode jwt, or auth.jwks_url"),
                (Some(_), Some(_)) => report.fault("auth.jwks_url", "is set beside auth.jwks_file; keep one"),
                (Some(_), None) => {}
                (None, Some(url)) => {
                    if !is_guarded_url(url) {
                        report
                            .fault("auth.jwks_url", "expected https://host[:port]/path, or http on loopback");
                    }
                }
            }
            if auth.issuer.as_deref().is_none_or(str::is_empty) {
                report.fault("auth.issuer", "is needed for mode jwt");
            }
            if auth.audience.is_none() && config.server.public_url.is_none() {
                report.fault("auth.audience", "is needed for mode jwt where server.public_url is not set");
            }
        }
    }
}

/// Returns whether nobody on the way can change what this URL answers: it has TLS, or leads to this machine.
fn is_guarded_url(url: &str) -> bool {
    let parsed: Option<Uri> = url.parse().ok().filter(|_| is_url(url));
    parsed.is_some_and(|parsed| {
        let host = parsed.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let near = address.map_or(host.eq_ignore_ascii_case("localhost"), is_loopback);
        parsed.scheme_str() == Some("https") || near
    })
}

/// Returns whether this is a loopback address, also as an IPv4-mapped IPv6 address.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn upstreams(upstreams: &[Upstream], report: &mut Report) {
    if upstreams.len() > UPSTREAMS_MAX {
        report.fault("upstream", format!("more than {UPSTREAMS_MAX} servers"));
    }
    let mut names = BTreeSet::new();
    for (index, upstream) in upstreams.iter().enumerate() {
        let place = |key: &str| format!("upstream[{index}].{key}");
        plain_name(&place("name"), &upstream.name, report);
        if !names.insert(&upstream.name) {
            report.fault(&place("name"), "another upstream has this name");
        }
        reach(upstream, &place, report);
        oauth::check(upstream, &place, report);
        if !upstream.prefix.as_deref().is_none_or(|prefix| is_name(prefix, 0, NAME_MAX, b"_-./")) {
            report.fault(&place("prefix"), "expected at most 64 of A-Z a-z 0-9 _ - . /");
        }
        for (key, list) in [
            ("args", &upstream.args),
            ("inherit_env", &upstream.inherit_env),
            ("enable", &upstream.enable),
            ("disable", &upstream.disable),
        ] {
            if list.len() > LISTED_MAX {
                report.fault(&place(key), format!("more than {LISTED_MAX} entries"));
            }
        }
        optional(&place("timeout_ms"), upstream.timeout_ms, 1..=DAY_MS, report);
        if let Some(lane) = &upstream.lane {
            plain_name(&place("lane"), lane, report);
        }
    }
}

/// Checks how an upstream is reached: as a program with arguments, or at a URL with headers.
fn reach(upstream: &Upstream, place: &dyn Fn(&str) -> String, report: &mut Report) {
    match (&upstream.command, &upstream.url) {
        (Some(_), Some(_)) => report.fault(&place("url"), "has a command too; keep exactly one"),
        (None, None) => report.fault(&place("command"), "is missing; set exactly one of command and url"),
        (Some(command), None) => {
            if command.is_empty() || command.contains('\0') {
                report.fault(&place("command"), "expected a program");
            }
            if !upstream.headers.0.is_empty() {
                report.fault(&place("headers"), "are for a url; a command takes env");
            }
            if upstream.oauth.is_some() {
                report.fault(&place("oauth"), "is for a url; a command takes env");
            }
        }
        (None, Some(url)) => {
            if !is_url(url) {
                report.fault(&place("url"), "expected http(s)://host[:port][/path], without user");
            }
            for (key, set) in [
                ("args", !upstream.args.is_empty()),
                ("env", !upstream.env.0.is_empty()),
                ("inherit_env", !upstream.inherit_env.is_empty()),
                ("cwd", upstream.cwd.is_some()),
                ("user", upstream.user.is_some()),
            ] {
                if set {
                    report.fault(&place(key), "is for a command; a url takes headers");
                }
            }
        }
    }
    for (name, value) in &upstream.env.0 {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            report.fault(&place("env"), "has a name or value that no environment can hold");
        }
    }
    for (index, name) in upstream.inherit_env.iter().enumerate() {
        let place = place(&format!("inherit_env[{index}]"));
        if name.is_empty() || name.contains(['=', '\0']) {
            report.fault(&place, "expected the name of a variable");
        } else if name.starts_with(OURS) {
            report.fault(&place, "is a variable of this node itself, which no upstream gets");
        }
    }
    if upstream.user.as_deref().is_some_and(|user| !is_name(user, 1, NAME_MAX, b"_-.$")) {
        report.fault(&place("user"), "expected the name of a user of this system");
    }
    for (name, value) in &upstream.headers.0 {
        if name.parse::<HeaderName>().is_err() || value.parse::<HeaderValue>().is_err() {
            report.fault(&place("headers"), "has a name or value that no header can hold");
        }
    }
}

fn tool(name: &str, tool: &Tool, report: &mut Report) {
    let place = |key: &str| format!("tools.{name}.{key}");
    tool_name("tools", name, report);
    for (key, value) in [("runtime", &tool.runtime), ("category", &tool.category)] {
        if let Some(value) = value {
            plain_name(&place(key), value, report);
        }
    }
    optional(&place("priority"), tool.priority.map(u64::from), 0..=100, report);
    optional(&place("timeout_ms"), tool.timeout_ms, 1..=DAY_MS, report);
    if let Some(retry) = &tool.retry {
        let Retry { max_retries, backoff_ms, backoff_factor, max_backoff_ms, jitter: _ } = retry;
        bound(&place("retry.max_retries"), u64::from(*max_retries), 0..=100, report);
        bound(&place("retry.max_backoff_ms"), *max_backoff_ms, 0..=DAY_MS, report);
        if backoff_ms > max_backoff_ms {
            report.fault(&place("retry"), "backoff_ms is over max_backoff_ms");
        }
        if !(1.0..=10.0).contains(backoff_factor) {
            report.fault(&place("retry"), "backoff_factor is expected from 1 to 10");
        }
    }
}
