//! What is outside the directory: limits of the process, and the upstream servers of the configuration.
//!
//! Invariants:
//! - a program is looked for and not started; a URL is asked for once, without headers or tokens;
//! - no URL is in a finding.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Client, redirect::Policy};
use rustix::{
    fs::{Access, access},
    process::{Resource, getrlimit},
};

use super::finding::Finding;
use crate::{
    cli::{runtime, upstream::word},
    config::{Config, Upstream},
    error::chain,
    log::home::Home,
    node::upstreams::credentials,
    runtime::upstream::credentials::Credentials,
};

/// Open files under which a busy node runs out.
const FILES_MIN: u64 = 4096;
/// How long an upstream may take to answer anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks at the limits of this process, which are often those of the node.
pub fn limits(found: &mut Vec<Finding>) {
    let files = getrlimit(Resource::Nofile).maximum;
    match files {
        Some(files) if files < FILES_MIN => {
            let todo = "raise it: LimitNOFILE in a unit, `ulimit -n` in a shell";
            found.push(Finding::warn("files", format!("{files} open files at most"), todo));
        }
        Some(files) => found.push(Finding::ok("files", format!("{files} open files at most"))),
        None => found.push(Finding::ok("files", "any number of open files")),
    }
}

/// Looks whether the upstream servers can be started or reached, and whether they want a login.
pub fn upstreams(home: &Home, config: &Config, found: &mut Vec<Finding>) -> anyhow::Result<()> {
    if config.upstream.is_empty() {
        return Ok(());
    }
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = runtime()?;
    for upstream in &config.upstream {
        let what = format!("upstream {}", upstream.name);
        let finding = match (&upstream.command, &upstream.url) {
            (Some(command), _) => program(&what, command, upstream),
            (None, Some(url)) => runtime.block_on(reached(&what, url)),
            (None, None) => continue,
        };
        found.push(finding);
        found.extend(login(home, &what, upstream));
    }
    Ok(())
}

fn program(what: &str, command: &str, upstream: &Upstream) -> Finding {
    if let Some(dir) = upstream.cwd.as_deref().filter(|dir| !dir.is_dir()) {
        return Finding::fail(what, format!("its directory {} is not there", dir.display()), "mend its cwd");
    }
    let dir = upstream.cwd.as_deref().unwrap_or(Path::new("."));
    match find(command, dir) {
        Some(path) => Finding::ok(what, format!("its program is {}", path.display())),
        None => Finding::fail(
            what,
            format!("its program `{command}` cannot be found or started"),
            "install it, or give its whole path: a service has another PATH than a shell",
        ),
    }
}

/// Returns where a program is, if it can be started.
fn find(command: &str, dir: &Path) -> Option<PathBuf> {
    let starts = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if command.contains('/') {
        return Some(dir.join(command)).filter(starts);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(command)).find(starts)
}

async fn reached(what: &str, url: &str) -> Finding {
    let mut client = Client::builder().timeout(ANSWER_TIMEOUT).redirect(Policy::none());
    if url.starts_with("http:") {
        // Without TLS, a machine without certificate authorities is good enough.
        client = client.tls_certs_only([]);
    }
    let answer = match client.build() {
        Ok(client) => client.get(url).send().await,
        Err(err) => Err(err),
    };
    match answer {
        Ok(response) => Finding::ok(what, format!("it answers ({})", response.status().as_u16())),
        Err(err) => {
            let todo =
                "see whether it runs, and whether this machine may reach it; the node tries again by itself";
            Finding::fail(what, format!("it cannot be reached: {}", chain(&err.without_url())), todo)
        }
    }
}

/// Says where a login stands, if the upstream could take one and something is amiss.
fn login(home: &Home, what: &str, upstream: &Upstream) -> Option<Finding> {
    let credentials = credentials(home, upstream)?;
    let todo = format!("cairn upstream login {}", upstream.name);
    match Credentials::standing(&credentials) {
        Ok(standing) => match word(Some(&standing)) {
            "none" | "yes" => None,
            word => Some(Finding::warn(what, format!("login: {word}"), todo)),
        },
        Err(err) => Some(Finding::fail(what, chain(&err), todo)),
    }
}
