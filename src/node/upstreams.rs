//! What the configuration says of an upstream, as the gateway and its connection take it.
//!
//! Invariants:
//! - configured upstreams keep their order: an earlier one wins a name;
//! - of our environment a program gets what the configuration names; a wrapped server gets all but what is ours.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    config,
    log::home::Home,
    router::audience::Audience,
    runtime::{
        gateway,
        upstream::{
            self,
            credentials::{self, Credentials, vault::Vault},
        },
    },
};

/// The rank of the first configured upstream. Builtin tools, the fixtures and a wrapped server have lower ranks.
const UPSTREAM_RANK: u32 = 10;
/// Our own settings in the environment, which may be secret, begin so; no server gets them.
const OUR_VARIABLES: &str = "CAIRN_";

/// Returns the credentials of a configured upstream; `None` where it takes none, or where its headers say who asks.
pub fn credentials(home: &Home, upstream: &config::Upstream) -> Option<Credentials> {
    let url = upstream.url.as_deref()?;
    if upstream.headers.0.keys().any(|name| name.eq_ignore_ascii_case("authorization")) {
        return None;
    }
    let oauth = upstream.oauth.clone().unwrap_or_default();
    let settings = credentials::Settings {
        client_id: oauth.client_id,
        client_secret: oauth.client_secret,
        private_key: oauth.private_key_file,
        metadata_url: oauth.client_metadata_url,
        scopes: oauth.scopes,
        redirect_port: oauth.redirect_port,
        per_caller: upstream.per_caller,
        grant: match oauth.grant {
            config::Grant::AuthorizationCode => credentials::Grant::Code,
            config::Grant::ClientCredentials => credentials::Grant::Client,
        },
    };
    Some(Credentials::new(&upstream.name, url, settings, Vault::of(home.dir())))
}

/// Returns the environment of an upstream's program, beside what every program gets: what it inherits by name, and what
/// the configuration sets.
fn environment(upstream: &config::Upstream) -> BTreeMap<String, String> {
    let inherited =
        upstream.inherit_env.iter().filter_map(|name| Some((name.clone(), std::env::var(name).ok()?)));
    let mut all: BTreeMap<String, String> = inherited.collect();
    all.extend(upstream.env.0.clone());
    all
}

/// Returns the environment of a wrapped server: what the client gave to us for it, without what is ours.
pub fn whole_environment() -> BTreeMap<String, String> {
    let all = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    all.filter(|(name, _)| !name.starts_with(OUR_VARIABLES)).collect()
}

/// Returns how the configured upstream at place `n` is reached, and how its offer appears here.
pub fn settings(
    home: &Home,
    n: usize,
    upstream: &config::Upstream,
) -> (upstream::Settings, gateway::Settings) {
    let transport = match (&upstream.command, &upstream.url) {
        (Some(command), _) => upstream::Transport::Child {
            command: command.clone(),
            args: upstream.args.clone(),
            env: environment(upstream),
            directory: upstream.cwd.clone(),
            user: upstream.user.clone(),
        },
        (None, url) => upstream::Transport::Http {
            url: url.clone().unwrap_or_default(),
            headers: upstream.headers.0.clone(),
            credentials: credentials(home, upstream).map(Arc::new),
        },
    };
    let shown = gateway::Settings {
        name: upstream.name.clone(),
        prefix: upstream.prefix(),
        enable: upstream.enable.clone(),
        disable: upstream.disable.clone(),
        rank: UPSTREAM_RANK + n as u32,
        lane: upstream.lane.clone(),
        timeout_ms: upstream.timeout_ms,
    };
    let at = upstream::Settings {
        name: upstream.name.clone(),
        transport,
        timeout: gateway::REQUEST_MAX,
        capabilities: Audience::default().capabilities,
        sharing: match upstream.isolate {
            true => upstream::Sharing::BySession,
            false => upstream::Sharing::ByCapabilities,
        },
        sessions_first: false,
        updates: Default::default(),
    };
    (at, shown)
}
