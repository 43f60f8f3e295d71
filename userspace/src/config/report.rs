//! What is wrong in a configuration, and where: one line a mistake.
//!
//! Knows nothing of keys. `reader` and `check` find the mistakes; this file
//! turns byte offsets into lines and columns, sorts, and prints.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::Serialize;
use toml::de::{DeTable, DeValue};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// The file could not be read at all.
    #[error("{}: cannot be read: {cause}", file.display())]
    Unreadable {
        /// The file that was asked for.
        file: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The file was read and is wrong: one line a problem, sorted by place.
    #[error("{}", render(file, problems))]
    Invalid {
        /// The file the problems are in.
        file: PathBuf,
        /// At least one, in the order of the file.
        problems: Vec<Problem>,
    },
}

fn render(file: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| {
            let file = problem.file.as_deref().unwrap_or(file);
            format!("{}:{problem}", file.display())
        })
        .collect();
    lines.join("\n")
}

/// A place in the file; lines and columns start at 1, columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub col: usize,
}

impl Place {
    /// The beginning of the file: where things that are missing are reported.
    pub const START: Self = Self { line: 1, col: 1 };
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.col)
    }
}

/// One mistake: printed as `LINE:COL: key.path: what; allowed: …`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file, if it is another than the configuration itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Where it stands.
    pub place: Place,
    /// The key's path, as `nat[0].to`; list entries are counted from 0.
    pub path: String,
    /// What is wrong, what is allowed, and the nearest valid word.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.path, self.text)
    }
}

/// A value that cannot be: also what the command line shows for a bad argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueError {
    /// What is wrong with it.
    pub what: String,
    /// What would be right; empty where `what` says it already.
    pub allowed: String,
    /// The nearest right value.
    pub near: Option<String>,
}

impl std::error::Error for ValueError {}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.allowed.is_empty() {
            write!(f, "; allowed: {}", self.allowed)?;
        }
        match &self.near {
            Some(near) => write!(f, "; did you mean `{near}`?"),
            None => Ok(()),
        }
    }
}

impl ValueError {
    /// Something wrong, and what would be right.
    pub fn new(what: impl Into<String>, allowed: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            allowed: allowed.into(),
            near: None,
        }
    }

    /// The same with a suggestion.
    pub fn or_rather(mut self, near: impl Into<String>) -> Self {
        self.near = Some(near.into());
        self
    }

    /// `word` is none of `words`.
    pub fn unknown(what: &str, word: &str, words: &[&str]) -> Self {
        Self {
            what: format!("unknown {what} {}", quoted(word)),
            allowed: words.join(", "),
            near: nearest(word, words.iter().copied()).map(str::to_owned),
        }
    }
}

/// A user's text inside a message: on one line whatever it holds, and not endless.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 64;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("`{}`", shown.escape_debug())
}

/// The candidate that takes the fewest edits for its length, if few enough to be a slip.
pub fn nearest<'w>(word: &str, candidates: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (edits(&word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= (candidate.len() * 2 / 5).max(1))
        .filter(|(edits, candidate)| *edits < candidate.len())
        .min_by_key(|(edits, candidate)| edits * 100 / candidate.len())
        .map(|(_, candidate)| candidate)
}

/// Insertions, removals, replacements and swaps of neighbours between two words
/// (Damerau-Levenshtein, each place edited once).
fn edits(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

/// Byte offsets of one text as lines and columns.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            text,
            starts: std::iter::once(0).chain(ends).collect(),
        }
    }

    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts[line - 1];
        let before = self.text.get(start..offset.min(self.text.len()));
        Place {
            line,
            col: 1 + before.map_or(0, |text| text.chars().count()),
        }
    }
}

/// Where each key of a parsed file stands, by path.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    known: BTreeMap<String, Place>,
    /// The file's text where `[[acl]]` is long: its places are only looked for when a mistake is to be told.
    text: Option<Arc<str>>,
    late: Arc<OnceLock<BTreeMap<String, Place>>>,
}

/// The list that may be long.
const ACL: &str = "acl";
/// `[[acl]]` tables from which on their places are left out at first.
const MANY: usize = 1000;

