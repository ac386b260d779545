//! The configuration file, changed by a command: upstreams are added and removed, and everything else stays as it is.
//!
//! Invariants:
//! - comments, order and spelling of what is not changed stay, to the byte;
//! - the file is replaced whole or not at all, by one with the same owner and rights; one command at a time does so;
//! - nothing of the file is in an error: it may hold secrets.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, value};

use crate::config::Upstream;

/// The rights of a file that there was none of: it may come to hold secrets.
const FRESH: u32 = 0o600;

/// The configuration file, while no other command changes it.
pub struct Editing {
    path: PathBuf,
    text: String,
    document: DocumentMut,
    _alone: File,
}

impl Editing {
    /// Opens the file, and waits while another command changes it. A file that is not there counts as an empty one.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let path = match fs::canonicalize(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => std::path::absolute(path)?,
            found => found.with_context(|| format!("cannot read {shown}"))?,
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let alone = File::open(folder).with_context(|| format!("cannot open the folder of {shown}"))?;
        alone.lock().with_context(|| format!("cannot lock the folder of {shown}"))?;
        let text = match fs::read_to_string(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.with_context(|| format!("cannot read {shown}"))?,
        };
        // The parser's own message quotes the line, which may hold a secret.
        let document = text.parse().ok();
        let document =
            document.with_context(|| format!("{shown} is not TOML; see `cairn config check {shown}`"))?;
        Ok(Self { path, text, document, _alone: alone })
    }

    /// Adds an upstream after those that are there.
    pub fn add(&mut self, upstream: &Upstream) -> anyhow::Result<()> {
        let name = &upstream.name;
        let upstreams = self.upstreams()?;
        if place(upstreams, name).is_some() {
            bail!("there is an upstream {name} already; remove it first, or edit the file");
        }
        upstreams.push(table(upstream));
        Ok(())
    }

    /// Removes an upstream, with the comments that stand before it.
    pub fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        let upstreams = self.upstreams()?;
        let at =
            place(upstreams, name).with_context(|| format!("the configuration names no upstream {name}"))?;
        upstreams.remove(at);
        if upstreams.is_empty() {
            self.document.remove("upstream");
        }
        Ok(())
    }

    /// Returns the text of the file as it is changed.
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    /// Puts the changed text in the place of the file.
    pub fn write(&self) -> anyhow::Result<()> {
        self.replace(&self.text())
    }

    /// Puts the text back that was there before.
    pub fn undo(&self) -> anyhow::Result<()> {
        self.replace(&self.text)
    }

    fn replace(&self, text: &str) -> anyhow::Result<()> {
        let written = replace(&self.path, text.as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn upstreams(&mut self) -> anyhow::Result<&mut ArrayOfTables> {
        let item = self.document.entry("upstream").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        item.as_array_of_tables_mut()
            .context("`upstream` is not written as [[upstream]] tables; edit the file yourself")
    }
}

fn place(upstreams: &ArrayOfTables, name: &str) -> Option<usize> {
    upstreams.iter().position(|upstream| upstream.get("name").and_then(Item::as_str) == Some(name))
}

/// Returns the table of an upstream, with the keys that are set.
fn table(upstream: &Upstream) -> Table {
    let mut table = Table::new();
    let texts = |texts: &[String]| value(texts.iter().collect::<Array>());
    let named = |named: &crate::config::Secrets| value(named.0.iter().collect::<InlineTable>());
    let path = upstream.cwd.as_ref().map(|path| path.display().to_string());
    table["name"] = value(&upstream.name);
    for (key, text) in [
        ("command", &upstream.command),
        ("url", &upstream.url),
        ("cwd", &path),
        ("user", &upstream.user),
        ("prefix", &upstream.prefix),
        ("lane", &upstream.lane),
    ] {
        if let Some(text) = text {
            table[key] = value(text);
        }
    }
    for (key, list) in [
        ("args", &upstream.args),
        ("inherit_env", &upstream.inherit_env),
        ("enable", &upstream.enable),
        ("disable", &upstream.disable),
    ] {
        if !list.is_empty() {
            table[key] = texts(list);
        }
    }
    for (key, map) in [("env", &upstream.env), ("headers", &upstream.headers)] {
        if !map.0.is_empty() {
            table[key] = named(map);
        }
    }
    if let Some(ms) = upstream.timeout_ms {
        table["timeout_ms"] = value(i64::try_from(ms).unwrap_or(i64::MAX));
    }
    if upstream.isolate {
        table["isolate"] = value(true);
    }
    table
}

/// Replaces a file whole or not at all. The new one has the owner and the rights of the one before.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let before = fs::metadata(path).ok();
    // What a crash left here is of no use.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(FRESH).open(&fresh)?;
    let written = (|| {
        if let Some(before) = before {
            let now = file.metadata()?;
            if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
                fchown(&file, Some(before.uid()), Some(before.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(before.mode() & 0o7777))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    const FILE: &str = "# ours\n[server]\nlisten = \"127.0.0.1:0\" # any\n\n# the first\n[[upstream]]\nname=\"a\"\ncommand = 'cat'\n\n[tasks] # later\nlease_ms = 500\n";

    fn editing(text: &str) -> (Editing, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cairn.toml");
        fs::write(&path, text).expect("it is written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
        (Editing::open(&path).expect("it is TOML"), folder)
    }

    #[test]
    fn everything_else_of_a_file_stays_to_the_byte() {
        let (mut editing, folder) = editing(FILE);
        let more = Upstream {
            name: "b".to_owned(),
            command: Some("npx".to_owned()),
            args: vec!["-y".to_owned(), "a \"b\"".to_owned()],
            inherit_env: vec!["HTTPS_PROXY".to_owned()],
            timeout_ms: Some(5),
            isolate: true,
            ..Upstream::default()
        };
        editing.add(&more).expect("the name is free");
        assert!(editing.add(&more).is_err(), "the name is taken");
        editing.write().expect("the folder can be written");
        let path = folder.path().join("cairn.toml");
        let text = fs::read_to_string(&path).expect("it is there");
        for part in FILE.split_inclusive("\n\n") {
            assert!(text.contains(part.trim_end()), "{part} in {text}");
        }
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o777, 0o640);
        let config = Config::parse(&text, [], &Overrides::default()).expect("usable");
        assert!(config.upstream.contains(&more), "{text}");
        editing.remove("b").expect("it is there");
        assert_eq!(editing.text(), FILE);
        editing.remove("a").expect("it is there");
        assert!(!editing.text().contains("upstream") && editing.text().contains("# ours"));
        assert!(editing.remove("a").is_err());
        editing.undo().expect("the folder can be written");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), FILE);
    }
}
