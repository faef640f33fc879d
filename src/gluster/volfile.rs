//! The text of a volfile: a graph of translators.
//!
//! Only the grammar (`libglusterfs/src/graph.l` and `graph.y`); what the
//! translators mean is [`super::volume`]'s business.

use std::collections::BTreeMap;

use thiserror::Error;

/// One `volume … end-volume` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translator {
    /// Its name, unique in the graph.
    pub name: String,
    /// Its type, such as `cluster/replicate`.
    pub kind: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// Names of the translators below it, in order.
    pub subvolumes: Vec<String>,
}

impl Translator {
    /// Is the option set to something Gluster reads as true
    /// (`gf_string2boolean` of `libglusterfs/src/common-utils.c`)?
    pub fn is_on(&self, option: &str) -> bool {
        const TRUE: [&str; 5] = ["on", "yes", "true", "enable", "1"];
        self.options
            .get(option)
            .is_some_and(|value| TRUE.iter().any(|word| value.eq_ignore_ascii_case(word)))
    }
}

/// The translators in the order of the file, each after those below it; the
/// last is the top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    translators: Vec<Translator>,
    /// Where each name is in the list: looking through the list for each of the
    /// names of a large volfile would take minutes.
    places: BTreeMap<String, usize>,
}

/// A volfile that does not follow the grammar.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("line {line} of the volfile: {problem}")]
pub struct VolfileSyntax {
    /// Line number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: SyntaxProblem,
}

/// What can be wrong with a line of a volfile.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SyntaxProblem {
    /// A line that means nothing.
    #[error("unknown statement {0:?}")]
    UnknownStatement(String),
    /// A statement that lacks what it must say.
    #[error("incomplete statement {0:?}")]
    Incomplete(String),
    /// A statement outside of a block.
    #[error("{0:?} outside of a volume")]
    OutsideVolume(String),
    /// A block inside of a block.
    #[error("a volume inside of volume {0:?}")]
    Nested(String),
    /// The end of the file inside of a block.
    #[error("volume {0:?} does not end")]
    Unfinished(String),
    /// A block without type.
    #[error("volume {0:?} has no type")]
    Untyped(String),
    /// A block with the name of an earlier one.
    #[error("a second volume {0:?}")]
    Duplicate(String),
    /// A subvolume that was not defined before.
    #[error("unknown subvolume {0:?}")]
    UnknownSubvolume(String),
    /// There is no volume at all.
    #[error("no volume is defined")]
    Empty,
}

impl Graph {
    /// Reads a volfile.
    pub fn parse(text: &str) -> Result<Self, VolfileSyntax> {
        let mut graph = Self::default();
        let mut open: Option<Translator> = None;
        let mut line = 0;
        for (index, content) in text.lines().enumerate() {
            line = index + 1;
            graph
                .statement(content.trim(), &mut open)
                .map_err(|problem| VolfileSyntax { line, problem })?;
        }
        let problem = match open {
            Some(translator) => SyntaxProblem::Unfinished(translator.name),
            None if graph.translators.is_empty() => SyntaxProblem::Empty,
            None => return Ok(graph),
        };
        Err(VolfileSyntax { line, problem })
    }

    fn statement(
        &mut self,
        line: &str,
        open: &mut Option<Translator>,
    ) -> Result<(), SyntaxProblem> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        if keyword == "volume" {
            return begin(rest, open);
        }
        let Some(translator) = open else {
            return Err(SyntaxProblem::OutsideVolume(line.to_owned()));
        };
        match keyword {
            "end-volume" => self.finish(open.take()),
            "type" | "option" | "subvolumes" if rest.is_empty() => {
                Err(SyntaxProblem::Incomplete(line.to_owned()))
            }
            "type" => {
                translator.kind = rest.to_owned();
                Ok(())
            }
            "option" => {
                let (key, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                let value = unquoted(value.trim());
                translator.options.insert(key.to_owned(), value);
                Ok(())
            }
            "subvolumes" => {
                let names = rest.split_whitespace().map(str::to_owned);
                translator.subvolumes.extend(names);
                Ok(())
            }
            _ => Err(SyntaxProblem::UnknownStatement(line.to_owned())),
        }
    }

    fn finish(&mut self, translator: Option<Translator>) -> Result<(), SyntaxProblem> {
        let Some(translator) = translator else {
            return Ok(());
        };
        if translator.kind.is_empty() {
            return Err(SyntaxProblem::Untyped(translator.name));
        }
        if self.get(&translator.name).is_some() {
            return Err(SyntaxProblem::Duplicate(translator.name));
        }
        for name in &translator.subvolumes {
            if self.get(name).is_none() {
                return Err(SyntaxProblem::UnknownSubvolume(name.clone()));
            }
        }
        let place = self.translators.len();
        self.places.insert(translator.name.clone(), place);
        self.translators.push(translator);
        Ok(())
    }

    /// The translator of that name.
    pub fn get(&self, name: &str) -> Option<&Translator> {
        self.translators.get(*self.places.get(name)?)
    }

    /// The translators, in the order of the file.
    pub fn translators(&self) -> impl Iterator<Item = &Translator> {
        self.translators.iter()
    }

