//! Reads text and environment variables into typed sections, one key at a time, so that each fault has its own place.
//!
//! Invariants:
//! - the keys of a section are asked of its struct's `Deserialize`; only the names of sections are repeated here;
//! - a fault says what a value must be, and never repeats one that may be a secret.

use std::{collections::BTreeMap, fmt, iter::successors};

use serde::{Deserializer, de, de::DeserializeOwned, de::Visitor, forward_to_deserialize_any};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{Config, Fault, Origin, wording};

const PREFIX: &str = "CAIRN__";
/// The least similarity (Jaro-Winkler) at which a known key is suggested for an unknown one.
const ALIKE_MIN: f64 = 0.75;
/// The sections whose keys an environment variable can set: those that hold plain keys.
const PLAIN: [&str; 8] = ["server", "auth", "log", "tasks", "p2p", "capture", "telemetry", "router"];

/// The origin of every key, and the faults found so far.
#[derive(Default)]
pub(super) struct Report {
    pub(super) faults: Vec<Fault>,
    origins: BTreeMap<String, Origin>,
    /// The places of values that could not be read and have their default. Rules report no further fault at or below
    /// them.
    unread: Vec<String>,
}

/// The keys of `[tools]` that are not the names of tools, and its list of rules.
const OFFER: [&str; 4] = ["allow", "deny", "builtin", "catalogue"];
const RULES: &str = "rules";

/// The keys of one table, each with its possible values, best first. A variable may be a string or a TOML value.
type Entries = BTreeMap<String, Vec<Value>>;

impl Report {
    pub(super) fn fault(&mut self, place: &str, message: impl Into<String>) {
        if self.unread.iter().any(|unread| is_within(place, unread)) {
            return;
        }
        // A missing key has no origin of its own, so the nearest table around it gives the line.
        let around = successors(Some(place), |place| place.rfind(['.', '[']).map(|end| &place[..end]));
        let origin = around.filter_map(|place| self.origins.get(place)).next().cloned();
        let origin = origin.unwrap_or(Origin::Elsewhere);
        self.faults.push(Fault { place: place.to_owned(), origin, message: message.into() });
    }

    /// Adds a range to the fault of a number that could not be read, which says only what sort of number it must be.
    /// Returns whether there is such a fault.
    pub(super) fn narrow(&mut self, place: &str, range: &str) -> bool {
        let fault = self.faults.iter_mut().find(|fault| fault.place == place);
        let Some(fault) = fault.filter(|fault| fault.message.ends_with(wording::WHOLE)) else {
            return false;
        };
        fault.message.push_str(range);
        true
    }

    /// Returns whether the value here is one of a variable, whose type was only guessed.
    fn is_variable(&self, place: &str) -> bool {
        matches!(self.origins.get(place), Some(Origin::Variable(_)))
    }

    /// Returns the faults in the order of the file's lines, then those of variables, then the others.
    pub(super) fn into_faults(mut self) -> Vec<Fault> {
        self.faults.sort_by_key(|fault| match fault.origin {
            Origin::Line(line) => (0, line),
            Origin::Variable(_) => (1, 0),
            Origin::Elsewhere => (2, 0),
        });
        self.faults
    }
}

/// Reads whatever can be read. Anything else is a fault in the report, and keeps its default.
pub(super) fn read(text: &str, env: impl IntoIterator<Item = (String, String)>) -> (Config, Report) {
    let mut report = Report::default();
    let mut file = parse(text, &mut report);
    let mut variables = variables(env, &mut report);
    let mut section = |name: &str| {
        let table = match file.remove(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(_) => {
                report.fault(name, "expected a table");
                Table::new()
            }
        };
        let mut entries = single(table);
        entries.append(&mut variables.remove(name).unwrap_or_default());
        entries
    };
    let (server, auth, log) = (section("server"), section("auth"), section("log"));
    let (mut tasks, mut p2p, capture) = (section("tasks"), section("p2p"), section("capture"));
    let (telemetry, mut router, mut tools) = (section("telemetry"), section("router"), section("tools"));
    let (offered, rules) = offered(&mut tools);
    let lanes = members(router.remove("lanes"), "router.lanes", &mut report);
    let rates = members(tasks.remove("rates"), "tasks.rates", &mut report);
    let peers = p2p.remove("peers").and_then(|mut readings| readings.pop());
    let upstream = file.remove("upstream");

    let mut config = Config {
        server: table(server, "server", &mut report),
        auth: table(auth, "auth", &mut report),
        log: table(log, "log", &mut report),
        upstream: list(upstream, "upstream", &mut report),
        tasks: table(tasks, "tasks", &mut report),
        p2p: table(p2p, "p2p", &mut report),
        capture: table(capture, "capture", &mut report),
        telemetry: table(telemetry, "telemetry", &mut report),
        router: table(router, "router", &mut report),
        tools: tables(tools, "tools", &mut report),
        offer: table(offered, "tools", &mut report),
    };
    config.offer.rules = list(rules, "tools.rules", &mut report);
    config.p2p.peers = list(peers, "p2p.peers", &mut report);
    config.tasks.rates = tables(rates, "tasks.rates", &mut report);
    config.router.lanes = tables(lanes, "router.lanes", &mut report);
    for key in file.keys() {
        unknown(key, key, fields::<Config>(), &mut report);
    }
    report.unread = report.faults.iter().map(|fault| fault.place.clone()).collect();
    (config, report)
}

