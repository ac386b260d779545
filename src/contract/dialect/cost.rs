//! Costs: how many steps a schema may take to judge a value, told before it is asked.
//!
//! A few lines of references can fan out to more steps than there is time for, and a thread that judges cannot be
//! stopped. So the steps are counted first: each pair of a subschema and a value once, and not each way to it.
//!
//! Invariants:
//! - what is told is no less than what judging takes, but for a constant factor;
//! - telling takes at most `PAIRS_MAX` pairs, however many steps it tells of, and is no deeper than `DEPTH_MAX`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::graph::{Graph, length, size};

/// Steps of judging one value: about half a second.
pub const STEPS_MAX: u64 = 5_000_000;
/// Steps that are not worth another thread: about a millisecond.
const STEPS_SMALL: u64 = 10_000;
/// Subschemas of one schema.
const NODES_MAX: usize = 100_000;
/// The weight of the patterns of one schema: all are compiled before the first value comes.
const PATTERNS_MAX: u64 = 60_000;
/// Steps that each step of a value's size may cost, where a schema asks for what others left over: such a schema is
/// written out as it is compiled.
const LEFTOVER_MAX: u64 = 100_000;
/// Pairs of a subschema and a value that are looked at.
const PAIRS_MAX: usize = 200_000;
/// Subschemas in each other, of a value and of values inside it: all are judged on the stack.
const DEPTH_MAX: usize = 1_000;

/// What a schema costs.
#[derive(Debug)]
pub struct Cost {
    graph: Graph,
    /// Steps for each step of a value's size; `None` if the schema leads back to itself.
    flat: Option<u64>,
}

/// A value takes too many steps, or leads too deep.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuch;

impl Cost {
    /// Reads a schema. Errors: it is too large to be compiled, with a text about what is.
    pub fn of(schema: &Value) -> Result<Self, String> {
        let graph = Graph::of(schema);
        if graph.nodes.len() > NODES_MAX {
            return Err(format!("{} subschemas", graph.nodes.len()));
        }
        if graph.patterns > PATTERNS_MAX {
            return Err("its patterns are too large together".to_owned());
        }
        let flat = Flat::of(&graph);
        let leftover = graph.nodes.iter().any(|node| node.leftover);
        match flat {
            Some(flat) if leftover && flat > LEFTOVER_MAX => {
                Err("what it leaves over is too large to be written out".to_owned())
            }
            flat => Ok(Self { graph, flat }),
        }
    }

    /// Returns whether a value of so many bytes is judged at once, wherever that is.
    pub fn is_small(&self, bytes: usize) -> bool {
        self.flat.is_some_and(|flat| flat.saturating_mul(bytes as u64) <= STEPS_SMALL)
    }

    /// Counts the steps of a value. Errors: they are too many.
    pub fn admit(&self, value: &Value) -> Result<(), TooMuch> {
        if self.flat.is_some_and(|flat| flat.saturating_mul(size(value)) <= STEPS_MAX) {
            return Ok(());
        }
        let mut count = Count { graph: &self.graph, known: HashMap::new(), open: HashSet::new(), pairs: 0 };
        let steps = count.steps(self.graph.root, value, 0)?;
        if steps.told <= STEPS_MAX { Ok(()) } else { Err(TooMuch) }
    }
}

/// Finds the steps for each step of a value's size, which are those of the schema with all references written out.
struct Flat<'a> {
    graph: &'a Graph,
    /// The steps of each node; `None` while they are being counted.
    known: HashMap<usize, Option<u64>>,
}

