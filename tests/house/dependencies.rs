//! `deny.toml`, held against `cargo metadata`: licences, banned crates, several versions of one, and where crates
//! come from. The rules are cargo-deny's, which takes longer to build than all of this.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, LicenseReq, ParseMode};

/// The rules.
pub struct Rules(toml::Table);

/// A package of the dependency graph on the targets that the rules name.
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// As its manifest says.
    license: String,
    /// The registry; `None`: of this workspace.
    source: Option<String>,
}

impl Rules {
    /// As the file says.
    pub fn parse(text: &str) -> Self {
        Self(text.parse().unwrap())
    }

    fn list(&self, section: &str, key: &str) -> Vec<toml::Value> {
        self.0[section][key].as_array().unwrap().clone()
    }

    fn words(&self, section: &str, key: &str) -> BTreeSet<String> {
        let values = self.list(section, key).into_iter();
        values
            .map(|value| match value {
                toml::Value::Table(entry) => {
                    assert!(entry["reason"].as_str().is_some_and(|why| !why.is_empty()));
                    entry["crate"].as_str().unwrap().to_owned()
                }
                value => value.as_str().unwrap().to_owned(),
            })
            .collect()
    }

    /// What breaks them, in words.
    pub fn broken_by(&self, packages: &[Package]) -> Vec<String> {
        let mut broken = Vec::new();
        let allowed = self.words("licenses", "allow");
        let may = |wanted: &LicenseReq| allowed.contains(&wanted.to_string());
        let (denied, skipped) = (self.words("bans", "deny"), self.words("bans", "skip"));
        let registries = self.words("sources", "allow-registry");
        let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for package in packages {
            let Package { name, version, .. } = package;
            let license = Expression::parse_mode(&package.license, ParseMode::LAX);
            if !license.is_ok_and(|license| license.evaluate(may)) {
                broken.push(format!("{name} {version}: the licence {}", package.license));
            }
            if denied.contains(name) {
                broken.push(format!("{name} is banned"));
            }
            let known = |source: &String| {
                let address = source.strip_prefix("registry+");
                address.is_some_and(|address| registries.contains(address))
            };
            if package.source.as_ref().is_some_and(|source| !known(source)) {
                broken.push(format!("{name} {version} is from {:?}", package.source));
            }
            versions.entry(name).or_default().push(version);
        }
        for (name, versions) in &versions {
            match (versions.len() > 1, skipped.contains(*name)) {
                (true, false) => broken.push(format!("{name} in {versions:?}")),
                (false, true) => broken.push(format!("{name}: one version, no exception needed")),
                _ => {}
            }
        }
        let gone = skipped
            .iter()
            .filter(|name| !versions.contains_key(name.as_str()));
        broken.extend(gone.map(|name| format!("{name} is not there, no exception needed")));
        broken
    }

    /// What is depended on.
    pub fn packages(&self, root: &Path) -> Vec<Package> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["metadata", "--format-version", "1", "--locked"]);
        for target in self.words("graph", "targets") {
            cargo.args(["--filter-platform", &target]);
        }
        let said = cargo.current_dir(root).output().unwrap();
        assert!(
            said.status.success(),
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        let used: BTreeSet<&str> = said["resolve"]["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|node| node["id"].as_str())
            .collect();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let packages = said["packages"].as_array().unwrap().iter();
        packages
            .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)))
            .map(|package| Package {
                name: text(&package["name"]),
                version: text(&package["version"]),
                license: text(&package["license"]),
                source: package["source"].as_str().map(str::to_owned),
            })
            .collect()
    }
}

#[test]
fn each_rule_can_be_broken() {
    let rules = Rules::parse(
        r#"
        licenses.allow = ["MIT"]
        bans.skip = [{ crate = "old", reason = "x" }]
        bans.deny = [{ crate = "bad", reason = "x" }]
        sources.allow-registry = ["https://here"]
        "#,
    );
    let package = |name: &str, version: &str, license: &str, from: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        license: license.to_owned(),
        source: Some(from.to_owned()),
    };
    let here = "registry+https://here";
    let old = || {
        [
            package("old", "1", "MIT", here),
            package("old", "2", "MIT/Apache-2.0", here),
        ]
    };
    assert!(
        rules.broken_by(&old()).is_empty(),
        "{:?}",
        rules.broken_by(&old())
    );
    for wrong in [
        package("a", "1", "GPL-3.0", here),
        package("a", "1", "", here),
        package("a", "1", "MIT AND GPL-2.0", here),
        package("bad", "1", "MIT", here),
        package("a", "1", "MIT", "git+https://there"),
    ] {
        let [one, other] = old();
        assert_eq!(rules.broken_by(&[one, other, wrong]).len(), 1);
    }
    assert_eq!(rules.broken_by(&[]).len(), 1, "an exception for nothing");
}
