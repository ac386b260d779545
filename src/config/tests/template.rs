//! The file that `config init` writes, held against the defaults and the keys there are.
//!
//! Invariant: a key that is not in the file, or is there with another default, fails a test.

use std::collections::BTreeSet;

use crate::config::{Config, Overrides, read::keys_of, template::TEMPLATE, tests::load};

/// The template with some of its settings in force: `keeps` gets the section and whether it is only an example.
fn with(keeps: &dyn Fn(&str, bool) -> bool) -> String {
    let (mut text, mut section, mut example) = (String::new(), String::new(), false);
    for line in TEMPLATE.lines() {
        let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ') && !rest.is_empty());
        let bare = setting.unwrap_or(line);
        if bare.starts_with('[') {
            section = bare.trim_matches(['[', ']']).to_owned();
            // A section that is a setting is itself an example, with all that stands in it.
            example = setting.is_some();
        } else if let Some(said) = line.strip_prefix("# ") {
            example = said.ends_with("Example:") || setting_section(&section);
        }
        let put = setting.filter(|_| keeps(&section, example || setting_section(&section)));
        text += put.unwrap_or(line);
        text.push('\n');
        if setting.is_none() && line.is_empty() {
            example = false;
        }
    }
    text
}

/// Whether a section of the template is one that has no defaults.
fn setting_section(section: &str) -> bool {
    ["upstream", "tools.", "tasks.rates", "p2p.peers"].iter().any(|known| section.starts_with(known))
}

fn shown(config: &Config) -> String {
    format!("{config:?}")
}

#[test]
fn the_template_is_the_defaults() {
    let defaults = shown(&Config::default());
    let loaded =
        |text: &str| load(text, &[], &Overrides::default()).unwrap_or_else(|err| panic!("{err}\n{text}"));
    assert_eq!(shown(&loaded(TEMPLATE)), defaults);
    let in_force = with(&|_, example| !example);
    assert_ne!(in_force, TEMPLATE);
    assert_eq!(shown(&loaded(&in_force)), defaults);
    let mut whole = loaded(&with(&|_, _| true));
    assert_eq!((whole.upstream.len(), whole.tools.len(), whole.p2p.peers.len()), (2, 1, 1));
    assert_eq!(whole.auth.issuer.take().as_deref(), Some("https://issuer.example"));
}

#[test]
fn the_template_names_every_key() {
    let whole: toml::Table = toml::from_str(&with(&|_, _| true)).expect("it is toml");
    for (section, known) in keys_of() {
        let mut found = BTreeSet::new();
        let mut tables = vec![toml::Value::Table(whole.clone())];
        for name in section.split('.').filter(|name| !name.is_empty()) {
            tables = tables.iter().flat_map(|table| within(table, name)).collect();
        }
        for table in &tables {
            found.extend(table.as_table().into_iter().flatten().map(|(key, _)| key.clone()));
        }
        let missing: Vec<&&str> = known.iter().filter(|key| !found.contains(**key)).collect();
        // A key that takes no value in this build stands there as a comment.
        let missing: Vec<_> = missing.into_iter().filter(|key| **key != "otlp_endpoint").collect();
        assert!(missing.is_empty(), "template.toml lacks {missing:?} of [{section}]");
    }
}

/// The tables under a key of a table; `*` stands for any key, and a list for its items.
fn within(table: &toml::Value, name: &str) -> Vec<toml::Value> {
    let values: Vec<&toml::Value> = match (table, name) {
        (toml::Value::Table(table), "*") => table.values().collect(),
        (value, name) => value.get(name).into_iter().collect(),
    };
    values
        .into_iter()
        .flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]))
        .collect()
}
