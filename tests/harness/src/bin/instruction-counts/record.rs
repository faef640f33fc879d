//! The recorded figures, and what differs too much from them. Pure but for its file.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::trace::CASES;

/// What a figure may be of the recorded one.
const MOST: f64 = 1.1;
/// Below this, of the recorded one, what was gained is worth recording.
const GAINED: f64 = 0.95;

/// Instructions per request, by the case's name.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record(BTreeMap<String, f64>);

impl Record {
    /// The recorded figures.
    pub fn read(path: &Path) -> Result<Record, Box<dyn Error>> {
        let read = || -> Result<Record, Box<dyn Error>> {
            Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
        };
        read().map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// Records these figures.
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        std::fs::write(path, format!("{:#}\n", serde_json::to_value(self)?))?;
        Ok(())
    }

    /// Notes a figure.
    pub fn set(&mut self, case: &str, instructions: f64) {
        let tenths = (instructions * 10.0).round() / 10.0;
        self.0.insert(case.to_owned(), tenths);
    }

    /// The cases that have too many instructions, with their figures; a case that was
    /// never recorded is one of them.
    pub fn too_many(&self, recorded: &Record) -> Vec<String> {
        let too_many = |(case, now): (&String, &f64)| match recorded.0.get(case) {
            Some(before) if *now <= before * MOST => None,
            Some(before) => Some(format!("{case} {now} instead of {before}")),
            None => Some(format!("{case} {now}, not recorded")),
        };
        self.0.iter().filter_map(too_many).collect()
    }

    /// Whether a case has so few instructions that growing back would not be noticed.
    pub fn gained(&self, recorded: &Record) -> bool {
        let gained = |(case, now): (&String, &f64)| {
            let before = recorded.0.get(case);
            before.is_some_and(|before| *now < before * GAINED)
        };
        self.0.iter().any(gained)
    }

    /// A Markdown table of all cases.
    pub fn compared(&self, recorded: &Record) -> String {
        let mut text = "| instructions per request | now | recorded | ratio |\n".to_owned();
        text.push_str("| --- | --- | --- | --- |\n");
        for case in CASES {
            let Some(now) = self.0.get(case.name) else {
                continue;
            };
            let (before, ratio) = match recorded.0.get(case.name) {
                Some(before) => (format!("{before:.1}"), format!("{:.3}", now / before)),
                None => ("–".to_owned(), "–".to_owned()),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "| {} | {now:.1} | {before} | {ratio} |", case.title);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(read: f64, write: f64) -> Record {
        let mut record = Record::default();
        record.set("read-1", read);
        record.set("write-32", write);
        record
    }

    #[test]
    fn a_tenth_more_is_allowed_and_no_more() {
        let recorded = record(1000.0, 500.0);
        assert!(record(1100.0, 100.0).too_many(&recorded).is_empty());
        let too_many = record(1000.0, 551.0).too_many(&recorded);
        assert_eq!(too_many, ["write-32 551 instead of 500"]);
    }

    #[test]
    fn a_gain_is_noticed() {
        let recorded = record(1000.0, 500.0);
        assert!(record(940.0, 500.0).gained(&recorded));
        assert!(!record(990.0, 500.0).gained(&recorded));
    }

    #[test]
    fn what_was_never_recorded_is_not_passed_over() {
        assert_eq!(record(1.0, 1.0).too_many(&Record::default()).len(), 2);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("counts.json");
        record(1234.56, 500.0).write(&path).unwrap();
        let read = Record::read(&path).unwrap();
        assert_eq!(read.0, record(1234.6, 500.0).0);
        assert!(read.compared(&read).contains("| 1234.6 | 1234.6 | 1.000 |"));
    }
}
