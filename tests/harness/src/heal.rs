//! The report of `gluster volume heal VOLUME info`.

use crate::{Error, Result};

/// What `heal info` says of one brick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealBrick {
    /// `ADDRESS:/folder`.
    pub name: String,
    /// Whether `glfsheal` reached it.
    pub connected: bool,
    /// What the brick says needs healing: paths or `<gfid:…>`, with remarks
    /// such as "- Possibly undergoing heal" as they stand.
    pub entries: Vec<String>,
}

/// The whole report, one item per brick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealInfo {
    /// In the volume's order.
    pub bricks: Vec<HealBrick>,
}

impl HealInfo {
    /// Reads the command's output.
    pub fn parse(text: &str) -> Result<HealInfo> {
        let mut bricks: Vec<HealBrick> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(name) = line.strip_prefix("Brick ") {
                bricks.push(HealBrick {
                    name: name.to_owned(),
                    connected: false,
                    entries: Vec::new(),
                });
            } else if let Some(brick) = bricks.last_mut() {
                match line.split_once(": ") {
                    Some(("Status", status)) => brick.connected = status == "Connected",
                    Some(("Number of entries", _)) => {}
                    _ => brick.entries.push(line.to_owned()),
                }
            }
        }
        if bricks.is_empty() {
            return Err(Error::Parse {
                what: "the report of `heal info`",
                text: text.trim().to_owned(),
            });
        }
        Ok(HealInfo { bricks })
    }

    /// How many entries all bricks list together.
    pub fn entries(&self) -> usize {
        self.bricks.iter().map(|brick| brick.entries.len()).sum()
    }

    /// Whether every brick was reached.
    pub fn all_connected(&self) -> bool {
        self.bricks.iter().all(|brick| brick.connected)
    }

    /// Whether some brick lists `image` (a path from the volume's root).
    pub fn lists(&self, image: &str) -> bool {
        let is_image = |entry: &String| {
            entry
                .split_whitespace()
                .next()
                .is_some_and(|path| path == image)
        };
        self.bricks
            .iter()
            .any(|brick| brick.entries.iter().any(is_image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Brick 10.77.0.1:/b/gv0-0
/vm1.img - Possibly undergoing heal

<gfid:d5ce0820-3b16-40a6-9551-a9351e2881c9> 
Status: Connected
Number of entries: 2

Brick 10.77.0.2:/b/gv0-1
Status: Transport endpoint is not connected
Number of entries: -

";

    #[test]
    fn entries_and_reachability_are_read_per_brick() {
        let info = HealInfo::parse(REPORT).unwrap();
        assert_eq!(info.bricks.len(), 2);
        assert_eq!(info.entries(), 2);
        assert!(info.bricks[0].connected && !info.bricks[1].connected);
        assert!(!info.all_connected());
        assert!(info.lists("/vm1.img"));
        assert!(!info.lists("/vm1"));
    }

    #[test]
    fn an_error_message_is_not_taken_for_an_empty_report() {
        assert!(HealInfo::parse("Volume gv0 does not exist").is_err());
    }
}