impl Flat<'_> {
    fn of(graph: &Graph) -> Option<u64> {
        Flat { graph, known: HashMap::new() }.steps(graph.root)
    }

    /// Returns `None` if the node leads back to itself.
    fn steps(&mut self, at: usize) -> Option<u64> {
        if let Some(known) = self.known.get(&at) {
            return *known;
        }
        self.known.insert(at, None);
        let graph = self.graph;
        let node = &graph.nodes[at];
        let lists = [&node.same, &node.members, &node.names, &node.places, &node.items];
        let inner = lists.into_iter().flatten().chain(node.named.values());
        let mut steps = node.own.saturating_add(node.text);
        for inner in inner {
            // What an alternative finds wrong is told after it is known that it fits not.
            steps = steps.saturating_add(self.steps(*inner)?.saturating_mul(2));
        }
        if node.leftover {
            steps = steps.saturating_mul(4);
        }
        self.known.insert(at, Some(steps));
        Some(steps)
    }
}

/// The steps of one pair.
#[derive(Clone, Copy, Default)]
struct Steps {
    /// Until it is known whether the value fits.
    known: u64,
    /// Until it is told what does not.
    told: u64,
    /// Whether they depend on how the pair was reached, because it leads back to itself.
    circular: bool,
}

impl Steps {
    fn add(&mut self, other: Self) {
        self.known = self.known.saturating_add(other.known);
        self.told = self.told.saturating_add(other.told);
        self.circular |= other.circular;
    }
}

/// Counts the steps of one value.
struct Count<'a> {
    graph: &'a Graph,
    known: HashMap<(usize, *const Value), Steps>,
    /// The pairs that are being counted.
    open: HashSet<(usize, *const Value)>,
    pairs: usize,
}

