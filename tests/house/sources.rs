//! The sources as modules: what each names of the others, and its types. Tests and what is
//! made for them are left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// A module's path inside the crate.
pub type Module = Vec<String>;

/// Modules for tests alone.
const FOR_TESTS: [&str; 5] = ["tests", "samples", "fake_peer", "recording_port", "testing"];

/// Everything in `src`.
pub struct Sources {
    files: BTreeMap<Module, PathBuf>,
    found: Found,
}

#[derive(Default)]
struct Found {
    /// Where a path is named, and the path.
    names: Vec<(Module, Module)>,
    /// What a `pub use` makes of a path.
    exports: BTreeMap<Module, Module>,
    types: Vec<(Module, String)>,
}

/// All Rust files below a folder; none if it is not there.
pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path.ends_with("target") => {}
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|ext| ext == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

impl Sources {
    /// Reads and parses all of them.
    pub fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        for file in rust_files(root) {
            let relative = file.strip_prefix(root).unwrap().with_extension("");
            let mut module: Module = relative
                .iter()
                .map(|part| part.to_str().unwrap().to_owned())
                .collect();
            if module == ["main"] {
                continue;
            }
            if module
                .last()
                .is_some_and(|last| last == "mod" || last == "lib")
            {
                module.pop();
            }
            if !module.iter().any(|part| FOR_TESTS.contains(&part.as_str())) {
                files.insert(module, file);
            }
        }
        let mut found = Found::default();
        for (module, file) in &files {
            let text = fs::read_to_string(file).unwrap();
            let parsed = syn::parse_file(&text).unwrap();
            let mut reader = Reader {
                module: module.clone(),
                files: &files,
                found: &mut found,
            };
            reader.visit_file(&parsed);
        }
        Self { files, found }
    }

    /// Their modules, one for each file but the root.
    pub fn modules(&self) -> impl Iterator<Item = &Module> {
        self.files.keys().filter(|module| !module.is_empty())
    }

    /// Which file names something of which other one.
    pub fn imports(&self) -> Vec<(Module, Module)> {
        let named = self.found.names.iter();
        let imports = named.map(|(from, path)| (self.file_of(from), self.file_of(path)));
        let mut imports: Vec<_> = imports
            .filter(|(from, to)| from != to && !to.is_empty() && !from.is_empty())
            .collect();
        imports.sort();
        imports.dedup();
        imports
    }

    /// Every type, with its module.
    pub fn types(&self) -> Vec<(Module, String)> {
        self.found.types.clone()
    }

    /// The file whose parts, in a folder of its name, are one with it; a room is no family.
    pub fn family(&self, module: &Module) -> Module {
        let heads = (1..module.len()).map(|len| module[..len].to_vec());
        let is_family = |head: &Module| {
            let file = self.files.get(head);
            file.is_some_and(|file| !file.ends_with("mod.rs"))
        };
        heads.into_iter().find(is_family).unwrap_or(module.clone())
    }

    /// The file in which a path ends, behind all `pub use`.
    fn file_of(&self, path: &[String]) -> Module {
        let mut path = path.to_vec();
        for _ in 0..8 {
            let export = (1..=path.len()).find(|&len| {
                let head = &path[..len];
                !self.files.contains_key(head) && self.found.exports.contains_key(head)
            });
            let Some(len) = export else { break };
            let mut behind = self.found.exports[&path[..len]].clone();
            behind.extend_from_slice(&path[len..]);
            path = behind;
        }
        let heads = (0..=path.len()).rev().map(|len| path[..len].to_vec());
        let mut heads = heads.filter(|head| self.files.contains_key(head));
        heads.next().unwrap_or_default()
    }
}

/// Reads one file.
struct Reader<'a> {
    module: Module,
    files: &'a BTreeMap<Module, PathBuf>,
    found: &'a mut Found,
}

impl Reader<'_> {
    /// A path as it stands, from the crate's root; `None` if it begins outside.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let mut base = self.module.clone();
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([base, rest.to_vec()].concat()),
            "super" => {
                base.pop();
                let supers = rest.iter().take_while(|part| *part == "super").count();
                base.truncate(base.len().saturating_sub(supers));
                base.extend_from_slice(&rest[supers..]);
                Some(base)
            }
            child => {
                base.push(child.to_owned());
                let known = self.files.contains_key(&base);
                base.extend_from_slice(rest);
                known.then_some(base)
            }
        }
    }

    fn name(&mut self, path: &[String]) {
        if let Some(path) = self.absolute(path) {
            self.found.names.push((self.module.clone(), path));
        }
    }

    fn use_tree(&mut self, tree: &syn::UseTree, before: &mut Module, public: bool) {
        let (path, known_as) = match tree {
            syn::UseTree::Path(part) => {
                before.push(part.ident.to_string());
                self.use_tree(&part.tree, before, public);
                before.pop();
                return;
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(tree, before, public);
                }
                return;
            }
            syn::UseTree::Glob(_) => (before.clone(), None),
            syn::UseTree::Name(name) if name.ident == "self" => (before.clone(), None),
            syn::UseTree::Name(name) => {
                let name = name.ident.to_string();
                ([before.clone(), vec![name.clone()]].concat(), Some(name))
            }
            syn::UseTree::Rename(rename) => {
                let path = [before.clone(), vec![rename.ident.to_string()]].concat();
                (path, Some(rename.rename.to_string()))
            }
        };
        match (public, known_as) {
            // Who names it there imports what is behind.
            (true, Some(name)) => {
                if let Some(path) = self.absolute(&path) {
                    let export = [self.module.clone(), vec![name]].concat();
                    self.found.exports.insert(export, path);
                }
            }
            _ => self.name(&path),
        }
    }

    fn types(&mut self, name: &syn::Ident) {
        let found = (self.module.clone(), name.to_string());
        self.found.types.push(found);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        match item {
            syn::Item::Mod(module) if is_for_tests(&module.attrs) => {}
            syn::Item::Fn(function) if is_for_tests(&function.attrs) => {}
            syn::Item::Mod(module) if module.content.is_some() => {
                self.module.push(module.ident.to_string());
                visit::visit_item_mod(self, module);
                self.module.pop();
            }
            syn::Item::Use(item) => {
                let public = !matches!(item.vis, syn::Visibility::Inherited);
                self.use_tree(&item.tree, &mut Vec::new(), public);
            }
            other => {
                match other {
                    syn::Item::Struct(item) => self.types(&item.ident),
                    syn::Item::Enum(item) => self.types(&item.ident),
                    syn::Item::Trait(item) => self.types(&item.ident),
                    syn::Item::Type(item) => self.types(&item.ident),
                    syn::Item::Union(item) => self.types(&item.ident),
                    _ => {}
                }
                visit::visit_item(self, other);
            }
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Module = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if parts.len() > 1 {
            self.name(&parts);
        }
        visit::visit_path(self, path);
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let cfg = attribute.path().is_ident("cfg");
        cfg && attribute
            .parse_args::<syn::Ident>()
            .is_ok_and(|what| what == "test")
    })
}
