//! Text that others have chosen, for a terminal or a log: names of images, hosts and files,
//! and what bricks and daemons say.

use std::fmt::{self, Write};

/// Shown on one line: what could do something to a terminal, or look like another line,
/// is shown as an escape.
pub struct OneLine<T>(pub T);

impl<T: fmt::Display> fmt::Display for OneLine<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain = text.split_inclusive(char::is_control);
        plain.try_for_each(|part| match part.chars().next_back() {
            Some(last) if last.is_control() => {
                self.0.write_str(&part[..part.len() - last.len_utf8()])?;
                write!(self.0, "{}", last.escape_default())
            }
            _ => self.0.write_str(part),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_do_something_to_a_terminal_is_shown_as_an_escape() {
        let shown = |text: &str| OneLine(text).to_string();
        assert_eq!(
            shown("vms/vm 1.img: é, 虚 \"x\" \\n"),
            "vms/vm 1.img: é, 虚 \"x\" \\n"
        );
        assert_eq!(
            shown("a\x1b[2J\nERROR b\u{9b}1m\t"),
            "a\\u{1b}[2J\\nERROR b\\u{9b}1m\\t"
        );
        assert_eq!(shown(""), "");
    }
}