impl Count<'_> {
    fn steps(&mut self, at: usize, value: &Value, depth: usize) -> Result<Steps, TooMuch> {
        let pair = (at, std::ptr::from_ref(value));
        if let Some(known) = self.known.get(&pair) {
            return Ok(*known);
        }
        if self.open.contains(&pair) {
            // Judging stops here too.
            return Ok(Steps { circular: true, ..Steps::default() });
        }
        self.pairs += 1;
        if self.pairs > PAIRS_MAX || depth > DEPTH_MAX {
            return Err(TooMuch);
        }
        self.open.insert(pair);
        let steps = self.count(at, value, depth)?;
        self.open.remove(&pair);
        if !steps.circular {
            self.known.insert(pair, steps);
        }
        Ok(steps)
    }

    fn count(&mut self, at: usize, value: &Value, depth: usize) -> Result<Steps, TooMuch> {
        let graph = self.graph;
        let node = &graph.nodes[at];
        let mut steps = Steps { known: node.own, told: node.own, circular: false };
        for inner in &node.same {
            let inner = self.steps(*inner, value, depth + 1)?;
            steps.add(Steps { told: inner.told.saturating_add(inner.known), ..inner });
        }
        let mut parts = 0;
        match value {
            Value::String(text) => steps.add(plain(node.text.saturating_mul(length(text)))),
            Value::Array(items) => {
                parts = items.len() as u64;
                if node.unique {
                    steps.add(plain(size(value).saturating_mul(8)));
                }
                for (place, item) in items.iter().enumerate() {
                    for inner in node.places.get(place).into_iter().chain(&node.items) {
                        steps.add(self.steps(*inner, item, depth + 1)?);
                    }
                }
            }
            Value::Object(map) => {
                parts = map.len() as u64;
                for (name, member) in map {
                    steps.add(plain(node.text.saturating_mul(length(name))));
                    for inner in node.named.get(name).into_iter().chain(&node.members) {
                        steps.add(self.steps(*inner, member, depth + 1)?);
                    }
                    for inner in &node.names {
                        steps.add(plain(self.name(*inner, length(name), depth + 1)?));
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        if node.leftover {
            let again = |steps: u64| steps.saturating_mul(1 + parts);
            steps = Steps { known: again(steps.known), told: again(steps.told), ..steps };
        }
        Ok(steps)
    }

    /// Returns the steps of a member's name, of so many steps of length.
    fn name(&mut self, at: usize, length: u64, depth: usize) -> Result<u64, TooMuch> {
        self.pairs += 1;
        if self.pairs > PAIRS_MAX || depth > DEPTH_MAX {
            return Err(TooMuch);
        }
        let graph = self.graph;
        let node = &graph.nodes[at];
        let mut steps = node.own.saturating_add(node.text.saturating_mul(length));
        for inner in &node.same {
            steps = steps.saturating_add(self.name(*inner, length, depth + 1)?.saturating_mul(2));
        }
        Ok(steps)
    }
}

fn plain(steps: u64) -> Steps {
    Steps { known: steps, told: steps, circular: false }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Cost, TooMuch};

    /// A schema whose steps double with each of `n` references.
    fn fan(n: usize) -> Value {
        let step = |n: usize| {
            let next = format!("#/$defs/s{}", n + 1);
            (format!("s{n}"), json!({"allOf": [{"$ref": next}, {"$ref": next}]}))
        };
        let mut steps: serde_json::Map<String, Value> = (0..n).map(step).collect();
        steps.insert(format!("s{n}"), json!({"type": "integer"}));
        json!({"$defs": steps, "$ref": "#/$defs/s0"})
    }

    #[track_caller]
    fn check(schema: &Value, value: &Value, admitted: bool) {
        let begun = std::time::Instant::now();
        let cost = Cost::of(schema).expect("it is compiled");
        assert_eq!(cost.admit(value), if admitted { Ok(()) } else { Err(TooMuch) });
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }

    #[test]
    fn what_fans_out_is_counted_and_not_walked() {
        check(&fan(8), &json!(1), true);
        for n in [24, 40] {
            check(&fan(n), &json!(1), false);
        }
        let twice =
            json!({"anyOf": [{"properties": {"x": {"$ref": "#"}}}, {"properties": {"x": {"$ref": "#"}}}]});
        let nested = |n: usize| (0..n).fold(json!(1), |inner, _| json!({"x": inner}));
        check(&twice, &nested(5), true);
        check(&twice, &nested(60), false);
    }

    #[test]
    fn what_leads_to_itself_is_counted_by_the_value() {
        let tree = json!({"properties": {"children": {"items": {"$ref": "#"}}, "name": {"type": "string"}}});
        let leaf = json!({"name": "a", "children": []});
        check(&tree, &json!({"children": vec![leaf; 10_000]}), true);
        let circle = json!({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
        check(&circle, &json!(1), true);
        let names: Vec<String> = (0..12).map(|n| format!("n{n}")).collect();
        let all: Vec<Value> = names.iter().map(|name| json!({"$ref": format!("#/$defs/{name}")})).collect();
        let defs: serde_json::Map<String, Value> =
            names.iter().map(|name| (name.clone(), json!({"anyOf": all.clone()}))).collect();
        check(&json!({"$defs": defs, "$ref": "#/$defs/n0"}), &json!(1), false);
    }

    #[test]
    fn long_lists_and_texts_have_their_price() {
        let unique = json!({"uniqueItems": true});
        check(&unique, &Value::from((0..100_000).collect::<Vec<u32>>()), true);
        check(&json!({"items": {"pattern": "^(?=a).*$"}}), &json!(vec!["a"; 100]), true);
        check(&json!({"items": {"pattern": "^(?=a).*$"}}), &json!(vec!["a"; 10_000]), false);
        check(&json!({"items": {"pattern": "^a+$"}}), &json!(vec!["a"; 10_000]), true);
        let names = json!({"$defs": fan(40)["$defs"], "propertyNames": {"$ref": "#/$defs/s0"}});
        check(&names, &json!({"a": 1}), false);
    }

    #[test]
    fn what_cannot_be_compiled_in_time_is_told_at_once() {
        let large = |schema: Value| assert!(Cost::of(&schema).is_err());
        large(json!({"anyOf": (0..200_000).map(|n| json!({"const": n})).collect::<Vec<_>>()}));
        large(json!({"pattern": "((a{1000}){1000}){1000}"}));
        let mut leftover = fan(40);
        leftover["unevaluatedProperties"] = json!(false);
        large(leftover);
        let many: Vec<Value> = (0..2_000).map(|n| json!({"pattern": format!("^\\w{{1,64}}{n}$")})).collect();
        large(json!({"anyOf": many}));
    }
}
