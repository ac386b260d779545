//! The README's commands, taken from its text and run as written; those of the tests are what `.ci/run` runs.
//!
//! What stands in capitals in the text is put in its place: `CID`, `VKEY`. Servers of others are not fetched.

use std::{fs, path::Path, process::Command};

use crate::harness::{Server, cairn, needs, run, temp, text};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The lines of all `sh` blocks of a document, without what is said beside them.
fn commands(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        match (line.starts_with("```"), inside) {
            (true, _) => inside = line == "```sh",
            (false, true) => {
                let command = line.split(" #").next().unwrap_or_default().trim();
                found.extend((!command.is_empty()).then(|| command.to_owned()));
            }
            (false, false) => {}
        }
    }
    found
}

/// The block of this language that holds a text.
fn block(document: &str, language: &str, holds: &str) -> String {
    let open = format!("```{language}\n");
    let blocks = document.split(&open).skip(1).filter_map(|rest| rest.split("```").next());
    let found = blocks.into_iter().find(|block| block.contains(holds));
    found.unwrap_or_else(|| panic!("no {language} block holds {holds}")).to_owned()
}

/// Runs a line with the built program in the place of an installed one.
fn shell(line: &str, dir: &Path, env: &[(&str, &str)]) -> crate::harness::Ran {
    let program = Path::new(env!("CARGO_BIN_EXE_cairn")).parent().expect("a file is in a directory");
    let path =
        std::env::join_paths([program.to_owned(), "/usr/local/bin".into(), "/usr/bin".into(), "/bin".into()]);
    let mut command = Command::new("sh");
    command.args(["-ec", line]).current_dir(dir).env("NO_COLOR", "1");
    command.env("PATH", path.expect("no path holds a colon")).envs(env.iter().copied());
    run(command)
}

#[test]
fn the_readme_installs_before_it_uses_and_ci_runs_its_tests() {
    let readme = read("README.md");
    let all = commands(&readme);
    let first_use = all.iter().position(|line| line.starts_with("cairn ")).expect("it uses cairn");
    let install = all.iter().position(|line| line.starts_with("cargo install --path")).expect("it installs");
    assert!(install < first_use, "{all:?}");
    let ci = read(".ci/run");
    let tests = all.iter().find(|line| line.contains("cargo test")).expect("it tells how to test");
    for part in tests.split("&&").map(str::trim) {
        let runs = |line: &str| {
            line.split_whitespace().filter(|word| *word != "--locked").eq(part.split_whitespace())
        };
        let shown = |line: &str| line.trim().split(" 2>&1").next().unwrap_or_default().to_owned();
        assert!(ci.lines().any(|line| runs(&shown(line))), "`{part}` is not what .ci/run does");
    }
    // What it says to install is what is looked for there.
    for package in ["libc6-dev", "nodejs", "npm", "python3-venv", "python3-dev", "libgmp-dev"] {
        assert!(readme.contains(package) && ci.contains(package), "{package}");
    }
}

#[test]
fn the_readmes_commands_run_as_they_are_written() {
    let temp = temp();
    let dir = temp.path();
    let readme = read("README.md");
    // The first is built and run at once; here it is built already.
    let all: Vec<String> =
        commands(&readme).iter().map(|line| line.replace("cargo run -- ", "cairn ")).collect();
    let ours: Vec<&String> = all.iter().filter(|line| line.starts_with("cairn ")).collect();

    // The first call makes the log that the others read.
    let (first, rest) = ours.split_first().expect("there are commands");
    let called = shell(first, dir, &[]);
    assert!(called.status.success(), "{first}: {called:?}");
    let shown = block(&readme, "", "\"categories\"");
    assert_eq!(
        called.stdout.trim(),
        shown.lines().next().unwrap_or_default().trim(),
        "what the README shows"
    );
    let event = called.stderr.trim();
    let key = run(cairn(&["key", "--json", "--data", text(&dir.join("cairn-data"))])).succeeded();
    let key: serde_json::Value = serde_json::from_str(&key).expect("it is json");
    let key = key["key"].as_str().expect("a key is text");

    // The server with the README's configuration, but with servers that are here.
    let notes = dir.join("notes");
    fs::create_dir(&notes).expect("the directory can be written");
    fs::write(notes.join("today.txt"), "bread, milk").expect("the directory can be written");
    let node = needs("node_modules/node/bin/node");
    let files = needs("node_modules/@modelcontextprotocol/server-filesystem/dist/index.js");
    let config = block(&readme, "toml", "server-filesystem");
    let config = config.replace("\"npx\"", &format!("{:?}", text(&node)));
    let config =
        config.replace("\"-y\", \"@modelcontextprotocol/server-filesystem\"", &format!("{:?}", text(&files)));
    let config = config.replace("/home/me/notes", text(&notes));
    let config = config.replace("https://search.example/mcp", "http://127.0.0.1:1/mcp");
    fs::write(dir.join("cairn.toml"), config).expect("the directory can be written");
    let checked = shell("cairn config check cairn.toml --data fresh", dir, &[]);
    assert!(checked.status.success(), "{checked:?}");
    let config = dir.join("cairn.toml");
    let server = Server::start(&dir.join("cairn-data"), &["--config", text(&config)]);

    let definition = block(&readme, "json", "workflow_id").replace("/home/me/notes", text(&notes));
    fs::write(dir.join("notes.json"), definition).expect("the directory can be written");
    for line in rest.iter().filter(|line| !line.starts_with("cairn serve ")) {
        let line = line.replace("CID", event).replace("VKEY", key);
        let ran = shell(&line, dir, &[("CAIRN_URL", &server.url), ("CAIRN_DATA", "./cairn-data")]);
        assert!(ran.status.success(), "{line}: {ran:?}");
    }
    server.kill();
}
