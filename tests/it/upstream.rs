//! An upstream of the tests' own: `tests/clients/upstream.py`, told what to do by the files of its directory.

#![allow(dead_code, reason = "each file of tests uses its own part")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    harness::{Server, needs, temp},
    record::until,
};

pub struct Upstream {
    dir: TempDir,
}

impl Upstream {
    /// One that offers these tools: raw definitions, or bare names.
    pub fn new(tools: &[&str]) -> Self {
        let upstream = Self { dir: temp() };
        upstream.offer(tools);
        upstream
    }

    /// Changes what is offered; a running one announces it.
    pub fn offer(&self, tools: &[&str]) {
        let define = |tool: &&str| match tool.starts_with('{') {
            true => (*tool).to_owned(),
            false => format!(r#"{{"name":"{tool}","inputSchema":{{"type":"object"}}}}"#),
        };
        let lines: Vec<String> = tools.iter().map(define).collect();
        // Whole or not at all: the upstream looks at the file all the time.
        self.write("tools.new", &lines.join("\n"));
        fs::rename(self.path("tools.new"), self.path("tools")).expect("both are in one directory");
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).expect("the directory can be written");
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).expect("the file is there");
    }

    /// What its program wrote into a file; empty if it wrote none.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_default()
    }

    /// The processes that its program has said to be, or to have started, in order.
    pub fn pids(&self) -> Vec<u32> {
        self.read("pids").lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// The calls that arrived, one a line, with `cancelled` for each cancellation.
    pub fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Waits until `line` has begun as many lines of the calls as `count`.
    pub fn reached(&self, line: &str, count: usize) {
        let begun = || self.calls().iter().filter(|call| call.starts_with(line)).count();
        until(&format!("{line} at the upstream"), || (begun() >= count).then_some(()));
    }

    /// The table of the configuration; `more` are further lines of it.
    pub fn table(&self, name: &str, more: &str) -> String {
        let python = needs("venv/bin/python");
        let script = needs("upstream.py");
        let dir = self.dir.path();
        format!("[[upstream]]\nname = {name:?}\ncommand = {python:?}\nargs = [{script:?}, {dir:?}]\n{more}\n")
    }

    /// The directory its program is told.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}

/// Writes a configuration beside the data.
pub fn configure(data: &Path, config: &str) -> String {
    let path = data.join("test.toml");
    fs::write(&path, config).expect("the directory can be written");
    path.to_str().expect("temporary paths are text").to_owned()
}

/// Starts a server with this configuration.
pub fn serve(data: &Path, config: &str) -> Server {
    let config = configure(data, config);
    Server::start(data, &["--config", &config])
}
