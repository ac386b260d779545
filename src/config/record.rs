//! The part of the configuration that the log records: what decides who may come in, and what is kept of calls.
//!
//! Invariants:
//! - no secret is recorded: no token, no header, no environment of an upstream, no file path;
//! - equal configurations give equal maps, so that two can be compared.

use std::collections::BTreeMap;

use super::{Config, offer::Rule, p2p::Entry};

impl Config {
    /// Returns the recorded settings by name. Five of them are always there; others only if they have a value.
    pub fn on_record(&self) -> BTreeMap<String, String> {
        let flag = |value: bool| value.to_string();
        let always = [
            ("auth.mode", self.auth.mode.as_str().to_owned()),
            ("server.loopback", flag(self.server.listen.ip().is_loopback())),
            ("log.fsync", flag(self.log.fsync)),
            ("capture.default", self.capture.default.as_str().to_owned()),
            ("p2p.enable", flag(self.p2p.enable)),
        ];
        let mut settings: BTreeMap<String, String> =
            always.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut put = |name: String, value: String| {
            if !value.is_empty() {
                settings.insert(name, value);
            }
        };
        put("auth.issuer".to_owned(), self.auth.issuer.clone().unwrap_or_default());
        put("auth.audience".to_owned(), self.auth.audience.clone().unwrap_or_default());
        put("server.public_url".to_owned(), self.server.public_url.clone().unwrap_or_default());
        put("server.tls".to_owned(), self.server.tls_cert.as_ref().map(|_| flag(true)).unwrap_or_default());
        let shown = self.server.metrics_listen.map(|at| flag(at.ip().to_canonical().is_loopback()));
        put("server.metrics_loopback".to_owned(), shown.unwrap_or_default());
        put("server.allowed_origins".to_owned(), self.server.allowed_origins.join(" "));
        put("server.allowed_hosts".to_owned(), self.server.allowed_hosts.join(" "));
        for (tool, mode) in &self.capture.tools {
            put(format!("capture.tools.{tool}"), mode.as_str().to_owned());
        }
        let offer = &self.offer;
        put("tools.allow".to_owned(), offer.allow.join(" "));
        put("tools.deny".to_owned(), offer.deny.join(" "));
        if let Some(groups) = &offer.builtin {
            put("tools.builtin".to_owned(), format!("[{}]", groups.join(" ")));
        }
        for (index, Rule { principals, allow, deny }) in offer.rules.iter().enumerate() {
            let lists = format!("allow={} deny={}", allow.join(","), deny.join(","));
            put(format!("tools.rules.{index}"), format!("principals={} {lists}", principals.join(",")));
        }
        if self.p2p.enable {
            put("p2p.allow".to_owned(), self.p2p.allow.join(" "));
            put("p2p.block".to_owned(), self.p2p.block.join(" "));
            for entry in &self.p2p.peers {
                put(format!("p2p.peers.{}", entry.id), peer(entry));
            }
        }
        settings
    }
}

/// Formats what a peer may do here, and what this node does with it.
fn peer(entry: &Entry) -> String {
    format!(
        "scopes={} tools={} payloads={} follow={} offer={} work={}",
        entry.scopes.join(","),
        entry.tools.join(","),
        entry.payloads,
        entry.follow,
        entry.offer,
        entry.work.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn settings(env: &[(&str, &str)]) -> BTreeMap<String, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(None, env, &Overrides::default()).expect("usable").on_record()
    }

    #[test]
    fn what_decides_who_comes_in_is_named_and_what_is_secret_is_not() {
        let usual = settings(&[]);
        let of = |settings: &BTreeMap<String, String>, name: &str| settings.get(name).cloned();
        assert_eq!(of(&usual, "auth.mode").as_deref(), Some("none"));
        assert_eq!(of(&usual, "server.loopback").as_deref(), Some("true"));
        assert_eq!(usual, Config::default().on_record());
        let changed = settings(&[
            ("CAIRN__AUTH__MODE", "static"),
            ("CAIRN__SERVER__LISTEN", "0.0.0.0:7420"),
            ("CAIRN__CAPTURE__DEFAULT", "digest"),
        ]);
        assert_eq!(of(&changed, "auth.mode").as_deref(), Some("static"));
        assert_eq!(of(&changed, "server.loopback").as_deref(), Some("false"));
        assert_eq!(of(&changed, "capture.default").as_deref(), Some("digest"));
        assert!(changed.values().all(|value| !value.contains("7420")));
    }
}
