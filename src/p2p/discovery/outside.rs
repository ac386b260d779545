//! Outside: the address under which this node is seen, asked of services that the configuration names.
//!
//! Invariants:
//! - nobody is asked who is not named; what is told of this node is that it asks;
//! - an answer is one IP address as text, alone or as `ip` of a JSON object: anything else is none.

use std::{net::IpAddr, time::Duration};

use futures_util::future::join_all;
use reqwest::{Client, header, redirect};
use serde::Deserialize;

use super::LookError;
use crate::peer::SERVICES_MAX;

/// How long one may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const BYTES_MAX: usize = 4_096;

/// The services, each by its URL.
pub struct Outside {
    client: Client,
    urls: Vec<String>,
}

impl Outside {
    /// `None` if no service is named, or no HTTP client can be made, which is logged.
    pub fn new(urls: &[String]) -> Option<Self> {
        if urls.is_empty() {
            return None;
        }
        // Whoever installed one before has done the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(ANSWER_MAX)
            .redirect(redirect::Policy::none())
            .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")));
        let client = client.build().inspect_err(|err| {
            tracing::error!(%err, "external_services cannot be asked: no http client can be made");
        });
        Some(Self { client: client.ok()?, urls: urls.iter().take(SERVICES_MAX).cloned().collect() })
    }

    /// Asks every service. Returns each answer with the service's URL.
    pub async fn ask(&self) -> Vec<(&str, Result<IpAddr, LookError>)> {
        join_all(self.urls.iter().map(async |url| (url.as_str(), self.ask_one(url).await))).await
    }

    async fn ask_one(&self, url: &str) -> Result<IpAddr, LookError> {
        let failed = |err: reqwest::Error| match err.is_timeout() {
            true => LookError::TimedOut,
            // Without the URL: it may hold a key.
            false => LookError::Unavailable(err.without_url().to_string()),
        };
        let request = self.client.get(url).header(header::ACCEPT, "text/plain, application/json");
        let mut response =
            request.send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > BYTES_MAX {
                break;
            }
        }
        told(&body).ok_or_else(|| LookError::Unavailable("its answer is no ip address".to_owned()))
    }
}

fn told(body: &[u8]) -> Option<IpAddr> {
    #[derive(Deserialize)]
    struct AddressReply {
        ip: IpAddr,
    }
    let text = std::str::from_utf8(body).ok().filter(|text| text.len() <= BYTES_MAX)?.trim();
    text.parse().ok().or_else(|| Some(serde_json::from_str::<AddressReply>(text).ok()?.ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_address_and_nothing_else() {
        for (body, expected) in [
            ("45.10.1.2", Some("45.10.1.2")),
            (" 2a01::7\r\n", Some("2a01::7")),
            (r#"{"ip": "45.10.1.2", "country": "x"}"#, Some("45.10.1.2")),
            ("", None),
            ("<html>45.10.1.2</html>", None),
            (r#"{"ip": "me"}"#, None),
            ("45.10.1.2 45.10.1.3", None),
        ] {
            assert_eq!(told(body.as_bytes()), expected.map(|ip| ip.parse().expect("an address")), "{body}");
        }
        assert_eq!(told(&[b' '; BYTES_MAX + 1]), None);
    }
}
