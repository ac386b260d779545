//! References in an upstream's values: `${NAME}` is a variable of the environment, `${file:PATH}` what a file holds.
//!
//! Invariants:
//! - a reference that leads nowhere is a fault that names the key and the reference, and no value;
//! - what a reference stands for is not read for references again.

use std::{collections::BTreeMap, fs::File, io::Read};

use super::{Upstream, read::Report};

/// The largest number of bytes of a file that is referred to.
const FILE_MAX: u64 = 64 * 1024;
const OPEN: &str = "${";
/// What begins a reference to a file, within the braces.
const OF_FILE: &str = "file:";

/// Puts what they stand for in the place of references: in `args`, `env`, `headers`, `url` and the client of `oauth`.
pub(super) fn resolve(upstreams: &mut [Upstream], env: &BTreeMap<String, String>, report: &mut Report) {
    for (index, upstream) in upstreams.iter_mut().enumerate() {
        let mut put = |place: String, value: &mut String| match resolved(value, env) {
            Ok(text) => *value = text,
            Err(message) => report.fault(&format!("upstream[{index}].{place}"), message),
        };
        for (at, value) in upstream.args.iter_mut().enumerate() {
            put(format!("args[{at}]"), value);
        }
        for (name, value) in &mut upstream.env.0 {
            put(format!("env.{name}"), value);
        }
        for (name, value) in &mut upstream.headers.0 {
            put(format!("headers.{name}"), value);
        }
        if let Some(url) = &mut upstream.url {
            put("url".to_owned(), url);
        }
        let oauth = upstream.oauth.as_mut();
        if let Some(oauth) = oauth {
            for (key, value) in
                [("client_id", &mut oauth.client_id), ("client_secret", &mut oauth.client_secret)]
            {
                if let Some(value) = value {
                    put(format!("oauth.{key}"), value);
                }
            }
        }
    }
}

/// Returns a value with its references resolved; `$${` stands for `${`. Errors: which reference leads nowhere.
fn resolved(value: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find(OPEN) {
        let (before, reference) = rest.split_at(at);
        let reference = &reference[OPEN.len()..];
        if let Some(literal) = before.strip_suffix('$') {
            text.push_str(literal);
            text.push_str(OPEN);
            rest = reference;
            continue;
        }
        let found =
            reference.split_once('}').filter(|(name, _)| name.starts_with(OF_FILE) || is_variable(name));
        let Some((name, after)) = found else {
            return Err(
                "has a `${` that begins no reference; write `$${` for the characters themselves".to_owned()
            );
        };
        text.push_str(before);
        match name.strip_prefix(OF_FILE) {
            Some(path) => text.push_str(&content(path)?),
            None => {
                let value = env.get(name);
                text.push_str(value.ok_or_else(|| format!("the environment has no variable `{name}`"))?);
            }
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

/// Returns whether this could be the name of a variable. What could not may be a part of a secret, and is not repeated.
fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(plain) && name.starts_with(|first: char| !first.is_ascii_digit())
}

/// Returns what a file holds, without the line break at its end.
fn content(path: &str) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text));
    match read {
        Ok(len) if len as u64 <= FILE_MAX => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Ok(_) => Err(format!("the file `{path}` is over 64 KiB")),
        Err(err) => Err(format!("the file `{path}` cannot be read: {}", err.kind())),
    }
}
