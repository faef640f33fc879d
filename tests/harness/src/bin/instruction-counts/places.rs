//! Which functions the instructions belong to, by the program's debug information.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use addr2line::Loader;

/// Rows that are told of each case.
const ROWS: usize = 40;

/// How often the instruction at each address was taken.
pub type Addresses = BTreeMap<u64, u64>;

/// The program of a process, and where it lies in that process's memory.
pub struct Program {
    path: PathBuf,
    base: u64,
}

impl Program {
    /// Of process `pid`.
    ///
    /// # Errors
    /// It is gone, or the kernel does not tell.
    pub fn of(pid: u32) -> Result<Program, Box<dyn Error>> {
        let path = fs::read_link(format!("/proc/{pid}/exe"))?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let base = base(&maps, &path).ok_or("a process without its program")?;
        Ok(Program { path, base })
    }

    /// A table: instructions per request, by function, the most first. Inlined functions
    /// count for themselves.
    ///
    /// # Errors
    /// The program cannot be read.
    pub fn told(&self, taken: &Addresses, requests: usize) -> Result<String, Box<dyn Error>> {
        let loader = Loader::new(&self.path)?;
        let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
        for (address, count) in taken {
            let name = address
                .checked_sub(self.base)
                .and_then(|at| name(&loader, at));
            *by_name
                .entry(name.unwrap_or_else(|| "elsewhere".to_owned()))
                .or_default() += count;
        }
        let mut rows: Vec<_> = by_name.into_iter().collect();
        rows.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let mut table = String::new();
        for (name, count) in rows.iter().take(ROWS) {
            writeln!(table, "{:9.1}  {name}", *count as f64 / requests as f64)?;
        }
        Ok(table)
    }
}

/// Where the file at `path` begins in the memory described by `maps`, proc(5).
fn base(maps: &str, path: &Path) -> Option<u64> {
    let path = path.to_str()?;
    let line = maps.lines().find(|line| line.ends_with(path))?;
    u64::from_str_radix(line.split('-').next()?, 16).ok()
}

fn name(loader: &Loader, at: u64) -> Option<String> {
    let mut frames = loader.find_frames(at).ok()?;
    let innermost = frames.next().ok()??.function;
    match innermost {
        Some(function) => Some(function.demangle().ok()?.into_owned()),
        None => loader.find_symbol(at).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_begins_where_its_first_map_does() {
        let maps = "5000-6000 r--p 00000000 fe:00 1 /bin/other\n\
                    7000-8000 r--p 00000000 fe:00 2 /bin/it\n\
                    8000-9000 r-xp 00001000 fe:00 2 /bin/it\n";
        assert_eq!(base(maps, Path::new("/bin/it")), Some(0x7000));
        assert_eq!(base(maps, Path::new("/bin/none")), None);
    }
}