impl Places {
    pub(super) fn of(root: &DeTable<'_>, lines: &Lines<'_>) -> Self {
        let mut places = Self::default();
        let acl = root.get(ACL).and_then(|acl| acl.get_ref().as_array());
        if acl.is_some_and(|acl| acl.len() > MANY) {
            places.text = Some(lines.text.into());
        }
        places.walk(root, "", lines);
        places
    }

    /// The places of a path: all but those in a long `[[acl]]`, or all.
    fn of_path(&self, path: &str) -> &BTreeMap<String, Place> {
        let Some(text) = self.text.as_deref().filter(|_| path.starts_with("acl[")) else {
            return &self.known;
        };
        self.late.get_or_init(|| {
            let mut all = Self::default();
            if let Ok(root) = DeTable::parse(text) {
                all.walk(root.get_ref(), "", &Lines::of(text));
            }
            all.known
        })
    }

    fn walk(&mut self, table: &DeTable<'_>, path: &str, lines: &Lines<'_>) {
        for (key, value) in table {
            let path = joined(path, key.get_ref());
            if self.text.is_none() || path != ACL {
                self.walk_value(value.get_ref(), &path, lines);
            }
            self.known.insert(path, lines.place(value.span().start));
        }
    }

    fn walk_value(&mut self, value: &DeValue<'_>, path: &str, lines: &Lines<'_>) {
        if let Some(table) = value.as_table() {
            self.walk(table, path, lines);
        }
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}[{i}]");
            self.walk_value(item.get_ref(), &path, lines);
            self.known.insert(path, lines.place(item.span().start));
        }
    }

    /// The key's place, or that of the nearest table around it which is in the file.
    pub(super) fn get(&self, path: &str) -> Place {
        let places = self.of_path(path);
        let mut path = path;
        loop {
            if let Some(place) = places.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place::START,
            }
        }
    }

    /// Whether the file sets this key itself.
    pub(super) fn has(&self, path: &str) -> bool {
        self.of_path(path).contains_key(path)
    }
}

/// `path.key`, with the key quoted where TOML would need it.
pub(super) fn joined(path: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let key = match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => format!("\"{}\"", key.escape_debug()),
    };
    match path.is_empty() {
        true => key,
        false => format!("{path}.{key}"),
    }
}

/// Collects the problems of one reading.
pub(super) struct Report<'t> {
    lines: &'t Lines<'t>,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(lines: &'t Lines<'t>) -> Self {
        Self {
            lines,
            problems: RefCell::default(),
        }
    }

    pub(super) fn add(&self, offset: usize, path: &str, wrong: &ValueError) {
        self.problems.borrow_mut().push(Problem {
            file: None,
            place: self.lines.place(offset),
            path: path.to_owned(),
            text: wrong.to_string(),
        });
    }

    /// What the TOML parser itself refuses.
    pub(super) fn add_syntax(&self, error: &toml::de::Error) {
        let span = error.span().unwrap_or_default();
        let mut text = error.message().replace('\n', "; ");
        if text == "duplicate key" {
            let key = self.lines.text.get(span.clone()).unwrap_or_default();
            text = format!("key {} is given twice", quoted(key.trim()));
        }
        let wrong = ValueError::new(format!("not TOML: {text}"), "");
        self.add(span.start, "syntax", &wrong);
    }

    pub(super) fn finish(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_only() {
        let words = ["native", "generic", "auto", "off"];
        assert_eq!(nearest("natve", words), Some("native"));
        assert_eq!(nearest("OFF", words), Some("off"));
        assert_eq!(nearest("genreic", words), Some("generic"));
        assert_eq!(nearest("xpd", ["name", "xdp"]), Some("xdp"));
        assert_eq!(nearest("hardware", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn columns_count_characters() {
        let lines = Lines::of("a\nä = 1\n");
        assert_eq!(lines.place(0), Place { line: 1, col: 1 });
        assert_eq!(lines.place(5), Place { line: 2, col: 3 });
        assert_eq!(lines.place(999).line, 3);
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(quoted("a\nb"), "`a\\nb`");
        assert!(quoted(&"x".repeat(500)).len() < 80);
    }
}
