//! Which rule finds a tool's lane, as data; and how long retries wait.

use serde_json::json;

use super::*;
use crate::block::Codec;

fn cid(text: &str) -> Cid {
    Cid::of(Codec::DagCbor, text.as_bytes())
}

const KNOWN: &[&str] = &["builtin", "blocking", "upstream", "gpu"];

#[test]
fn the_first_rule_that_names_a_known_lane_decides() {
    // Name, registry, `_meta`, source; then lane and rule.
    type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>, &'a str, Rule);
    let table: &[Row<'_>] = &[
        ("add", Some("gpu"), Some("blocking"), Some("upstream"), "gpu", Rule::Registry),
        ("add", None, Some("blocking"), Some("upstream"), "blocking", Rule::Meta),
        ("add", None, None, Some("upstream"), "upstream", Rule::Source),
        ("hash_file", None, None, Some("upstream"), "upstream", Rule::Source),
        ("hash_file", None, None, None, "blocking", Rule::Pattern),
        ("add", None, None, None, "builtin", Rule::Default),
        ("add", Some("nowhere"), None, Some("upstream"), "upstream", Rule::Source),
        ("add", None, Some("nowhere"), None, "builtin", Rule::Default),
    ];
    for (name, registry, meta, source, lane, rule) in table {
        let resolver = Resolver::default();
        for again in [false, true] {
            let found =
                resolver.lane((name, cid("c")), *registry, *meta, *source, |lane| KNOWN.contains(&lane));
            assert_eq!(found, ((*lane).to_owned(), *rule), "{name}, asked again: {again}");
        }
    }
}

#[test]
fn the_cache_answers_for_one_contract_and_one_meta_alone() {
    let resolver = Resolver::default();
    let ask = |contract, meta, known: &[&str]| {
        resolver.lane(("add", cid(contract)), None, meta, None, |lane| known.contains(&lane)).0
    };
    assert_eq!(ask("old", Some("blocking"), KNOWN), "blocking");
    assert_eq!(ask("old", Some("blocking"), &[]), "blocking", "remembered");
    assert_eq!(ask("old", None, KNOWN), "builtin", "a tool that takes its hint back is looked at anew");
    assert_eq!(ask("new", Some("blocking"), &[]), "builtin", "and so is a new contract");
}

#[test]
fn a_tools_own_hints_are_read_and_nonsense_says_nothing() {
    let hints = |tool| Hints::of_meta(&json!({"_meta": {META_KEY: tool}}));
    let said = hints(json!({"runtime": "blocking", "priority": 70, "cpu": "high"}));
    assert_eq!(
        (said.runtime.as_deref(), said.priority, said.cpu),
        (Some("blocking"), Some(70), Some(Need::High))
    );
    assert_eq!(hints(json!({"priority": "soon"})), Hints::default());
    assert_eq!(hints(json!(7)), Hints::default());
}

#[test]
fn pauses_grow_to_their_bound_and_the_same_call_waits_the_same() {
    let still = Retry { jitter: false, ..Retry::default() };
    let pauses: Vec<u64> = (1..=8).map(|attempt| still.pause_ms(attempt, &cid("call"))).collect();
    assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
    let spread = Retry::default();
    for attempt in 1..=8 {
        let pause = spread.pause_ms(attempt, &cid("call"));
        assert_eq!(pause, spread.pause_ms(attempt, &cid("call")));
        let whole = still.pause_ms(attempt, &cid("call"));
        assert!((whole / 2..=whole).contains(&pause), "{pause} of {whole}");
    }
    let boundless = Retry { backoff_ms: u64::MAX, max_backoff_ms: u64::MAX, ..Retry::default() };
    assert!(boundless.pause_ms(u32::MAX, &cid("call")) >= u64::MAX / 2, "whatever a tool asks for");
}
