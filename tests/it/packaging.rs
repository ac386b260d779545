//! What a stranger installs, held against the program and the tree: the unit, the example, the package, the image.
//!
//! Invariant: no file of `docs/packaging` names an option, a setting or a path that is not there.

use std::{fs, path::Path};

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