/// Takes out of `[tools]` what is not the metadata of a tool: the keys of the offer, and its rules.
fn offered(tools: &mut Entries) -> (Entries, Option<Value>) {
    let is_key = |name: &str, readings: &[Value]| {
        let known = OFFER.contains(&name) || name == RULES;
        known && !readings.iter().any(Value::is_table)
    };
    let (mut keys, others): (Entries, Entries) =
        std::mem::take(tools).into_iter().partition(|(name, readings)| is_key(name, readings));
    *tools = others;
    let rules = keys.remove(RULES).and_then(|mut readings| readings.pop());
    (keys, rules)
}

/// Parses the file, and notes the line of every key in the report.
fn parse(text: &str, report: &mut Report) -> Table {
    let parsed = DeTable::parse(text).and_then(|lines| {
        note_lines(text, lines.get_ref(), "", report);
        toml::from_str::<Table>(text)
    });
    parsed.unwrap_or_else(|error| {
        let line = error.span().map_or(Origin::Elsewhere, |span| Origin::Line(line_of(text, span.start)));
        report.origins.insert(String::new(), line);
        // The parser's own message quotes the line, which may hold a secret.
        report.fault("", "is not TOML from here on");
        Table::new()
    })
}

fn note_lines(text: &str, table: &DeTable<'_>, path: &str, report: &mut Report) {
    for (key, value) in table {
        let place = below(path, key.get_ref());
        report.origins.insert(place.clone(), Origin::Line(line_of(text, key.span().start)));
        note_value(text, value.get_ref(), &place, report);
    }
}

