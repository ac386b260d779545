//! Tests of configurations as data: a text, its environment variables, and the faults they have.

#[cfg(feature = "p2p")]
mod addresses;
mod template;

use std::net::SocketAddr;

use super::{AuthMode, Config, ConfigError, Overrides};
use crate::{
    caller::pattern::Named,
    follow::driver::Erasures,
    router::{capture::Capture, metadata::Need},
};

fn load(text: &str, env: &[(&str, &str)], overrides: &Overrides) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let path = directory.path().join("cairn.toml");
    std::fs::write(&path, text).expect("a file can be written there");
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(&path), env, overrides)
}

fn faults(text: &str, env: &[(&str, &str)]) -> Vec<String> {
    match load(text, env, &Overrides::default()) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
        Err(error) => panic!("{error}"),
    }
}

/// Checks that each text has, among its faults, one that says this.
fn each_has_its_fault(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let found = faults(text, &[]);
        assert!(found.iter().any(|fault| fault.contains(expected)), "{text}: {expected} is not in {found:?}");
    }
}

#[test]
fn tools_hold_the_offer_beside_the_metadata_of_single_tools() {
    let text = r#"
        [tools]
        allow = ["fs_*", "group:git"]
        builtin = ["tasks", "queue"]
        catalogue = "search"
        [tools.deny]
        priority = 7
        [[tools.rules]]
        principals = ["auth0|ann"]
        deny = ["fs_write"]
    "#;
    let config = load(text, &[], &Overrides::default()).expect("usable");
    assert_eq!(config.tools["deny"].priority, Some(7), "a table is the metadata of a tool");
    assert!(config.finds());
    let rights = config.rights(true);
    let allows = |who: &str, name: &str, group: &str| rights.allow(who, &Named { name, group });
    assert!(allows("bob", "fs_write", "fs") && allows("bob", "log", "git") && !allows("bob", "log", "svn"));
    assert!(!allows("auth0|ann", "fs_write", "fs") && allows("auth0|ann", "fs_read", "fs"));
    assert!(rights.offer("tasks") && !rights.offer("peers"));
    assert!(load("", &[], &Overrides::default()).expect("usable").rights(true).are_open());
    assert!(!Config::default().rights(false).offer("tasks"), "nothing is said, and none are offered");
    let settings = config.on_record();
    assert_eq!(settings["tools.allow"], "fs_* group:git");
    assert_eq!(settings["tools.builtin"], "[tasks queue]");
    assert_eq!(settings["tools.rules.0"], "principals=auth0|ann allow= deny=fs_write");
    each_has_its_fault(&[
        ("[tools]\nallow = [\"a b\"]", "tools.allow[0]: expected a tool's name"),
        ("[tools]\nbuiltin = [\"task\"]", "tools.builtin[0]: expected one of catalogue, provenance"),
        ("[tools]\ncatalogue = \"lazy\"", "tools.catalogue: it must be `full` or `search`"),
        ("[tools]\nrules = 7", "tools.rules: expected [[tools.rules]]"),
        ("[[tools.rules]]\ndeny = [\"x\"]", "tools.rules[0].principals: expected 1 to"),
        ("[[tools.rules]]\nprincipals = [\"a\"]\ndenies = []", "tools.rules[0].denies: unknown key"),
        ("[tools]\nalow = [\"x\"]", "tools.alow: expected a table"),
    ]);
}

#[test]
fn nothing_set_is_a_loopback_server_without_tokens() {
    let config = Config::load(None, [], &Overrides::default()).expect("defaults keep every rule");
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:7420");
    assert_eq!(config.server.max_body_bytes, 4_194_304);
    assert_eq!(config.auth.mode, AuthMode::None);
    assert_eq!(
        (config.log.group_max, config.log.fsync, config.log.checkpoint_interval_ms),
        (1024, true, 1000)
    );
    assert_eq!(config.capture.default, Capture::Full);
}

