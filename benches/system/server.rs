//! The servers under test: child processes that say when they are ready, and end when they are dropped.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The program, built by the same command as this driver.
pub const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");

pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// From the start of the process to its ready line.
    pub started_in: Duration,
}

impl Server {
    /// Starts a program and waits until it has printed a line with its URL.
    pub fn start(command: &mut Command) -> Self {
        let begun = Instant::now();
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the server starts");
        let output = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line");
        let started_in = begun.elapsed();
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(['/', ' ', '\n']).next())
            .and_then(|address| address.parse().ok())
            .unwrap_or_else(|| panic!("no URL in the ready line `{line}`"));
        Self { child, address, started_in }
    }

    /// `cairn serve` on a data directory.
    pub fn cairn(data: &Path, flags: &[&OsStr]) -> Self {
        let mut command = Command::new(CAIRN);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(flags)
            .env("CAIRN_LOG", "error");
        Self::start(&mut command)
    }

    /// Bytes of memory that the process holds now.
    pub fn resident(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a process has a status");
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .expect("its resident size");
        kib * 1024
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        // A server that has ended already needs no signal.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where it was stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