fn note_value(text: &str, value: &DeValue<'_>, place: &str, report: &mut Report) {
    match value {
        DeValue::Table(table) => note_lines(text, table, place, report),
        DeValue::Array(array) => {
            for (index, item) in array.iter().enumerate() {
                let place = format!("{place}[{index}]");
                report.origins.insert(place.clone(), Origin::Line(line_of(text, item.span().start)));
                note_value(text, item.get_ref(), &place, report);
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
}

/// Returns the variables `CAIRN__SECTION__KEY` by section. Each value is tried as a string first, then as TOML.
fn variables(
    env: impl IntoIterator<Item = (String, String)>,
    report: &mut Report,
) -> BTreeMap<String, Entries> {
    let mut sections = BTreeMap::<String, Entries>::new();
    for (name, text) in env {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        let path = rest.to_ascii_lowercase();
        let origin = Origin::Variable(name.clone());
        let Some((section, key)) = path.split_once("__").filter(|(section, _)| PLAIN.contains(section))
        else {
            report.origins.insert(path.clone(), origin);
            report
                .fault(&path, format!("expected CAIRN__SECTION__KEY with a section of {}", PLAIN.join(", ")));
            continue;
        };
        report.origins.insert(below(section, key), origin);
        let mut readings = vec![Value::String(text.clone())];
        let typed = toml::from_str::<Table>(&format!("value = {text}")).unwrap_or_default();
        readings.extend(typed.into_iter().filter(|(key, _)| key == "value").map(|(_, value)| value));
        sections.entry(section.to_owned()).or_default().insert(key.to_owned(), readings);
    }
    sections
}

/// Reads an array of tables, one by one.
fn list<T: DeserializeOwned + Default>(value: Option<Value>, path: &str, report: &mut Report) -> Vec<T> {
    let items = match value {
        None => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(_) => {
            report.fault(path, format!("expected [[{path}]], with two brackets"));
            Vec::new()
        }
    };
    let mut read = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let place = format!("{path}[{index}]");
        let entries = members(Some(vec![item]), &place, report);
        read.push(table(entries, &place, report));
    }
    read
}

/// Reads a table of tables, one by one.
fn tables<T: DeserializeOwned + Default>(
    entries: Entries,
    path: &str,
    report: &mut Report,
) -> BTreeMap<String, T> {
    let mut read = BTreeMap::new();
    for (name, readings) in entries {
        let place = below(path, &name);
        let entries = members(Some(readings), &place, report);
        read.insert(name, table(entries, &place, report));
    }
    read
}

/// Returns the keys of a value that must be a table.
fn members(readings: Option<Vec<Value>>, place: &str, report: &mut Report) -> Entries {
    let Some(readings) = readings else {
        return Entries::new();
    };
    let found = readings.into_iter().find_map(|reading| match reading {
        Value::Table(table) => Some(single(table)),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_) => None,
    });
    found.unwrap_or_else(|| {
        report.fault(place, "expected a table");
        Entries::new()
    })
}

fn single(table: Table) -> Entries {
    table.into_iter().map(|(key, value)| (key, vec![value])).collect()
}

/// Reads a struct whose fields all have a default: each key is tried alone, then the good ones are read together.
fn table<T: DeserializeOwned + Default>(entries: Entries, path: &str, report: &mut Report) -> T {
    let known = fields::<T>();
    let mut good = Table::new();
    for (key, readings) in entries {
        let place = below(path, &key);
        if !known.contains(&key.as_str()) {
            unknown(&key, &place, known, report);
            continue;
        }
        let mut refusal = None;
        let read = readings.into_iter().find(|reading| {
            let alone = Table::from_iter([(key.clone(), reading.clone())]);
            let refused = alone.try_into::<T>().err();
            let fits = refused.is_none();
            refusal = refused.map(|error| wording::unreadable(&error, reading, !report.is_variable(&place)));
            fits
        });
        match (read, refusal) {
            (Some(value), _) => {
                good.insert(key, value);
            }
            (None, Some((below, said))) => report.fault(&format!("{place}{below}"), said),
            (None, None) => {}
        }
    }
    good.try_into().unwrap_or_default()
}

fn unknown(key: &str, place: &str, known: &[&str], report: &mut Report) {
    let nearest = known
        .iter()
        .map(|name| (strsim::jaro_winkler(key, name), *name))
        .filter(|(alike, _)| *alike >= ALIKE_MIN)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    match nearest {
        Some((_, name)) => report.fault(place, format!("unknown key; did you mean `{name}`?")),
        None => report.fault(place, format!("unknown key; known are {}", known.join(", "))),
    }
}

/// Returns whether `place` is `outer` or below it.
fn is_within(place: &str, outer: &str) -> bool {
    let rest = place.strip_prefix(outer);
    rest.is_some_and(|rest| outer.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

fn below(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

/// Returns the names of a struct's fields, as its `Deserialize` asks for them.
fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    T::deserialize(Probe).map_or_else(|asked| asked.0, |_| &[])
}

/// Returns the sections and the keys that each of them knows, for the test of the template.
#[cfg(test)]
pub(super) fn keys_of() -> Vec<(&'static str, &'static [&'static str])> {
    use super::{
        Auth, Captures, Entry, Log, Offer, P2p, Rate, Router, Rule, Server, Tasks, Telemetry, Upstream,
    };
    vec![
        ("", fields::<Config>()),
        ("server", fields::<Server>()),
        ("auth", fields::<Auth>()),
        ("log", fields::<Log>()),
        ("tasks", fields::<Tasks>()),
        ("capture", fields::<Captures>()),
        ("telemetry", fields::<Telemetry>()),
        ("router", fields::<Router>()),
        ("p2p", fields::<P2p>()),
        ("upstream", fields::<Upstream>()),
        ("p2p.peers", fields::<Entry>()),
        ("tasks.rates.*", fields::<Rate>()),
        ("tools", fields::<Offer>()),
        ("tools.rules", fields::<Rule>()),
    ]
}

struct Probe;

#[derive(Debug)]
struct KnownFields(&'static [&'static str]);

impl<'de> Deserializer<'de> for Probe {
    type Error = KnownFields;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, KnownFields> {
        Err(KnownFields(&[]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, KnownFields> {
        Err(KnownFields(fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl de::Error for KnownFields {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl std::error::Error for KnownFields {}

impl fmt::Display for KnownFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("asked for its fields")
    }
}