#[test]
fn every_key_of_the_surface_is_read() {
    let text = r#"
        [server]
        listen = "0.0.0.0:80"
        public_url = "https://cairn.example"
        max_body_bytes = 1048576
        request_timeout_ms = 1000
        allowed_origins = ["https://app.example"]
        allowed_hosts = ["cairn.internal:80"]
        metrics_listen = "10.0.0.1:9464"
        tls_cert = "chain.pem"
        tls_key = "key.pem"
        rate_limit_per_second = 5
        rate_limit_burst = 10
        [auth]
        mode = "jwt"
        jwks_file = "keys.json"
        issuer = "https://issuer.example"
        [log]
        store = "sqlite"
        group_max = 10
        fsync = false
        checkpoint_interval_ms = 500
        [[upstream]]
        name = "files"
        command = "npx"
        args = ["-y", "server"]
        env = { TOKEN = "sesame" }
        cwd = "/tmp"
        enable = ["read"]
        disable = ["write"]
        timeout_ms = 5
        lane = "upstream"
        [[upstream]]
        name = "far"
        url = "https://far.example/mcp"
        headers = { Authorization = "Bearer sesame" }
        prefix = ""
        [tasks]
        lease_ms = 1000
        ageing_ms = 1000
        max_queue = 1
        max_attempts = 1
        [p2p]
        enable = false
        listen = []
        bootstrap = []
        mdns = true
        dht = true
        relay = true
        dht_protocol = "/private/kad/1"
        upnp = true
        announce_addrs = ["/dns4/cairn.example/tcp/4001"]
        peers_file = "peers"
        github = "a/b"
        github_api = "https://api.example"
        external_services = ["https://address.example"]
        announce = false
        erasures = "keep"
        ttl_s = 10
        min_connections = 0
        max_connections = 1
        request_timeout_ms = 100
        idle_ms = 1000
        allow = ["12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"]
        block = []
        [[p2p.peers]]
        id = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
        addrs = ["/ip4/192.0.2.1/tcp/4001"]
        scopes = ["mcp:call"]
        tools = ["files_*"]
        follow = true
        erasures = "follow"
        offer = false
        work = ["tool:files_read"]
        [capture]
        default = "redacted"
        tools = { "files_read" = "digest" }
        [telemetry]
        log_format = "json"
        [router.lanes.upstream]
        concurrency = 4
        queue = 0
        timeout_ms = 1
        [tools."files_read"]
        runtime = "upstream"
        category = "files"
        priority = 100
        timeout_ms = 1
        retry = { max_retries = 3 }
        cpu = "low"
        io = "medium"
        memory = "high"
    "#;
    let config = load(text, &[], &Overrides::default()).expect("the text keeps every rule");
    assert_eq!(config.upstream.iter().map(super::Upstream::prefix).collect::<Vec<_>>(), ["files_", ""]);
    assert_eq!(config.tools["files_read"].memory, Some(Need::High));
    assert_eq!(config.router.lanes["upstream"].queue, Some(0));
    assert_eq!(config.capture.tools["files_read"], Capture::Digest);
    assert_eq!(config.p2p.peers[0].tools, ["files_*"]);
    let erasures = (config.p2p.erasures, config.p2p.peers[0].erasures);
    assert_eq!(erasures, (Erasures::Keep, Some(Erasures::Follow)));
    assert!(!format!("{config:?}").contains("sesame"));
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let text = "[server]\nlisten = \"127.0.0.1:1\"\nmax_body_bytes = 2048\n[auth]\naudience = \"a\"";
    let env = [
        ("CAIRN__SERVER__LISTEN", "127.0.0.1:2"),
        ("CAIRN__SERVER__MAX_BODY_BYTES", "4096"),
        ("CAIRN__SERVER__ALLOWED_HOSTS", "[\"one\", \"two\"]"),
        ("CAIRN__AUTH__AUDIENCE", "123"),
        ("CAIRN__LOG__FSYNC", "false"),
        ("PATH", "/bin"),
    ];
    let listen = SocketAddr::from(([127, 0, 0, 1], 3));
    let config =
        load(text, &env, &Overrides { listen: Some(listen), no_p2p: true }).expect("all is in bounds");
    assert_eq!(config.server.listen, listen);
    assert_eq!(config.server.max_body_bytes, 4096);
    assert_eq!(config.server.allowed_hosts, ["one", "two"]);
    assert_eq!(config.auth.audience.as_deref(), Some("123"));
    assert!(!config.log.fsync);
}

