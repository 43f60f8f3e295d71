//! What `lab run` found: one row a flow, and a summary of the daemon's own view.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize};

/// The way that traffic took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Through a listener of the gateway.
    Gateway,
    /// Past the gateway, with both ends' own addresses.
    Direct,
    /// It did not arrive.
    Dropped,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Path::Gateway => "gateway",
            Path::Direct => "direct",
            Path::Dropped => "dropped",
        })
    }
}

/// One check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What was tried.
    pub name: String,
    /// From where.
    pub src: String,
    /// To where.
    pub dst: String,
    /// Which way it went; none if that could not be found out.
    pub path: Option<Path>,
    /// Which way it should have gone.
    pub expected: Path,
    /// Whether it went that way, and all else about it is right too.
    pub ok: bool,
    /// What is wrong, or what was measured.
    pub detail: String,
}

/// How many flows of one kind the daemon knows.
pub type FlowKinds = BTreeMap<String, u64>;

/// Everything that a run found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The lab's name.
    pub lab: String,
    /// Whether all checks are right.
    pub passed: bool,
    /// The checks.
    pub rows: Vec<Row>,
    /// The daemon's flow table after them: `proto state path` → flows.
    pub flows: FlowKinds,
    /// The daemon's drop counters after them.
    pub drops: BTreeMap<String, u64>,
}

impl Report {
    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| !row.ok)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["check", "from", "to", "path", "expected", "ok", "detail"]);
        for row in &self.rows {
            let path = row
                .path
                .map_or("unknown".to_owned(), |path| path.to_string());
            let ok = if row.ok { "ok" } else { "FAILED" };
            let expected = row.expected.to_string();
            let (name, src) = (row.name.as_str(), row.src.as_str());
            let cells = [name, src, &row.dst, &path, &expected, ok, &row.detail];
            table.add_row(cells);
        }
        writeln!(f, "{table}")?;
        writeln!(f, "flows  {}", counts(&self.flows))?;
        writeln!(f, "drops  {}", counts(&self.drops))?;
        let failed = self.failures().count();
        write!(
            f,
            "lab {}: {} checks, {} failed",
            self.lab,
            self.rows.len(),
            failed
        )
    }
}

fn counts(of: &BTreeMap<String, u64>) -> String {
    if of.is_empty() {
        return "none".to_owned();
    }
    of.iter()
        .map(|(name, count)| format!("{name}: {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_stands_out() {
        let row = Row {
            name: "app to outside".to_owned(),
            src: "10.1.0.2".to_owned(),
            dst: "20.0.0.2:8080".to_owned(),
            path: None,
            expected: Path::Gateway,
            ok: false,
            detail: "no answer".to_owned(),
        };
        let report = Report {
            lab: "x".to_owned(),
            passed: false,
            rows: vec![row],
            flows: FlowKinds::from([("tcp established gateway".to_owned(), 3)]),
            drops: BTreeMap::new(),
        };
        let text = report.to_string();
        assert!(
            text.contains("FAILED") && text.contains("1 failed"),
            "{text}"
        );
    }
}
