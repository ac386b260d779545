//! The rules of scopes and rights as data: what covers what, which names a pattern means, what is taken away.

use super::{
    Caller, Scope,
    pattern::{Named, Pattern},
    rights::{Lists, Rights, Rule},
};
use crate::event::Actor;

fn ann() -> Actor {
    Actor { id: "ann".into(), role: "client".into(), proof: None }
}

fn scope(word: &str) -> Scope {
    Scope::parse(word).unwrap_or_else(|| panic!("{word} is no scope"))
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text).unwrap_or_else(|| panic!("{text} is no pattern"))).collect()
}

fn lists(allow: &[&str], deny: &[&str]) -> Lists {
    Lists { allow: patterns(allow), deny: patterns(deny) }
}

const fn tool<'a>(name: &'a str, group: &'a str) -> Named<'a> {
    Named { name, group }
}

#[test]
fn every_word_is_a_scope_and_back() {
    for word in Scope::WORDS {
        assert_eq!(scope(word).as_str(), word);
    }
    for word in ["tools:github_*", "tools:group:git*", "tools:a.b:c/d-e"] {
        assert_eq!(scope(word).as_str(), word);
    }
    for word in
        ["", "tools", "tools:", "tools:a b", "tools:é", "tools:group:", "mcp:*", "tasks:read", "Admin"]
    {
        assert_eq!(Scope::parse(word), None, "{word:?}");
    }
    assert_eq!(Scope::parse(&format!("tools:{}", "x".repeat(161))), None);
}

/// What each scope covers, of all that have one word. Every scope of calls opens the door that needs `mcp:call`.
#[test]
fn old_scopes_are_sets_of_the_finer_ones() {
    for (held, covered) in [
        ("admin", &Scope::WORDS[..]),
        (
            "mcp:call",
            &[
                "mcp:call",
                "tasks:submit",
                "tasks:work",
                "tasks:admin",
                "workflows:read",
                "workflows:submit",
                "workflows:admin",
                "peers:use",
                "tools:*",
            ],
        ),
        ("audit:read", &["audit:read"]),
        ("tasks:submit", &["mcp:call", "tasks:submit"]),
        ("tasks:work", &["mcp:call", "tasks:work"]),
        ("tasks:admin", &["mcp:call", "tasks:submit", "tasks:work", "tasks:admin"]),
        ("workflows:read", &["mcp:call", "workflows:read"]),
        ("workflows:submit", &["mcp:call", "workflows:read", "workflows:submit"]),
        ("workflows:admin", &["mcp:call", "workflows:read", "workflows:submit", "workflows:admin"]),
        ("peers:use", &["mcp:call", "peers:use"]),
        ("peers:admin", &["mcp:call", "peers:use", "peers:admin"]),
        ("tools:*", &["mcp:call", "tools:*"]),
    ] {
        let covers: Vec<&str> =
            Scope::WORDS.into_iter().filter(|needed| scope(held).covers(&scope(needed))).collect();
        assert_eq!(covers, covered, "{held}");
        let caller = Caller { actor: ann(), scopes: vec![scope(held)] };
        assert_eq!(caller.has_all_calls(), ["admin", "mcp:call"].contains(&held), "{held}");
    }
}

#[test]
fn a_caller_calls_the_tools_that_one_of_its_scopes_means() {
    let calls = |scopes: &[&str], named: Named<'_>| {
        Caller { actor: ann(), scopes: scopes.iter().map(|word| scope(word)).collect() }.may_call(&named)
    };
    let read = tool("fs_read", "fs");
    for scopes in
        [&["mcp:call"][..], &["admin"], &["tools:fs_*"], &["tools:x", "tools:group:fs"], &["tools:*"]]
    {
        assert!(calls(scopes, read), "{scopes:?}");
    }
    for scopes in
        [&[][..], &["audit:read"], &["tools:fs"], &["tasks:admin", "workflows:admin"], &["tools:group:f"]]
    {
        assert!(!calls(scopes, read), "{scopes:?}");
    }
}

#[test]
fn a_pattern_means_names_or_groups() {
    for (pattern, name, group, means) in [
        ("a", "a", "g", true),
        ("a", "ab", "g", false),
        ("a*", "a", "g", true),
        ("a*", "abc", "g", true),
        ("*c", "abc", "g", true),
        ("*b*", "abc", "g", true),
        ("a*c", "ac", "g", true),
        ("a*a", "a", "g", false),
        ("a*b*c", "a-b-b-c", "g", true),
        ("a*b*c", "a-c-b", "g", false),
        ("*", "anything", "g", true),
        ("group:g", "a", "g", true),
        ("group:g*", "a", "git", true),
        ("group:g", "g", "other", false),
        ("g", "a", "g", false),
    ] {
        assert_eq!(
            patterns(&[pattern])[0].fits(&tool(name, group)),
            means,
            "{pattern} and {name} of {group}"
        );
    }
}

#[test]
fn rights_take_away_what_is_denied_and_what_is_not_among_the_allowed() {
    let (read, write, other) = (tool("fs_read", "fs"), tool("fs_write", "fs"), tool("git_log", "git"));
    let sees = |rights: &Rights, who: &str| [read, write, other].map(|named| rights.allow(who, &named));
    let mut rights = Rights::default();
    assert!(rights.are_open());
    assert_eq!(sees(&rights, "ann"), [true, true, true]);
    rights.all = lists(&[], &["*write*"]);
    assert_eq!(sees(&rights, "ann"), [true, false, true]);
    rights.rules = vec![
        Rule { principals: patterns(&["ann", "ci-*"]), lists: lists(&["group:fs"], &[]) },
        Rule { principals: patterns(&["ann"]), lists: lists(&["git_*"], &[]) },
        Rule { principals: patterns(&["eve"]), lists: lists(&[], &["group:fs"]) },
    ];
    assert_eq!(sees(&rights, "ann"), [true, false, true], "either rule allows, and none what all are denied");
    assert_eq!(sees(&rights, "ci-7"), [true, false, false]);
    assert_eq!(sees(&rights, "eve"), [false, false, true]);
    assert_eq!(sees(&rights, "bob"), [true, false, true]);
    rights.all.allow = patterns(&["git_*"]);
    assert_eq!(sees(&rights, "ann"), [false, false, true]);
    assert!(!rights.are_open());
    assert!(rights.offer("tasks"));
    rights.builtin = Some(["tasks".to_owned()].into());
    assert!(rights.offer("tasks") && !rights.offer("peers"));
}
