//! Lists: pages of definitions as their sources wrote them.
//!
//! A cursor names the list and the last entry given, so a page goes on where the last one ended even when
//! entries came or went before it. A cursor of another list, or of an entry that is gone, is refused.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::value::RawValue;

use super::envelope::invalid_params;
use crate::router::RpcError;

/// Entries of one page.
pub const PAGE_MAX: usize = 1_000;

/// Returns a list's result object: `items` from `cursor` on, under `key`.
pub fn page<T>(
    key: &str,
    items: &[T],
    entry: impl Fn(&T) -> (&str, Cow<'_, RawValue>),
    cursor: Option<&str>,
) -> Result<Box<RawValue>, RpcError> {
    let start = match cursor {
        None => 0,
        Some(cursor) => {
            let last =
                open(key, cursor).ok_or_else(|| invalid_params(format!("the cursor is not one of {key}")))?;
            let at = items.iter().position(|item| entry(item).0 == last);
            at.ok_or_else(|| invalid_params("the cursor's entry is gone; list again from the start"))? + 1
        }
    };
    let end = items.len().min(start + PAGE_MAX);
    let mut out = format!(r#"{{"{key}":["#);
    for (at, item) in items[start..end].iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(entry(item).1.get());
    }
    out.push(']');
    if end < items.len() {
        out.extend([r#","nextCursor":""#, &seal(key, entry(&items[end - 1]).0), "\""]);
    }
    out.push('}');
    Ok(RawValue::from_string(out).expect("definitions and cursors are JSON, and so is a list of them"))
}

fn seal(key: &str, last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{key}\n{last}"))
}

fn open(key: &str, cursor: &str) -> Option<String> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (list, last) = text.split_once('\n')?;
    (list == key).then(|| last.to_owned())
}
