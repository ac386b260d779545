//! What a regular expression costs, told by its text.
//!
//! Invariant: what is told is an estimate of the compiled form, high rather than low, and reading it takes one pass.

/// States of a class that names a property of Unicode's characters.
const CLASS: u64 = 64;
/// Steps of a pattern that looks around or back, for a text of any length: its engine may try many ways before it
/// gives up.
const BACKTRACKING: u64 = 20_000;

/// What one pattern costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// About as many states as it is compiled to, with its repetitions written out.
    pub size: u64,
    /// Whether it looks around or back.
    pub backtracks: bool,
}

impl Weight {
    pub fn of(pattern: &str) -> Self {
        let backtracks = ["(?=", "(?!", "(?<=", "(?<!", "(?>", "(?P=", "\\k"]
            .iter()
            .any(|sign| pattern.contains(sign))
            || pattern.as_bytes().windows(2).any(|two| two[0] == b'\\' && (b'1'..=b'9').contains(&two[1]));
        Self { size: states(pattern), backtracks }
    }

    /// Returns the steps that it costs for each step of a text's length.
    pub fn steps(self) -> u64 {
        1 + self.size / CLASS + if self.backtracks { BACKTRACKING } else { 0 }
    }
}

/// Returns about how many states a pattern is compiled to.
fn states(pattern: &str) -> u64 {
    // The states of each group that is open, and of the last thing in it.
    let mut open: Vec<(u64, u64)> = vec![(0, 0)];
    let mut chars = pattern.chars().peekable();
    let put = |open: &mut Vec<(u64, u64)>, states: u64| {
        if let Some((all, last)) = open.last_mut() {
            *all = all.saturating_add(states);
            *last = states;
        }
    };
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                let class = chars.next().is_some_and(|class| "wWdDsSpPbB".contains(class));
                put(&mut open, if class { CLASS } else { 1 });
            }
            '[' => {
                let mut states = 1;
                let mut escaped = false;
                for inner in chars.by_ref() {
                    states += if escaped && "wWdDsSpP".contains(inner) { CLASS } else { 1 };
                    if inner == ']' && !escaped && states > 2 {
                        break;
                    }
                    escaped = inner == '\\' && !escaped;
                }
                put(&mut open, states);
            }
            '(' => open.push((1, 1)),
            ')' if open.len() > 1 => {
                let (states, _) = open.pop().unwrap_or_default();
                put(&mut open, states);
            }
            '{' => {
                let times: String = std::iter::from_fn(|| chars.next_if(|inner| *inner != '}')).collect();
                let most = times.split(',').filter_map(|times| times.trim().parse::<u64>().ok()).max();
                if let (Some(most), Some((all, last))) = (most, open.last_mut()) {
                    let repeated = last.saturating_mul(most);
                    *all = all.saturating_add(repeated);
                    *last = last.saturating_add(repeated);
                }
            }
            _ => put(&mut open, 1),
        }
    }
    open.into_iter().fold(0, |sum, (states, _)| sum.saturating_add(states))
}

#[cfg(test)]
mod tests {
    use super::Weight;

    #[test]
    fn repetitions_multiply_inside_each_other_and_add_beside_each_other() {
        let size = |pattern: &str| Weight::of(pattern).size;
        assert!(size("^[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}$") < 1_000);
        assert!(size("^(\\w{1,64}\\.){1,10}$") > 40_000);
        assert!(size("((a{1000}){1000}){1000}") > 1_000_000_000);
        assert_eq!(size(&"(a{9}){9}".repeat(3)), 3 * size("(a{9}){9}"));
        for pattern in
            ["", "(", ")", "[", "[]", "[]a]", "\\", "{", "{9", "a{99999999999999999999}", "(((((", "é{3}"]
        {
            assert!(size(pattern) < 1_000, "{pattern}");
        }
    }

    #[test]
    fn what_looks_around_or_back_may_try_many_ways() {
        for pattern in ["^(?=.*a)b", "(a)\\1", "(?!x)y", "(?<=a)b", "(?<n>a)\\k<n>"] {
            assert!(Weight::of(pattern).backtracks, "{pattern}");
        }
        for pattern in ["^(?:a|b)+$", "(a+)+$", "\\d\\w", "(?<name>a)"] {
            assert!(!Weight::of(pattern).backtracks, "{pattern}");
        }
    }
}
