//! Rules in files of their own (`acl_files`): a line each, for lists of a million. Much cheaper than `[[acl]]`
//! tables, which a TOML parser has to build.
//!
//! `ADDRESS_OR_CIDR [action] [proto] [port] [id]`, in this order, separated by blanks; what is left out is
//! `deny any 0 0`. From `#` on a line is a comment.

use std::path::{Path, PathBuf};

use super::acl::{Acl, AclAction, AclProto};
use super::address::network;
use super::report::{Place, Problem, ValueError, quoted};
use super::values::PortRange;

/// Mistakes of one file that are told one by one.
const TOLD: usize = 20;

/// The rules of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclList {
    /// The file.
    pub file: PathBuf,
    /// Its rules, in its order.
    pub rules: Vec<Acl>,
    /// The line of each rule, from 1.
    lines: Vec<u32>,
}

impl AclList {
    /// Reads a file's text; mistakes go to `problems`.
    pub(super) fn read(file: &Path, text: &[u8], problems: &mut Vec<Problem>) -> Self {
        let lines = text.iter().filter(|byte| **byte == b'\n').count() + 1;
        let mut list = Self {
            file: file.to_owned(),
            rules: Vec::with_capacity(lines),
            lines: Vec::with_capacity(lines),
        };
        let mut told = 0;
        for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
            let result = match std::str::from_utf8(line) {
                Ok(line) => rule(line),
                Err(error) => {
                    let col = String::from_utf8_lossy(&line[..error.valid_up_to()]);
                    Err((
                        col.chars().count() + 1,
                        "line",
                        ValueError::new("not UTF-8", ""),
                    ))
                }
            };
            match result {
                Ok(None) => {}
                Ok(Some(rule)) => {
                    list.rules.push(rule);
                    list.lines.push(number);
                }
                Err((col, what, error)) => {
                    let place = Place {
                        line: number as usize,
                        col,
                    };
                    problems.push(Problem {
                        file: Some(file.to_owned()),
                        place,
                        path: what.to_owned(),
                        text: error.to_string(),
                    });
                    told += 1;
                    if told == TOLD {
                        return list;
                    }
                }
            }
        }
        list
    }

    /// Where a rule stands.
    pub(super) fn place(&self, index: usize) -> Place {
        Place {
            line: self.lines.get(index).map_or(1, |line| *line as usize),
            col: 1,
        }
    }

    /// `FILE:LINE` of the rule with this key, if there is one.
    pub fn find(&self, rule: &Acl) -> Option<String> {
        let at = self.rules.iter().position(|old| old.key() == rule.key())?;
        Some(format!("{}:{}", self.file.display(), self.lines[at]))
    }

    /// Takes the rules with this key out; says whether there was one.
    pub fn remove(&mut self, rule: &Acl) -> bool {
        let before = self.rules.len();
        let stays: Vec<bool> = self
            .rules
            .iter()
            .map(|old| old.key() != rule.key())
            .collect();
        let mut stay = stays.iter();
        self.rules
            .retain(|_| stay.next().is_some_and(|stays| *stays));
        let mut stay = stays.iter();
        self.lines
            .retain(|_| stay.next().is_some_and(|stays| *stays));
        self.rules.len() < before
    }
}

/// One line's rule; `None` for a line without one. With an error its column and what was read there.
fn rule(line: &str) -> Result<Option<Acl>, (usize, &'static str, ValueError)> {
    let line = line.split('#').next().unwrap_or_default();
    let mut words = line.split_ascii_whitespace();
    let Some(first) = words.next() else {
        return Ok(None);
    };
    let at = |word: &str, what| {
        let offset = word.as_ptr() as usize - line.as_ptr() as usize;
        let col = line[..offset].chars().count() + 1;
        move |error| (col, what, error)
    };
    let mut rule = Acl {
        addr: network(first).map_err(at(first, "addr"))?,
        port: PortRange::ANY,
        proto: AclProto::Any,
        action: AclAction::Deny,
        id: 0,
    };
    if let Some(word) = words.next() {
        rule.action = word.parse().map_err(at(word, "action"))?;
    }
    if let Some(word) = words.next() {
        rule.proto = word.parse().map_err(at(word, "proto"))?;
    }
    if let Some(word) = words.next() {
        rule.port = word.parse().map_err(at(word, "port"))?;
        if rule.proto == AclProto::Icmp && !rule.port.is_any() {
            let error = ValueError::new("ICMP has no ports", "0, or proto tcp or udp");
            return Err(at(word, "port")(error));
        }
    }
    if let Some(word) = words.next() {
        let number = |_| {
            ValueError::new(
                format!("{} is not an owner's tag", quoted(word)),
                "0 to 65535",
            )
        };
        rule.id = word.parse().map_err(number).map_err(at(word, "id"))?;
    }
    if let Some(word) = words.next() {
        let error = ValueError::new(
            format!("{} is one word too many", quoted(word)),
            "ADDRESS_OR_CIDR [action] [proto] [port] [id]",
        );
        return Err(at(word, "line")(error));
    }
    Ok(Some(rule))
}

