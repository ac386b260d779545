//! What a stranger installs, held against the program and the tree: the unit, the example, the package, the image.
//!
//! Invariant: no file of `docs/packaging` names an option, a setting or a path that is not there.

use std::{collections::BTreeSet, fs, path::Path};

use crate::harness::{cairn, run, temp};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
}

/// Whether a path, or one with `*` in its last part, names something in the tree.
fn is_there(path: &str) -> bool {
    let Some((before, after)) = path.split_once('*') else {
        return root().join(path).exists();
    };
    let (dir, before) = before.rsplit_once('/').unwrap_or((".", before));
    let names = fs::read_dir(root().join(dir)).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .any(|name| name.starts_with(before) && name.ends_with(after))
}

#[test]
fn the_unit_starts_the_program_with_options_it_has() {
    let unit = read("docs/packaging/cairn.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a line ExecStart=");
    let words: Vec<&str> = start.split_whitespace().collect();
    assert_eq!(words[..2], ["/usr/bin/cairn", "serve"], "{start}");
    let help = run(cairn(&["serve", "--help"])).succeeded();
    let options: Vec<&&str> = words.iter().filter(|word| word.starts_with("--")).collect();
    assert!(!options.is_empty(), "{start}");
    for option in options {
        assert!(help.split_whitespace().any(|word| word == *option), "{option} is not in:\n{help}");
    }
    // The program tells nobody that it is ready; a unit that waits to be told would never be started.
    assert!(unit.lines().any(|line| line == "Type=exec"), "{unit}");
}

#[test]
fn the_unit_leaves_little_open_and_its_servers_a_home() {
    let unit = root().join("docs/packaging/cairn.service");
    let shown = std::process::Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(&unit)
        .output();
    // A machine without systemd cannot say.
    if let Ok(shown) = shown {
        let text = String::from_utf8_lossy(&shown.stdout);
        let exposed =
            text.lines().find_map(|line| line.split("Overall exposure level for cairn.service: ").nth(1));
        let exposed = exposed.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        assert!(exposed.is_some_and(|exposed| exposed < 4.0), "{text}");
    }
    let unit = read("docs/packaging/cairn.service");
    let has = |line: &str| unit.lines().any(|found| found == line);
    // `npx` writes below its home, and Node.js compiles while it runs.
    assert!(
        has("StateDirectory=cairn cairn-servers") && has("Environment=HOME=/var/lib/cairn-servers"),
        "{unit}"
    );
    assert!(!unit.lines().any(|line| line.starts_with("MemoryDenyWriteExecute=")), "{unit}");
}

#[test]
fn the_example_configuration_is_good_with_and_without_what_it_leaves_out() {
    let temp = temp();
    let example = read("docs/packaging/cairn.toml");
    let uncommented = |line| match str::strip_prefix(line, "#") {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    };
    let whole: Vec<&str> = example.lines().map(uncommented).collect();
    let whole = whole.join("\n");
    assert_ne!(whole.trim(), example.trim(), "the example leaves nothing out");
    for text in [&example, &whole] {
        let file = temp.path().join("cairn.toml");
        fs::write(&file, text).expect("the directory can be written");
        let mut command = cairn(&["config", "check"]);
        command.arg(&file).arg("--data").arg(temp.path());
        assert_eq!(run(command).succeeded(), "ok\n", "{text}");
    }
}

#[test]
fn the_package_is_made_of_files_that_are_there() {
    let manifest: toml::Value = toml::from_str(&read("Cargo.toml")).expect("the manifest is toml");
    let deb = &manifest["package"]["metadata"]["deb"];
    let text = |value: &toml::Value| value.as_str().expect("a text").to_owned();
    let assets = deb["assets"].as_array().expect("a list");
    let mut sources: Vec<String> = assets.iter().map(|asset| text(&asset[0])).collect();
    sources.retain(|source| !source.starts_with("target/"));
    sources.extend([text(&deb["license-file"][0]), text(&deb["maintainer-scripts"])]);
    for source in sources {
        assert!(is_there(&source), "{source}");
    }
    // A file that is installed as configuration is one that an upgrade asks about.
    for asset in assets.iter().filter(|asset| text(&asset[1]).starts_with("etc/")) {
        let name = text(&asset[0]).rsplit('/').next().map(|name| format!("/{}{name}", text(&asset[1])));
        let kept = deb["conf-files"].as_array().expect("a list").iter().map(text).collect::<Vec<_>>();
        assert!(name.is_some_and(|name| kept.contains(&name)), "{asset} is not in {kept:?}");
    }
    assert!(manifest["profile"].get("dist").is_some(), "packages are built with this profile");
}

#[test]
fn every_command_has_a_manual_page_and_the_package_brings_them() {
    let temp = temp();
    let dir = temp.path().join("man1");
    let mut command = cairn(&["manual"]);
    command.arg(&dir);
    assert_eq!(run(command).succeeded(), "");
    let pages: BTreeSet<String> = fs::read_dir(&dir)
        .expect("it is there")
        .map(|entry| entry.expect("it can be read").file_name().into_string().expect("a name is text"))
        .collect();
    let mut expected = BTreeSet::new();
    name_pages(&[], &mut expected);
    assert!(expected.contains("cairn.1") && expected.contains("cairn-log-verify.1"), "{expected:?}");
    assert_eq!(pages, expected);
    let page = fs::read_to_string(dir.join("cairn-log-verify.1")).expect("it can be read");
    assert!(page.contains(r"\-\-checkpoint") && page.contains("CAIRN_DATA"), "{page}");

    let manifest: toml::Value = toml::from_str(&read("Cargo.toml")).expect("the manifest is toml");
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().expect("a list");
    let to_man = |asset: &&toml::Value| asset[1].as_str() == Some("usr/share/man/man1/");
    let sources: Vec<_> = assets.iter().filter(to_man).map(|asset| asset[0].as_str()).collect();
    assert_eq!(sources, [Some("target/manual/*.1")]);
    let build = read("docs/packaging/build-deb");
    assert!(build.lines().any(|line| line.ends_with(" manual target/manual")), "{build}");
}

/// Adds the names of the pages of a command and of all below it, as their help lists them.
fn name_pages(path: &[&str], found: &mut BTreeSet<String>) {
    found.insert(format!("{}.1", [&["cairn"], path].concat().join("-")));
    let help = run(cairn(&[path, &["-h"]].concat())).succeeded();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.map_while(|line| line.strip_prefix("  ")?.split_whitespace().next());
    for name in names.filter(|name| *name != "help") {
        name_pages(&[path, &[name]].concat(), found);
    }
}

#[test]
fn the_image_copies_files_that_are_there() {
    let file = read("docs/packaging/Dockerfile");
    let copies: Vec<Vec<&str>> = file
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.contains("--from="))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(!copies.is_empty(), "{file}");
    let listed = read("docs/packaging/Dockerfile.dockerignore");
    for copy in copies {
        let (_, sources) = copy.split_last().expect("a line has words");
        for source in sources {
            assert!(is_there(source), "{source}");
            assert!(listed.lines().any(|line| line.strip_prefix('!') == Some(source)), "{source} is ignored");
        }
    }
}