#[test]
fn all_faults_are_listed_each_with_its_place() {
    let text = "[server]\nlisten = 7\nmax_bodybytes = 1\n[log]\nstore = \"paper\"\n\n[[upstream]]\nname = \"a b\"\n\
                [serverr]\n[router.lanes.fast]\nconcurency = 1";
    assert_eq!(
        faults(text, &[("CAIRN__LOG__GROUP_MAX", "many"), ("CAIRN__WHAT", "1")]),
        [
            "line 2: server.listen: is a number; it must be an address with a port, like 127.0.0.1:7420",
            "line 3: server.max_bodybytes: unknown key; did you mean `max_body_bytes`?",
            "line 5: log.store: it must be `sqlite`",
            "line 7: upstream[0].command: is missing; set exactly one of command and url",
            "line 8: upstream[0].name: expected 1 to 64 of A-Z a-z 0-9 _ -",
            "line 9: serverr: unknown key; did you mean `server`?",
            "line 11: router.lanes.fast.concurency: unknown key; did you mean `concurrency`?",
            "CAIRN__WHAT: expected CAIRN__SECTION__KEY with a section of \
             server, auth, log, tasks, p2p, capture, telemetry, router",
            "CAIRN__LOG__GROUP_MAX: it must be a whole number from 1 to 1024",
        ]
    );
}

