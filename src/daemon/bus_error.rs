//! SIGBUS: says which file is behind it, and lets it end the process.
//!
//! Files are mapped into memory here: dirty maps, a guest's memory, what is shared with the
//! front-end. When a page of one cannot be read or written, for its disk fails or it was
//! made shorter, whoever touches it gets SIGBUS, and there is no going on: the answer is
//! not there. Without a word the operator would see a core dump. (Locked pages would not help:
//! the store to a page that was written back fails in the same way.) What comes after is
//! that of a killed daemon.

use std::os::fd::AsFd;

use libc::{c_int, siginfo_t};
use rustix::fs::{Mode, OFlags};
use signal_hook::low_level::emulate_default_handler;

use super::failure::Failure;

const SIGBUS: c_int = libc::SIGBUS;
/// The longest line of `/proc/self/maps` that is understood, in bytes.
const LONGEST_LINE: usize = 512;

/// From now on.
///
/// # Errors
/// [`Failure::System`].
pub fn explain() -> Result<(), Failure> {
    let tell_and_end = |info: &siginfo_t| {
        // SAFETY: of this signal the kernel gives an address (sigaction(2)).
        let address = unsafe { info.si_addr() } as usize;
        tell(address);
        // It does not return. If it did, the access would fail again.
        let _ = emulate_default_handler(SIGBUS);
    };
    // SAFETY: the action is async-signal-safe: system calls and memory of its own stack, no
    // lock, no allocation, no panic; `emulate_default_handler` is so by its documentation.
    let registered = unsafe { signal_hook_registry::register_sigaction(SIGBUS, tell_and_end) };
    registered.map(drop).map_err(|source| Failure::System {
        what: "handle SIGBUS",
        source,
    })
}

/// Makes system calls only. What fails is left out: nobody is there to be told.
fn tell(address: usize) {
    let mut line = [0; LONGEST_LINE];
    let file = mapped_at(address, &mut line).unwrap_or(b"memory of a file");
    for part in [
        b"bypass-blk: SIGBUS: ",
        file,
        b" cannot be read or written any more: its disk fails, or it was made shorter. The process ends now, as if it was killed\n",
    ] {
        let _ = rustix::io::write(rustix::stdio::stderr(), part);
    }
}

/// The file that is mapped at an address, read into `line`.
fn mapped_at(address: usize, line: &mut [u8; LONGEST_LINE]) -> Option<&[u8]> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let maps = rustix::fs::open(c"/proc/self/maps", flags, Mode::empty()).ok()?;
    let mut length = 0;
    let mut byte = [0];
    while let Ok(1) = rustix::io::read(maps.as_fd(), &mut byte) {
        match byte {
            [b'\n'] => {
                if let Some(name) = name_if_within(address, &line[..length]) {
                    return line.get(name..length);
                }
                length = 0;
            }
            [other] => {
                // Of a longer one the end is left out.
                if let Some(place) = line.get_mut(length) {
                    *place = other;
                    length += 1;
                }
            }
        }
    }
    None
}

/// Where the file's name begins in a line of `/proc/self/maps`, if the line is about this
/// address: `start-end rights offset device inode    name` (proc_pid_maps(5)).
fn name_if_within(address: usize, line: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut word = || {
        let begin = at + line.get(at..)?.iter().position(|byte| *byte != b' ')?;
        let length = line[begin..].iter().position(|byte| *byte == b' ');
        at = length.map_or(line.len(), |length| begin + length);
        Some((begin, &line[begin..at]))
    };
    let (_, range) = word()?;
    let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    if !(number(start)?..number(end)?).contains(&address) {
        return None;
    }
    for _ in ["rights", "offset", "device", "inode"] {
        word()?;
    }
    word().map(|(begin, _)| begin)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_line_names_its_file_for_addresses_within_it() {
        let line = b"7f00-8f00 rw-s 00001000 fd:00 1234    /var/lib/a b.map";
        let name = |address| name_if_within(address, line).map(|at| &line[at..]);
        assert_eq!(name(0x7f00), Some(&b"/var/lib/a b.map"[..]));
        assert_eq!(name(0x8eff), Some(&b"/var/lib/a b.map"[..]));
        assert_eq!(name(0x8f00), None);
        for other in [
            &b""[..],
            b"x",
            b"7f00-8f00 rw-p 0 0:0 0",
            b"7f00-zz a b c d e",
        ] {
            assert_eq!(name_if_within(0x7f00, other), None);
        }
    }

    /// Run by the test below in a process of its own, which it ends.
    #[test]
    #[ignore = "ends the process"]
    fn touch_a_file_that_was_made_shorter() {
        explain().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.path().join("some.map"))
            .unwrap();
        file.set_len(8192).unwrap();
        let mapping = memmap2::MmapOptions::new().map_raw(&file).unwrap();
        file.set_len(0).unwrap();
        // SAFETY: within the mapping. That there is nothing behind it is the point.
        unsafe { mapping.as_mut_ptr().add(4096).write_volatile(1) };
    }

    #[test]
    fn the_file_behind_a_bus_error_is_named_before_the_process_ends_by_it() {
        let test = concat!(module_path!(), "::touch_a_file_that_was_made_shorter");
        let (_, name) = test.split_once("::").unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored", "--nocapture"]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(SIGBUS), "{said}");
        assert!(
            said.contains("some.map cannot be read or written"),
            "{said}"
        );
    }
}
