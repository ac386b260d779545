//! Network namespaces: hosts, links and routers of a test's own, where the machine allows them.
//!
//! Invariants:
//! - everything made here is gone when its handle is dropped;
//! - nothing of the machine's own network is changed but the links that are named here.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::harness::{Ran, cairn, run};

/// Namespaces made by this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Whether namespaces and packet filters can be made here. Where not, that is said beside the tests' own output.
pub fn allowed() -> bool {
    let tried = [&["unshare", "-n", "true"][..], &["ip", "-Version"], &["nft", "--version"]];
    let refused = tried.iter().find_map(|command| attempt(command, "").err());
    let refused = refused.or_else(|| {
        let space = Space::try_new().map_err(|err| format!("ip netns add: {err}"));
        space.and_then(|space| space.try_run(&["nft", "-f", "-"], "table inet probe {}")).err()
    });
    if let Some(refused) = &refused {
        let required = std::env::var_os("CAIRN_TEST_NAMESPACES").is_some();
        assert!(
            !required,
            "network namespaces are refused ({refused}); apt-get install iproute2 nftables, and run as root"
        );
        // Past the capture of the tests' output: whoever reads it is to know what was not tried.
        let _ = writeln!(std::io::stderr(), "network namespaces are not allowed here ({refused})");
    }
    refused.is_none()
}

/// One namespace.
pub struct Space {
    pub name: String,
}

impl Space {
    pub fn new() -> Self {
        Self::try_new().expect("namespaces are allowed here")
    }

    fn try_new() -> Result<Self, String> {
        let name = format!("cairn-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        attempt(&["ip", "netns", "add", &name], "")?;
        let space = Self { name };
        space.try_run(&["ip", "link", "set", "lo", "up"], "")?;
        Ok(space)
    }

    /// Runs a command in it that must succeed, with this on its standard input.
    pub fn run(&self, command: &[&str], input: &str) {
        self.try_run(command, input).unwrap_or_else(|err| panic!("{command:?}: {err}"));
    }

    fn try_run(&self, command: &[&str], input: &str) -> Result<(), String> {
        attempt(&[&["ip", "netns", "exec", &self.name], command].concat(), input)
    }

    /// Lays a cable between this and another namespace, or the machine itself; each end has an address with its length.
    pub fn connect(&self, address: &str, other: Option<&Space>, other_address: &str) {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let ends = ["a", "b"].map(|end| format!("c{}{end}{number}", std::process::id()));
        let [own, far] = [ends[0].as_str(), ends[1].as_str()];
        let must = |command: &[&str]| attempt(command, "").unwrap_or_else(|err| panic!("{command:?}: {err}"));
        must(&["ip", "link", "add", own, "type", "veth", "peer", "name", far]);
        for (space, end, address) in [(Some(self), own, address), (other, far, other_address)] {
            match space {
                Some(space) => {
                    must(&["ip", "link", "set", end, "netns", &space.name]);
                    space.run(&["ip", "addr", "add", address, "dev", end], "");
                    space.run(&["ip", "link", "set", end, "up"], "");
                }
                None => {
                    must(&["ip", "addr", "add", address, "dev", end]);
                    must(&["ip", "link", "set", end, "up"]);
                }
            }
        }
    }

    /// Sends what is for elsewhere to this router.
    pub fn route_by(&self, router: &str) {
        self.run(&["ip", "route", "add", "default", "via", router], "");
    }

    pub fn forwards(&self) {
        self.run(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], "");
    }

    /// Makes it a router that hides the network `inside` behind its own address, and lets in what was asked for.
    pub fn hides(&self, inside: &str) {
        self.forwards();
        let rules = format!(
            "table ip hide {{
               chain out {{ type nat hook postrouting priority 100; ip saddr {inside} masquerade; }}
               chain pass {{ type filter hook forward priority 0; policy drop;
                 ct state established,related accept; ip saddr {inside} accept; }}
               chain in {{ type filter hook input priority 0; policy drop; ct state established,related accept; }}
             }}"
        );
        self.run(&["nft", "-f", "-"], &rules);
    }

    /// Drops whatever comes and goes, without a word.
    pub fn cut(&self) {
        let rules = "table inet cut {
            chain in { type filter hook input priority 0; policy drop; }
            chain out { type filter hook output priority 0; policy drop; }
            }";
        self.run(&["nft", "-f", "-"], rules);
    }

    pub fn heal(&self) {
        self.run(&["nft", "delete", "table", "inet", "cut"], "");
    }

    /// `cairn ARGS...` in it, not yet started.
    pub fn cairn(&self, args: &[&str]) -> Command {
        self.enter(&cairn(args))
    }

    /// A command in it, not yet started.
    pub fn enter(&self, inner: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(inner.get_program()).args(inner.get_args());
        command.env("NO_COLOR", "1");
        command
    }

    /// Runs `cairn ARGS...` in it to its end.
    pub fn ran(&self, args: &[&str]) -> Ran {
        run(self.cairn(args))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // With it go its ends of cables, and with those the other ends.
        let _ = attempt(&["ip", "netns", "del", &self.name], "");
    }
}

/// Runs a command to its end. Errors: what it said.
fn attempt(command: &[&str], input: &str) -> Result<(), String> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|err| format!("{}: {err}", command[0]))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing says so by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|err| err.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