#[test]
fn each_rule_names_its_key() {
    let cases = [
        ("server.listen = \"0.0.0.0:80\"", "auth.mode: none is only for a loopback address"),
        (
            "[p2p]\nallow = [\"12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6\"]\n\
             block = [\"12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6\"]",
            "line 3: p2p.block[0]: expected a peer id that is not in p2p.allow",
        ),
        (
            "[p2p]\nblock = [\"12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6\"]\n\
             [[p2p.peers]]\nid = \"12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6\"",
            "p2p.peers[0].id: p2p.allow or p2p.block keeps this peer out",
        ),
        (
            "[p2p]\nallow = [\"12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN\"]\n\
             [[p2p.peers]]\nid = \"12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6\"",
            "p2p.peers[0].id: p2p.allow or p2p.block keeps this peer out",
        ),
        (
            "[[p2p.peers]]\nid = \"12D3KooWPBVB7mJXGrKwQ6DicMptFcpr3mSoPxED3YMg4GC1sxz6\"\n\
             addrs = [\"/ip4/192.0.2.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN\"]",
            "p2p.peers[0].addrs[0]: expected a multiaddr of this peer",
        ),
        (
            "p2p.bootstrap = [\"/ip4/192.0.2.1/tcp/1\"]",
            "p2p.bootstrap[0]: expected a multiaddr that ends in /p2p/",
        ),
        ("p2p.external_services = true", "p2p.external_services: names no service"),
        (
            "p2p.external_services = [\"http://a\", \"http://a\", \"http://a\", \"http://a\", \"http://a\", \"http://a\", \"http://a\", \"http://a\", \"http://a\"]",
            "p2p.external_services: more than 8 services",
        ),
        ("p2p.github = \"a\"", "p2p.github: expected owner/repository"),
        ("p2p.min_connections = 65", "p2p.min_connections: is over p2p.max_connections"),
        ("p2p.peers = 1", "p2p.peers: expected [[p2p.peers]]"),
        ("telemetry.otlp_endpoint = \"x\"", "telemetry.otlp_endpoint: export of traces is not in this build"),
        ("auth.mode = \"jwt\"", "auth.jwks_file: is needed"),
        (
            "auth.mode = \"jwt\"\nauth.jwks_file = \"k\"\nauth.jwks_url = \"https://i/k\"",
            "auth.jwks_url: is set beside",
        ),
        ("auth.mode = \"jwt\"\nauth.jwks_url = \"http://issuer.example/k\"", "auth.jwks_url: expected https"),
        (
            "auth.mode = \"jwt\"\nauth.jwks_url = \"https://user@issuer.example/k\"",
            "auth.jwks_url: expected https",
        ),
        (
            "auth.mode = \"jwt\"\nauth.jwks_url = \"http://127.0.0.1.evil.example/k\"",
            "auth.jwks_url: expected https",
        ),
        ("server.tls_cert = \"c\"", "server.tls_cert: and server.tls_key"),
        ("server.tls_key = \"k\"", "server.tls_cert: and server.tls_key"),
        ("server.metrics_listen = \"127.0.0.1:7420\"", "server.metrics_listen: is the address"),
        ("auth.mode = \"jwt\"", "auth.issuer: is needed"),
        ("auth.mode = \"jwt\"", "auth.audience: is needed"),
        ("auth.mode = \"basic\"", "auth.mode: it must be one of `none`, `static`, `jwt`"),
        ("server.public_url = \"ftp://x\"", "server.public_url: expected"),
        ("server.public_url = \"https://u:p@x\"", "server.public_url: expected"),
        ("server.allowed_origins = [\"*\"]", "server.allowed_origins[0]: expected"),
        ("server.allowed_origins = [\"https://x/\"]", "server.allowed_origins[0]: expected"),
        ("server.allowed_hosts = [\"*.x\"]", "server.allowed_hosts[0]: expected"),
        (
            "server.max_body_bytes = 1",
            "server.max_body_bytes: is 1; it must be a whole number of bytes from 1024 to 67108864",
        ),
        (
            "server.max_body_bytes = -1",
            "server.max_body_bytes: is a negative number; it must be a whole number of bytes from 1024 to 67108864",
        ),
        (
            "server.max_body_bytes = \"1MiB\"",
            "server.max_body_bytes: is a text; it must be a whole number of bytes from 1024 to 67108864",
        ),
        ("server.listen = \"here\"", "server.listen: it must be an address with a port, like 127.0.0.1:7420"),
        ("log.fsync = \"yes\"", "log.fsync: is a text; it must be true or false"),
        (
            "log.checkpoint_interval_ms = 1.5",
            "log.checkpoint_interval_ms: is a number with a fraction; it must be",
        ),
        ("server.allowed_hosts = \"x\"", "server.allowed_hosts: is a text; it must be a list"),
        (
            "server.rate_limit_burst = 5000000000",
            "server.rate_limit_burst: is too large a number; it must be",
        ),
        (
            "upstream = [{name=\"a\", command=\"b\", timeout_ms=\"1s\"}]",
            "upstream[0].timeout_ms: is a text; it must be a whole number of milliseconds from 1 to 86400000",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={redirect_port=\"x\"}}]",
            "upstream[0].oauth.redirect_port: is a text; it must be a whole number",
        ),
        ("log.group_max = 0", "log.group_max: is 0; it must be a whole number from 1 to 1024"),
        ("tasks.lease_ms = 1", "tasks.lease_ms: is 1; it must be a whole number of milliseconds from 100 to"),
        ("upstream = 1", "upstream: expected [[upstream]]"),
        ("upstream = [1]", "upstream[0]: expected a table"),
        ("upstream = [{name=\"a\", command=\"b\", url=\"http://c\"}]", "upstream[0].url: has a command too"),
        ("upstream = [{name=\"a\", url=\"c\"}]", "upstream[0].url: expected"),
        ("upstream = [{name=\"a\", url=\"http://c\", args=[\"x\"]}]", "upstream[0].args: is for a command"),
        (
            "upstream = [{name=\"a\", command=\"b\"}, {name=\"a\", command=\"b\"}]",
            "upstream[1].name: another",
        ),
        (
            "upstream = [{name=\"a\", command=\"b\", oauth={}}]",
            "upstream[0].oauth: is for a url; a command takes env",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", headers={Authorization=\"b\"}, oauth={}}]",
            "upstream[0].oauth: has an authorization header beside it",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={client_secret=\"b\"}}]",
            "upstream[0].oauth.client_secret: needs a client_id",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={grant=\"client_credentials\"}}]",
            "upstream[0].oauth.grant: client_credentials needs",
        ),
        (
            "upstream = [{name=\"a\", command=\"b\", per_caller=true}]",
            "upstream[0].per_caller: is for a url whose callers log in",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={client_id=\"b\", private_key_file=\"k\"}}]",
            "upstream[0].oauth.private_key_file: needs a client_id and the grant client_credentials",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={client_metadata_url=\"http://d/e\"}}]",
            "upstream[0].oauth.client_metadata_url: expected https",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={scopes=[\"b c\"]}}]",
            "upstream[0].oauth.scopes: expected at most 64",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", oauth={secret=\"b\"}}]",
            "upstream[0].oauth: has an unknown key; known are `client_id`",
        ),
        (
            "upstream = [{name=\"a\", url=\"http://c\", headers={A=\"b ${NOWHERE}\"}}]",
            "upstream[0].headers.A: the environment has no variable `NOWHERE`",
        ),
        (
            "upstream = [{name=\"a\", command=\"b\", env={A=\"${file:/nowhere/a}\"}}]",
            "upstream[0].env.A: the file `/nowhere/a` cannot be read",
        ),
        (
            "upstream = [{name=\"a\", command=\"b\", env={A=\"${A\"}}]",
            "upstream[0].env.A: has a `${` that begins no reference",
        ),
        ("upstream = [{name=\"a\", command=\"b\", prefix=\"{\"}]", "upstream[0].prefix: expected"),
        ("tools.a.priority = 101", "tools.a.priority: is 101; it must be a whole number from 0 to 100"),
        (
            "tools.a.retry = {max_retries = 1000}",
            "tools.a.retry.max_retries: is 1000; it must be a whole number from 0 to 100",
        ),
        ("tools.\"a b\".cpu = \"low\"", "tools: a tool's name"),
        ("router.lane = 1", "router.lane: unknown key; did you mean `lanes`?"),
        ("server = 1", "server: expected a table"),
        ("server = ", "line 1: is not TOML"),
    ];
    each_has_its_fault(&cases);
}

#[test]
fn what_cannot_be_read_has_one_fault() {
    for text in [
        "server.listen = \"0.0.0.0:80\"\nauth.mode = \"oauth\"",
        "auth.mode = \"jwt\"\nauth.issuer = \"i\"\nauth.audience = \"a\"\nauth.jwks_file = 7",
        "server.listen = \"0.0.0.0:80\"\nauth = 1",
        "upstream = [{name = \"a\", command = 7}]",
        "upstream = [1]",
        "[server]\nlisten = ",
    ] {
        let found = faults(text, &[("CAIRN__LOG__FSYNC", "true")]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
    }
}

#[test]
fn a_fault_never_repeats_a_value() {
    for text in [
        "upstream = [{name=\"a\", command=\"b\", env=\"sesame\"}]",
        "upstream = [{name=\"a\", command=\"b\", env={A=[\"sesame\"]}}]",
        "upstream = [{name=\"a\", url=\"http://c\", headers={A=\"sesame\\n\"}}]",
        "upstream = [{name=\"a\", url=\"http://u:sesame@c\"}]",
        "upstream = [{name=\"a\", url=\"http://c\", headers={A=\"${se-sesame}\"}}]",
        "upstream = [{name=\"a\", url=\"http://c\", headers={A=\"sesame${B}\"}}]",
        "upstream = [{name=\"a\", url=\"http://c\", oauth={client_secret=\"sesame\"}}]",
        "auth.mode = \"sesame, expected\"",
        "auth.issuer = sesame",
    ] {
        let found = faults(text, &[]).join("; ");
        assert!(!found.is_empty() && !found.contains("sesame"), "{text}: {found}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some("/nowhere/cairn.toml".as_ref()), [], &Overrides::default());
    assert_eq!(
        error.expect_err("the file is missing").to_string(),
        "cannot read the configuration file /nowhere/cairn.toml"
    );
}

#[test]
fn references_stand_for_variables_and_files() {
    let dir = tempfile::tempdir().expect("there is room");
    let file = dir.path().join("token");
    std::fs::write(&file, "hush-file\n").expect("it can be written");
    let text = format!(
        r#"
        [[upstream]]
        name = "a"
        url = "https://${{HOST}}/mcp"
        headers = {{ authorization = "Bearer ${{file:{}}}", plain = "$${{HOST}} $HOST $$", twice = "${{A}}${{A}}" }}

        [[upstream]]
        name = "b"
        url = "https://b.example/mcp"
        oauth = {{ client_id = "c", client_secret = "${{SECRET}}", scopes = ["${{A}}"] }}
        "#,
        file.display()
    );
    let env = [("HOST", "a.example"), ("A", "${HOST}"), ("SECRET", "hush-secret")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let path = dir.path().join("cairn.toml");
    std::fs::write(&path, text).expect("it can be written");
    let config = Config::load(Some(&path), env, &Overrides::default()).expect("it has no fault");
    let [first, second] = &config.upstream[..] else { panic!("there are two") };
    assert_eq!(first.url.as_deref(), Some("https://a.example/mcp"));
    assert_eq!(first.headers.0["authorization"], "Bearer hush-file");
    assert_eq!(first.headers.0["plain"], "${HOST} $HOST $$");
    assert_eq!(first.headers.0["twice"], "${HOST}${HOST}", "what is put in is not read again");
    let oauth = second.oauth.as_ref().expect("it has a table");
    assert_eq!(
        (oauth.client_secret.as_deref(), &oauth.scopes[..]),
        (Some("hush-secret"), &["${A}".to_owned()][..])
    );
    assert!(!format!("{config:?}").contains("hush"));
}
