//! The tools that find others: what is listed where the whole catalogue is too long to list.
//!
//! Invariants:
//! - a caller finds what it sees, and nothing else;
//! - the order is by how well a tool fits, and by name where two fit alike: the same catalogue gives the same answer.

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    block::splice,
    router::{BoxFuture, Entry, Invocation, Outcome, Router, RpcError, Run, lane},
    tools::{Builtin, arguments, doing::definition},
};

const CATEGORY: &str = "catalogue";
const LIMIT: usize = 5;
/// The weights of a word that is a part of the name, and of one of the description.
const NAMED: f64 = 3.0;
const DESCRIBED: f64 = 1.0;
/// What a word counts that only begins like one of the tool's.
const BEGUN: f64 = 0.5;
/// The characters from which on words are compared by their beginnings.
const BEGINNING: usize = 3;
/// The words of a description that are looked at.
const WORDS_MAX: usize = 400;

pub fn all(router: &Router) -> Vec<Builtin> {
    let tool = |definition, run| Builtin { definition, category: CATEGORY, lane: lane::BUILTIN, run };
    vec![
        tool(definition!("tool_search"), Arc::new(Search(router.clone())) as Arc<dyn Run>),
        tool(definition!("tool_call"), Arc::new(Named)),
    ]
}

struct Search(Router);

#[derive(Deserialize)]
struct Asked {
    query: String,
    limit: Option<usize>,
}

impl Run for Search {
    fn run(&self, invocation: Invocation) -> BoxFuture<'_, Outcome> {
        let found = arguments(&invocation).map(|Asked { query, limit }| {
            let seen = self.0.tools_for(&invocation.caller);
            let ranked = ranked(&query, &seen);
            let found: Vec<&Arc<Entry>> = ranked.into_iter().take(limit.unwrap_or(LIMIT)).collect();
            let listed: Vec<String> = found.iter().map(|entry| shown(entry)).collect();
            format!(r#"{{"success":true,"tools":[{}],"of":{}}}"#, listed.join(","), seen.len())
        });
        let outcome = match found {
            Ok(structured) => {
                let text = splice::quoted(&structured);
                let content = format!(r#"[{{"type":"text","text":{text}}}]"#);
                let result = format!(r#"{{"content":{content},"structuredContent":{structured}}}"#);
                Outcome::Result { result: splice::raw(result), is_error: false }
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        Box::pin(std::future::ready(outcome))
    }
}

/// Stands for the tool that its arguments name: the router makes each call of it a call of that tool.
struct Named;

impl Run for Named {
    fn run(&self, _: Invocation) -> BoxFuture<'_, Outcome> {
        let error = RpcError::invalid_params("`name` must be that of another tool");
        Box::pin(std::future::ready(Outcome::Rpc(Box::new(error))))
    }
}

/// Returns what a caller must know of a tool, with its schema as its source wrote it.
fn shown(entry: &Entry) -> String {
    let schema: &RawValue =
        splice::member(&entry.tool.definition, "inputSchema").ok().flatten().unwrap_or(RawValue::NULL);
    let known = json!({
        "name": entry.tool.name,
        "description": entry.description,
        "contract": entry.tool.contract.to_string(),
    });
    let mut known: Vec<String> =
        known.as_object().into_iter().flatten().map(|(key, value)| member(key, value)).collect();
    known.push(format!(r#""inputSchema":{schema}"#));
    format!("{{{}}}", known.join(","))
}

fn member(key: &str, value: &Value) -> String {
    format!("{}:{value}", splice::quoted(key))
}

/// Returns the tools that fit a query, best first. Without a word in the query all fit alike.
fn ranked<'a>(query: &str, tools: &'a [Arc<Entry>]) -> Vec<&'a Arc<Entry>> {
    let texts: Vec<Text> = tools.iter().map(|entry| Text::of(&entry.tool.name, &entry.description)).collect();
    let order = order(query, &texts);
    order.into_iter().map(|at| &tools[at]).collect()
}

/// The words of one tool, each with its weight.
struct Text {
    name: String,
    words: HashMap<String, f64>,
}

impl Text {
    fn of(name: &str, description: &str) -> Self {
        let mut known: HashMap<String, f64> = HashMap::new();
        let described = words(description).into_iter().take(WORDS_MAX).map(|word| (word, DESCRIBED));
        for (word, weight) in described.chain(words(name).into_iter().map(|word| (word, NAMED))) {
            let most = known.entry(word).or_default();
            *most = most.max(weight);
        }
        Self { name: name.to_owned(), words: known }
    }

    /// Returns how well it fits a word.
    fn fit(&self, word: &str) -> f64 {
        if let Some(weight) = self.words.get(word) {
            return *weight;
        }
        if word.chars().count() < BEGINNING {
            return 0.0;
        }
        let begins = |other: &str| {
            other.starts_with(word) || (other.chars().count() >= BEGINNING && word.starts_with(other))
        };
        let alike = self.words.iter().filter(|(other, _)| begins(other)).map(|(_, weight)| *weight);
        alike.fold(0.0, f64::max) * BEGUN
    }
}

/// Returns the places of the texts that fit a query, best first. Words that few of them have count more.
fn order(query: &str, texts: &[Text]) -> Vec<usize> {
    let asked = words(query);
    let mut scores = vec![0.0; texts.len()];
    for word in &asked {
        let fits: Vec<f64> = texts.iter().map(|text| text.fit(word)).collect();
        let having = fits.iter().filter(|fit| **fit > 0.0).count();
        let rarity = (1.0 + texts.len() as f64 / having.max(1) as f64).ln();
        for (score, fit) in scores.iter_mut().zip(fits) {
            *score += fit * rarity;
        }
    }
    let mut places: Vec<usize> =
        (0..texts.len()).filter(|at| asked.is_empty() || scores[*at] > 0.0).collect();
    places
        .sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then_with(|| texts[*a].name.cmp(&texts[*b].name)));
    places
}

/// Returns the words of a text in lower case; `listFiles` and `list_files` are two each.
fn words(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word = String::new();
    let mut before_lower = false;
    for c in text.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && before_lower) {
            found.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        before_lower = c.is_lowercase() || c.is_numeric();
    }
    found.extend((!word.is_empty()).then_some(word));
    found
}

#[cfg(test)]
mod tests {
    use super::{Text, order, words};

    #[test]
    fn words_are_parts_of_names_however_they_are_joined() {
        assert_eq!(words("listFiles list_files-now"), ["list", "files", "list", "files", "now"]);
        assert_eq!(words("HTTP2 get"), ["http2", "get"]);
        assert_eq!(words(" .. "), [""; 0]);
    }

    #[test]
    fn the_tool_that_fits_best_is_first() {
        let texts: Vec<Text> = [
            ("fs_read_file", "Reads one file of the disk"),
            ("fs_write_file", "Writes a file"),
            ("git_log", "Shows commits, newest first"),
            ("mail_send", "Sends a message with files attached"),
        ]
        .iter()
        .map(|(name, description)| Text::of(name, description))
        .collect();
        let found = |query: &str| -> Vec<&str> {
            order(query, &texts).into_iter().map(|at| texts[at].name.as_str()).collect()
        };
        assert_eq!(found("read a file")[0], "fs_read_file");
        assert_eq!(found("commit"), ["git_log"], "beginnings of words count");
        assert_eq!(found("file"), ["fs_read_file", "fs_write_file", "mail_send"]);
        assert_eq!(found("unheard"), [""; 0]);
        assert_eq!(found("").len(), 4, "no word asks for everything");
    }
}