/// Rules of the files that contradict each other. One that is there twice and says the same is one rule.
pub(super) fn check(lists: &[std::sync::Arc<AclList>], problems: &mut Vec<Problem>) {
    let key = |(list, at): &(u32, u32)| lists[*list as usize].rules[*at as usize].key();
    let mut all: Vec<(u32, u32)> = (0..)
        .zip(lists)
        .flat_map(|(list, rules)| (0..rules.rules.len() as u32).map(move |at| (list, at)))
        .collect();
    if !all.is_sorted_by_key(key) {
        all.sort_by_key(key);
    }
    for pair in all
        .windows(2)
        .filter(|pair| key(&pair[0]) == key(&pair[1]))
        .take(TOLD)
    {
        let [before, after] = [pair[0], pair[1]].map(|(list, at)| {
            let list = &lists[list as usize];
            (list, at as usize, list.rules[at as usize].action)
        });
        if before.2 == after.2 {
            continue;
        }
        let first = format!("{}:{}", before.0.file.display(), before.0.place(before.1));
        let what = format!("{} contradicts {} in {first}", after.2, before.2);
        problems.push(Problem {
            file: Some(after.0.file.clone()),
            place: after.0.place(after.1),
            path: "addr".to_owned(),
            text: ValueError::new(what, "each addr, port and proto once").to_string(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let mut problems = Vec::new();
        let list = AclList::read(Path::new("l.txt"), text.as_bytes(), &mut problems);
        let shown = |r: &Acl| format!("{} {} {} {} {}", r.addr, r.action, r.proto, r.port, r.id);
        (
            list.rules.iter().map(shown).collect(),
            problems.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let (rules, problems) = read(
            "# feed of today\n10.0.0.1\n\n10.0.0.0/24 trusted\r\n\tfd00::1 audit tcp 80-90 # here\n fd00::/64 deny any any 7",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(
            rules,
            [
                "10.0.0.1/32 deny any any 0",
                "10.0.0.0/24 trusted any any 0",
                "fd00::1/128 audit tcp 80-90 0",
                "fd00::/64 deny any any 7",
            ]
        );
    }

    #[test]
    fn mistakes_have_their_line_and_column() {
        let (rules, problems) = read(
            "10.0.0.300\n10.0.0.1 dny\n10.0.0.2\n  10.0.0.0/8 deny tpc\n10.0.0.3 deny icmp 80\n10.0.0.4 deny tcp 80 70000\n10.0.0.5 deny tcp 80 1 x\n10.0.0.1/8\n",
        );
        assert_eq!(rules.len(), 1);
        let starts = [
            "1:1: addr: `10.0.0.300` is not an address",
            "2:10: action: unknown action `dny`; allowed: trusted, audit, deny; did you mean `deny`?",
            "4:19: proto: unknown protocol `tpc`",
            "5:20: port: ICMP has no ports",
            "6:22: id: `70000` is not",
            "7:24: line: `x` is one word too many",
            "8:1: addr: `10.0.0.1/8` has bits set",
        ];
        assert_eq!(problems.len(), starts.len(), "{problems:#?}");
        for (problem, start) in problems.iter().zip(starts) {
            let rest = problem.strip_prefix("l.txt:").unwrap_or(problem);
            assert!(rest.starts_with(start), "{problem}\n{start}");
        }
    }

    #[test]
    fn many_mistakes_are_told_up_to_a_number() {
        let (_, problems) = read(&"x\n".repeat(1000));
        assert_eq!(problems.len(), TOLD);
    }
}
