//! Which names this server answers to, and which web pages may speak to it.
//!
//! Invariants:
//! - a name that is not listed is refused, whatever address it was resolved to (DNS rebinding);
//! - a page may speak when it came from this very server or its origin is listed; `null` never is;
//! - a request without `Origin` comes from no page, and is judged by its token alone.

use std::net::SocketAddr;

use axum::extract::Request;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
    },
    uri::Authority,
};

use crate::config::Server;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
const METHODS: &str = "GET, POST, DELETE";
const HEADERS: &str = "Authorization, Content-Type, Accept, Last-Event-ID, MCP-Protocol-Version, \
                       Mcp-Session-Id, Mcp-Method, Mcp-Name";
const EXPOSED: &str = "WWW-Authenticate, Retry-After, ETag, Mcp-Session-Id";

/// Why a request was turned away unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("this server does not answer to that host; an operator can list it in server.allowed_hosts")]
    Host,
    #[error("pages of that origin may not call; an operator can list it in server.allowed_origins")]
    Origin,
}

pub(super) struct Gate {
    hosts: Vec<Name>,
    origins: Vec<String>,
}

/// A host name in lower case; without a port it is meant with every port.
struct Name {
    host: String,
    port: Option<u16>,
}

impl Gate {
    pub(super) fn new(server: &Server, address: SocketAddr) -> Self {
        let public: Option<Uri> = server.public_url.as_deref().and_then(|url| url.parse().ok());
        let authority = public.as_ref().and_then(Uri::authority);
        let listed = server.allowed_hosts.iter().filter_map(|host| host.parse().ok());
        let mut hosts: Vec<Name> = listed.map(|host: Authority| Name::of(&host)).collect();
        hosts.extend(LOOPBACK.map(str::to_owned).map(Name::any_port));
        hosts.extend(authority.map(|at| Name::any_port(at.host().to_ascii_lowercase())));
        // Nobody is called 0.0.0.0, but browsers take it for the loopback.
        if !address.ip().is_unspecified() {
            hosts.extend(
                address.to_string().parse().ok().map(|at: Authority| Name::any_port(at.host().to_owned())),
            );
        }
        let mut origins = server.allowed_origins.clone();
        if let (Some(scheme), Some(authority)) = (public.as_ref().and_then(Uri::scheme_str), authority) {
            origins.push(format!("{scheme}://{authority}").to_ascii_lowercase());
        }
        Self { hosts, origins }
    }

    /// The request's origin, when it has one, and both it and the host are known.
    pub(super) fn judge(&self, request: &Request) -> Result<Option<HeaderValue>, Refusal> {
        let host = only(request.headers(), &HOST).ok().flatten().ok_or(Refusal::Host)?;
        let host: Authority = host.as_bytes().try_into().map_err(|_| Refusal::Host)?;
        // An absolute request target names the host a second time.
        let named = request.uri().authority();
        if !self.answers_to(&host) || named.is_some_and(|named| !self.answers_to(named)) {
            return Err(Refusal::Host);
        }
        let Some(origin) = only(request.headers(), &ORIGIN).map_err(|()| Refusal::Origin)? else {
            return Ok(None);
        };
        let text = origin.to_str().map_err(|_| Refusal::Origin)?;
        let own = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let own = own.is_some_and(|own| own.eq_ignore_ascii_case(host.as_str()));
        if !own && !self.origins.iter().any(|listed| listed == text) {
            return Err(Refusal::Origin);
        }
        Ok(Some(origin.clone()))
    }

    fn answers_to(&self, at: &Authority) -> bool {
        let asked = Name::of(at);
        let same =
            |name: &Name| name.host == asked.host && name.port.is_none_or(|port| Some(port) == asked.port);
        !at.as_str().contains('@') && self.hosts.iter().any(same)
    }
}

impl Name {
    fn of(at: &Authority) -> Self {
        Self { host: at.host().to_ascii_lowercase(), port: at.port_u16() }
    }

    fn any_port(host: String) -> Self {
        Self { host, port: None }
    }
}

/// Whether a browser asks here if a page's request may be sent (the Fetch standard, CORS preflight).
pub(super) fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Lets pages of an origin that was judged good read the answer.
pub(super) fn share(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(VARY, HeaderValue::from_static("origin"));
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
        (ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// The header's value, when it stands there at most once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(()),
    }
}
