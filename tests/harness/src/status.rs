//! `gluster volume status --xml`, as far as bricks go.

/// Whether a brick is online, as the cluster's glusterds say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BrickStatus {
    /// `ADDRESS:/folder`.
    pub(crate) name: String,
    pub(crate) online: bool,
}

impl BrickStatus {
    /// All bricks in the report; daemons (self-heal) are left out, and so are
    /// bricks of nodes whose glusterd is not in touch, as the report lacks them.
    pub(crate) fn parse_all(xml: &str) -> Vec<BrickStatus> {
        xml.split("<node>")
            .skip(1)
            .filter_map(|node| {
                let path = element(node, "path")?;
                path.starts_with('/').then_some(())?;
                Some(BrickStatus {
                    name: format!("{}:{path}", element(node, "hostname")?),
                    online: element(node, "status")? == "1" && element(node, "port")? != "N/A",
                })
            })
            .collect()
    }
}

/// The text of the first `<name>` element.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "<cliOutput><node>
        <hostname>10.77.0.1</hostname><path>/b/gv0-0</path><status>1</status>
        <port>55781</port><pid>1</pid></node><node>
        <hostname>10.77.0.2</hostname><path>/b/gv0-1</path><status>0</status>
        <port>N/A</port><pid>-1</pid></node><node>
        <hostname>Self-heal Daemon</hostname><path>localhost</path><status>1</status>
        <port>N/A</port><pid>7</pid></node></cliOutput>";

    #[test]
    fn bricks_are_listed_with_their_state_and_daemons_are_not() {
        let expected = [("10.77.0.1:/b/gv0-0", true), ("10.77.0.2:/b/gv0-1", false)];
        let expected = expected.map(|(name, online)| BrickStatus {
            name: name.into(),
            online,
        });
        assert_eq!(BrickStatus::parse_all(REPORT), expected);
    }
}
