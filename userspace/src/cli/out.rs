//! Answers on stdout: a table for people, JSON for programs.
//!
//! Lists are written row by row, since a flow table can be larger than what one wants in memory twice.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use clap::ValueEnum;
use comfy_table::{Attribute, Cell, Color, Table, presets};
use serde::Serialize;

use crate::api::Response;
use crate::view::Row;

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Stdout in one format.
pub struct Out {
    format: Format,
    to: BufWriter<StdoutLock<'static>>,
}

impl Out {
    /// Stdout.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            to: BufWriter::new(io::stdout().lock()),
        }
    }

    /// Writes a list whose rows are there already.
    pub fn rows<R: Row + Serialize>(self, rows: impl IntoIterator<Item = R>) -> io::Result<()> {
        let mut list = self.list();
        for row in rows {
            list.push(&row)?;
        }
        list.end()
    }

    /// Begins a list of rows.
    pub fn list(self) -> List {
        let table = (self.format == Format::Table).then(Vec::new);
        List {
            array: Array {
                to: self.to,
                is_first: true,
            },
            table,
            head: &[],
        }
    }

    /// Begins a JSON array, whatever the format.
    pub fn array(self) -> Array {
        Array {
            to: self.to,
            is_first: true,
        }
    }

    /// Writes one value, or the text that says the same.
    pub fn one(mut self, value: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        match self.format {
            Format::Table => writeln!(self.to, "{}", text())?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut self.to, value)?;
                writeln!(self.to)?;
            }
        }
        self.to.flush()
    }

    /// Writes the daemon's answer.
    pub fn response(self, response: &Response) -> io::Result<()> {
        self.one(response, || response.message.clone())
    }
}

/// A JSON array, one element a line.
pub struct Array {
    to: BufWriter<StdoutLock<'static>>,
    is_first: bool,
}

impl Array {
    /// Writes an element.
    pub fn push(&mut self, element: &impl Serialize) -> io::Result<()> {
        self.to
            .write_all(if self.is_first { b"[\n" } else { b",\n" })?;
        self.is_first = false;
        Ok(serde_json::to_writer(&mut self.to, element)?)
    }

    /// Writes the array's end.
    pub fn end(mut self) -> io::Result<()> {
        self.to
            .write_all(if self.is_first { b"[]\n" } else { b"\n]\n" })?;
        self.to.flush()
    }
}

/// A list that is being written.
pub struct List {
    array: Array,
    table: Option<Vec<Vec<String>>>,
    head: &'static [&'static str],
}

impl List {
    /// Writes a row.
    pub fn push<R: Row + Serialize>(&mut self, row: &R) -> io::Result<()> {
        self.head = R::HEAD;
        match &mut self.table {
            Some(rows) => rows.push(row.cells()),
            None => self.array.push(row)?,
        }
        Ok(())
    }

    /// Writes what is left; a table without rows is no output at all.
    pub fn end(mut self) -> io::Result<()> {
        match self.table {
            Some(rows) if rows.is_empty() => Ok(()),
            Some(rows) => {
                writeln!(self.array.to, "{}", table(self.head, rows))?;
                self.array.to.flush()
            }
            None => self.array.end(),
        }
    }
}

/// A table without lines, coloured on a terminal only.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if !io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        table.force_no_tty();
    }
    table.set_header(
        head.iter()
            .map(|title| Cell::new(title).add_attribute(Attribute::Bold)),
    );
    for row in rows {
        table.add_row(row.into_iter().map(tinted));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn tinted(text: String) -> Cell {
    let colour = match text.as_str() {
        "deny" | "drop" | "fail" | "not running" | "CLOSE" => Some(Color::Red),
        "trusted" | "redirect" | "ok" | "running" => Some(Color::Green),
        "warn" => Some(Color::Yellow),
        _ => None,
    };
    let cell = Cell::new(text);
    match colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_text_without_a_terminal() {
        let rows = vec![
            vec!["10.0.0.1".into(), "deny".into()],
            vec!["::1".into(), "ok".into()],
        ];
        let text = table(&["ADDRESS", "ACTION"], rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            ["ADDRESS   ACTION", "10.0.0.1  deny", "::1       ok"]
        );
    }
}
