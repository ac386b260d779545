//! Another configuration for a node that runs: what of it can be taken now, and what only at the next start.
//!
//! Invariants:
//! - what results keeps every rule: settings that stay, together with those that change, are judged anew;
//! - a setting that stays is named if it differs.

use std::fmt::Debug;

use super::{Config, ConfigError, Server, read::Report, rules};

impl Config {
    /// Returns this configuration as a node that runs under `before` can take it, and what differs and stays as it was.
    /// Errors: the two together break a rule.
    pub fn in_place_of(self, before: &Self) -> Result<(Self, Vec<&'static str>), ConfigError> {
        let differs = |now: &dyn Debug, before: &dyn Debug| format!("{now:?}") != format!("{before:?}");
        let stays = [
            ("server.listen", self.server.listen != before.server.listen),
            ("server.metrics_listen", self.server.metrics_listen != before.server.metrics_listen),
            ("server.tls_cert", self.server.tls_cert != before.server.tls_cert),
            ("server.tls_key", self.server.tls_key != before.server.tls_key),
            ("log", differs(&self.log, &before.log)),
            ("tasks", differs(&self.tasks, &before.tasks)),
            ("p2p", differs(&self.p2p, &before.p2p)),
            ("telemetry", differs(&self.telemetry, &before.telemetry)),
        ];
        let next = Self {
            server: Server {
                listen: before.server.listen,
                metrics_listen: before.server.metrics_listen,
                tls_cert: before.server.tls_cert.clone(),
                tls_key: before.server.tls_key.clone(),
                ..self.server
            },
            log: before.log.clone(),
            tasks: before.tasks.clone(),
            p2p: before.p2p.clone(),
            telemetry: before.telemetry.clone(),
            ..self
        };
        let mut report = Report::default();
        rules::check(&next, &mut report);
        match report.into_faults() {
            faults if faults.is_empty() => {
                Ok((next, stays.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()))
            }
            faults => Err(ConfigError::Faults(faults)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthMode, Overrides};

    fn config(text: &str) -> Config {
        Config::parse(text, [], &Overrides::default()).expect("usable")
    }

    #[test]
    fn what_stays_is_named_and_what_changes_is_taken() {
        let before = config("[server]\nrate_limit_burst = 5\n[log]\nfsync = false");
        let after =
            config("[server]\nlisten = \"127.0.0.1:1\"\nrate_limit_burst = 7\n[tasks]\nlease_ms = 500");
        let (next, stays) = after.in_place_of(&before).expect("it keeps the rules");
        assert_eq!(stays, ["server.listen", "log", "tasks"]);
        assert_eq!((next.server.rate_limit_burst, next.server.listen), (7, before.server.listen));
        assert!(!next.log.fsync && next.tasks.lease_ms == before.tasks.lease_ms);
        let (_, stays) = config("").in_place_of(&config("")).expect("it keeps the rules");
        assert_eq!(stays, Vec::<&str>::new());
    }

    #[test]
    fn nobody_is_let_in_without_a_token_because_the_address_stays() {
        let before = config("[server]\nlisten = \"0.0.0.0:7420\"\n[auth]\nmode = \"static\"");
        let refused = config("").in_place_of(&before).expect_err("the address is not loopback");
        assert!(refused.to_string().contains("auth.mode"), "{refused}");
        assert_eq!(before.auth.mode, AuthMode::Static);
    }
}
