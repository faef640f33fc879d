//! The house is in order: who imports whom, no circle of imports, one meaning for a type's
//! name within a room, no file too long to read (docs/ARCHITECTURE.md), and nothing is depended
//! on that may not be (deny.toml).

#![allow(clippy::unwrap_used)]

#[path = "house/circles.rs"]
mod circles;
#[path = "house/dependencies.rs"]
mod dependencies;
#[path = "house/sources.rs"]
mod sources;

use std::collections::BTreeMap;
use std::path::Path;

use circles::circles;
use dependencies::Rules;
use sources::{Module, Sources};

/// The most lines of a file.
const LINES: usize = 450;

/// Who may import whom, as in docs/ARCHITECTURE.md. `image` needs one trait of `device`.
const MAY_IMPORT: [(&str, &[&str]); 6] = [
    ("gluster", &[]),
    ("device", &[]),
    ("image", &["gluster", "device::gate"]),
    ("control", &["image", "device"]),
    ("daemon", &["control", "image", "device", "gluster"]),
    ("cli", &["daemon", "control", "image", "device", "gluster"]),
];

fn sources() -> Sources {
    Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn imports_point_down() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (from, to) in sources.imports() {
        let (Some(room), Some(other)) = (from.first(), to.first()) else {
            continue;
        };
        let (_, may) = MAY_IMPORT.iter().find(|(name, _)| name == room).unwrap();
        let path = to.join("::");
        let allowed = |part: &&str| path == *part || path.starts_with(&format!("{part}::"));
        if room != other && !may.iter().any(allowed) {
            wrong.push(format!("{} imports {path}", from.join("::")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let rooms = sources.modules().filter_map(|module| module.first());
    let known = |room: &&String| MAY_IMPORT.iter().any(|(name, _)| name == room);
    let unknown: Vec<_> = rooms.filter(|room| !known(room)).collect();
    assert!(unknown.is_empty(), "rooms without a rule: {unknown:?}");
}

#[test]
fn no_two_files_import_each_other_not_even_around_a_corner() {
    let sources = sources();
    // A file and the folder of its name are one: the file's parts know its private things.
    let mut graph: BTreeMap<Module, Vec<Module>> = BTreeMap::new();
    for (from, to) in sources.imports() {
        let (from, to) = (sources.family(&from), sources.family(&to));
        if from != to {
            graph.entry(from).or_default().push(to);
        }
    }
    assert!(graph.len() > 100, "too few imports were found");
    let found = circles(&graph);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_name_of_a_type_has_one_meaning_in_a_room() {
    let mut places: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (module, name) in sources().types() {
        let room = module.first().cloned().unwrap_or_default();
        let place = module.join("::");
        places.entry((room, name)).or_default().push(place);
    }
    assert!(places.len() > 300, "too few types were found");
    places.retain(|_, places| places.len() > 1);
    assert!(places.is_empty(), "{places:#?}");
}

#[test]
fn no_file_is_too_long_to_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    for folder in ["src", "tests", "fuzz"] {
        for file in sources::rust_files(&root.join(folder)) {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            if lines > LINES {
                long.push(format!("{}: {lines}", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "more than {LINES} lines: {long:#?}");
}

#[test]
fn the_files_that_documents_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    let mut missing = Vec::new();
    for entry in std::fs::read_dir(root.join("docs")).unwrap() {
        let document = entry.unwrap().path();
        if document.extension().is_none_or(|ext| ext != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&document).unwrap();
        // Of the architecture all names count, of the others those that begin at the top.
        let all = document.ends_with("ARCHITECTURE.md");
        let places: &[&str] = match all {
            true => &["", "src", "src/image", "src/device", "src/image/heal"],
            false => &[""],
        };
        let names = text.split('`').skip(1).step_by(2);
        let paths = names.filter(|name| name.ends_with(".rs") && !name.contains('*'));
        for name in paths.filter(|name| all || name.starts_with("src/")) {
            named += 1;
            if !places
                .iter()
                .any(|place| root.join(place).join(name).exists())
            {
                missing.push(format!("{}: {name}", document.display()));
            }
        }
    }
    assert!(named > 60, "only {named} were found");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn what_is_depended_on_is_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = Rules::parse(&std::fs::read_to_string(root.join("deny.toml")).unwrap());
    let packages = rules.packages(root);
    assert!(packages.len() > 100, "too few packages were found");
    let broken = rules.broken_by(&packages);
    assert!(broken.is_empty(), "{broken:#?}");
}