    /// The translators of that type, in the order of the file.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Translator> {
        self.translators
            .iter()
            .filter(move |found| found.kind == kind)
    }

    /// The top of the graph.
    pub fn top(&self) -> Option<&Translator> {
        self.translators.last()
    }
}

/// The value without the quotes around it, between which a backslash takes the
/// next character as it is. (glusterd writes values without quotes.)
fn unquoted(value: &str) -> String {
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let Some(quoted) = quoted else {
        return value.to_owned();
    };
    let mut characters = quoted.chars();
    let mut plain = String::with_capacity(quoted.len());
    while let Some(character) = characters.next() {
        plain.extend(match character {
            '\\' => characters.next(),
            other => Some(other),
        });
    }
    plain
}

fn begin(name: &str, open: &mut Option<Translator>) -> Result<(), SyntaxProblem> {
    if let Some(translator) = open {
        return Err(SyntaxProblem::Nested(translator.name.clone()));
    }
    if name.is_empty() {
        return Err(SyntaxProblem::Incomplete("volume".to_owned()));
    }
    *open = Some(Translator {
        name: name.to_owned(),
        kind: String::new(),
        options: BTreeMap::new(),
        subvolumes: Vec::new(),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn problem(text: &str) -> (usize, SyntaxProblem) {
        let error = Graph::parse(text).unwrap_err();
        (error.line, error.problem)
    }

    #[test]
    fn a_block_gives_type_options_and_subvolumes() {
        let graph = Graph::parse(
            "# comment\n\nvolume a\n type x/y\n option k v w\nend-volume\n\
             volume b\n  type p/q\n\toption on yes\n  subvolumes a\nend-volume\n",
        )
        .unwrap();
        let top = graph.top().unwrap();
        assert_eq!((top.name.as_str(), top.kind.as_str()), ("b", "p/q"));
        assert_eq!(top.subvolumes, ["a"]);
        assert!(top.is_on("on") && !top.is_on("off"));
        assert_eq!(graph.get("a").unwrap().options["k"], "v w");
    }

    #[test]
    fn quotes_around_a_value_are_not_part_of_it() {
        for (written, value) in [
            (r#""a b""#, "a b"),
            (r#""a\"b\\""#, r#"a"b\"#),
            (r#"a"b""#, r#"a"b""#),
            (r#"""#, r#"""#),
            (r#""""#, ""),
        ] {
            let text = format!("volume a\ntype t/u\noption k {written}\nend-volume\n");
            let graph = Graph::parse(&text).unwrap();
            assert_eq!(graph.get("a").unwrap().options["k"], value, "{written}");
        }
    }

    /// As large as a volfile can come; where names are searched for in a list, this
    /// takes minutes.
    #[test]
    fn a_large_volfile_takes_no_longer_than_its_length() {
        let mut text = String::new();
        for number in 0..40_000 {
            text += &format!("volume v{number}\ntype t/u\nend-volume\n");
        }
        text += "volume top\ntype t/u\nsubvolumes";
        text += &" v39999".repeat(100_000);
        text += "\nend-volume\n";
        let graph = Graph::parse(&text).unwrap();
        assert_eq!(graph.top().unwrap().subvolumes.len(), 100_000);
    }

    #[test]
    fn a_bad_line_is_told_with_its_number() {
        use SyntaxProblem::*;
        let cases = [
            ("option a b", (1, OutsideVolume("option a b".into()))),
            ("volume a\nvolume b", (2, Nested("a".into()))),
            ("volume a\ntype t/u", (2, Unfinished("a".into()))),
            ("volume a\nend-volume", (2, Untyped("a".into()))),
            ("volume a\ntype", (2, Incomplete("type".into()))),
            ("volume a\nbogus x", (2, UnknownStatement("bogus x".into()))),
            ("\n\n", (2, Empty)),
            (
                "volume a\ntype t/u\nsubvolumes b\nend-volume",
                (4, UnknownSubvolume("b".into())),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(problem(text), expected, "{text}");
        }
        let block = "volume a\ntype t/u\nend-volume\n";
        assert_eq!(problem(&block.repeat(2)), (6, Duplicate("a".into())));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(volume|type|option|subvolumes|end-volume|[a-z# \"]|\n){0,60}") {
            let _ = Graph::parse(&text);
        }

        #[test]
        fn any_text_never_panics(text: String) {
            let _ = Graph::parse(&text);
        }

        #[test]
        fn what_was_written_is_read(
            blocks in proptest::collection::btree_map("[a-z]{1,6}", ("[a-z]{1,4}/[a-z]{1,4}", proptest::collection::btree_map("[a-z.-]{1,8}", "[!-~&&[^\"#]]{1,8}", 0..4)), 1..5)
        ) {
            let mut text = String::new();
            let mut below: Option<&str> = None;
            for (name, (kind, options)) in &blocks {
                text += &format!("volume {name}\n    type {kind}\n");
                for (key, value) in options {
                    text += &format!("    option {key} {value}\n");
                }
                if let Some(below) = below {
                    text += &format!("    subvolumes {below}\n");
                }
                text += "end-volume\n\n";
                below = Some(name);
            }
            let graph = Graph::parse(&text).unwrap();
            for (name, (kind, options)) in &blocks {
                let translator = graph.get(name).unwrap();
                prop_assert_eq!(&translator.kind, kind);
                prop_assert_eq!(&translator.options, options);
            }
        }
    }
}
