//! Reads typed keys out of a parsed TOML table and reports what does not fit.
//!
//! Each section's `read` names its keys once; a key that no `read` asked for
//! is unknown. So the list of valid keys cannot fall behind the code, and one
//! run reports every mistake, which serde's derive would end at the first.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Report, ValueError, joined, nearest, quoted};
use super::values;

/// One table of the file, or one that the file leaves out.
pub(super) struct Table<'a> {
    entries: Option<&'a DeTable<'a>>,
    path: String,
    at: Range<usize>,
    known: Vec<&'static str>,
    report: &'a Report<'a>,
}

impl<'a> Table<'a> {
    /// Reads the whole document.
    pub(super) fn read_root<T>(
        root: &'a Spanned<DeTable<'a>>,
        report: &'a Report<'a>,
        read: impl FnOnce(&mut Table<'a>) -> T,
    ) -> T {
        let mut table = Table {
            entries: Some(root.get_ref()),
            path: String::new(),
            at: 0..0,
            known: Vec::new(),
            report,
        };
        let value = read(&mut table);
        table.refuse_unknown();
        value
    }

    fn child(&self, path: String, at: Range<usize>, entries: Option<&'a DeTable<'a>>) -> Self {
        Table {
            entries,
            path,
            at,
            known: Vec::new(),
            report: self.report,
        }
    }

    fn find(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.entries?.get(key)
    }

    fn wrong(&self, key: &str, at: usize, error: &ValueError) {
        self.report.add(at, &joined(&self.path, key), error);
    }

    /// Reports something wrong with `key`, at its value if it has one, else at the table.
    pub(super) fn refuse(&self, key: &str, error: &ValueError) {
        let value = self.entries.and_then(|entries| entries.get(key));
        let at = value.map_or(self.at.start, |value| value.span().start);
        self.wrong(key, at, error);
    }

    /// Whether the file sets `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries
            .is_some_and(|entries| entries.contains_key(key))
    }

    /// A key's value; `None` if it is absent or, reported, wrong.
    pub(super) fn get<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, ValueError>,
    ) -> Option<T> {
        let value = self.find(key)?;
        match parse(value.get_ref()) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.wrong(key, value.span().start, &error);
                None
            }
        }
    }

    /// A key that must be there.
    pub(super) fn need<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, ValueError>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            let allowed = match parse(&DeValue::String("".into())) {
                Err(error) => error.allowed,
                Ok(_) => String::new(),
            };
            self.refuse(key, &ValueError::new("missing", allowed));
            return None;
        }
        self.get(key, parse)
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(&mut self, key: &'static str, range: RangeInclusive<T>, or: T) -> T
    where
        T: TryFrom<i128> + Into<i128> + Copy + Display,
    {
        self.get(key, |value| values::number(value, &range))
            .unwrap_or(or)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, or: bool) -> bool {
        self.get(key, values::boolean).unwrap_or(or)
    }

    /// A list; entries that do not fit are reported one by one.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&DeValue<'_>) -> Result<T, ValueError>,
    ) -> Option<Vec<T>> {
        let value = self.find(key)?;
        self.items(key, value, parse)
    }

    fn items<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        parse: impl Fn(&DeValue<'_>) -> Result<T, ValueError>,
    ) -> Option<Vec<T>> {
        let Some(items) = value.get_ref().as_array() else {
            let error = ValueError::new(values::is_a(value.get_ref()), "a list: [ … ]");
            self.wrong(key, value.span().start, &error);
            return None;
        };
        let mut list = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            match parse(item.get_ref()) {
                Ok(parsed) => list.push(parsed),
                Err(error) => self.wrong_item(key, i, item.span().start, &error),
            }
        }
        Some(list)
    }

    fn wrong_item(&self, key: &str, index: usize, at: usize, error: &ValueError) {
        let path = format!("{}[{index}]", joined(&self.path, key));
        self.report.add(at, &path, error);
    }

    /// A sub-table, read with its defaults if the file leaves it out.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Table<'a>) -> T,
    ) -> T {
        let value = self.find(key);
        let at = value.map_or(self.at.clone(), |value| value.span());
        let entries = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, entries) {
            let allowed = format!("a table: [{}]", joined(&self.path, key));
            let error = ValueError::new(values::is_a(value.get_ref()), allowed);
            self.wrong(key, at.start, &error);
        }
        let mut table = self.child(joined(&self.path, key), at, entries);
        let section = read(&mut table);
        table.refuse_unknown();
        section
    }

    /// A list of tables; `read` answers `None` for one that it had to refuse.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Table<'a>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = self.find(key) else {
            return Vec::new();
        };
        let path = joined(&self.path, key);
        let Some(items) = value.get_ref().as_array() else {
            let allowed = format!("a list of tables: [[{path}]]");
            let error = ValueError::new(values::is_a(value.get_ref()), allowed);
            self.wrong(key, value.span().start, &error);
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let Some(entries) = item.get_ref().as_table() else {
                let error = ValueError::new(values::is_a(item.get_ref()), "a table: { … }");
                self.wrong_item(key, i, item.span().start, &error);
                continue;
            };
            let mut table = self.child(format!("{path}[{i}]"), item.span(), Some(entries));
            sections.extend(read(&mut table));
            table.refuse_unknown();
        }
        sections
    }

    /// How many entries the file gives a list.
    pub(super) fn count(&self, key: &str) -> usize {
        let value = self.entries.and_then(|entries| entries.get(key));
        let list = value.and_then(|value| value.get_ref().as_array());
        list.map_or(0, |list| list.len())
    }

    /// The lists of a table whose keys are the user's own names.
    pub(super) fn named_lists<T>(
        &mut self,
        check_name: impl Fn(&str) -> Result<(), ValueError>,
        parse: impl Fn(&DeValue<'_>) -> Result<T, ValueError>,
    ) -> BTreeMap<String, Vec<T>> {
        let mut named = BTreeMap::new();
        // Taken, so that none of the keys is unknown.
        for (key, value) in self.entries.take().into_iter().flatten() {
            let name: &str = key.get_ref();
            if let Err(error) = check_name(name) {
                self.wrong(name, key.span().start, &error);
            }
            if let Some(list) = self.items(name, value, &parse) {
                named.insert(name.to_owned(), list);
            }
        }
        named
    }

    fn refuse_unknown(&self) {
        for (key, _) in self.entries.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let error = ValueError {
                what: format!("unknown key {}", quoted(name)),
                allowed: self.known.join(", "),
                near: nearest(name, self.known.iter().copied()).map(str::to_owned),
            };
            self.wrong(name, key.span().start, &error);
        }
    }
}
