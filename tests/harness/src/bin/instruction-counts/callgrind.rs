//! One run of `bare-device` under valgrind, and the instructions of each of its threads.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bypass_harness::{Background, Place, wait_until};

use crate::trace::AREA;

const PATIENCE: Duration = Duration::from_secs(60);

/// Instructions by thread, as valgrind numbers them: in the order they were started.
#[derive(Debug, Default, PartialEq)]
pub struct Counts(BTreeMap<u32, u64>);

impl Counts {
    /// What callgrind wrote for all threads.
    fn read(dir: &Path) -> Result<Counts, Box<dyn Error>> {
        let mut counts = Counts::default();
        for file in fs::read_dir(dir)? {
            let path = file?.path();
            let text = fs::read_to_string(&path)?;
            if let Some((thread, count)) = parse(&text) {
                counts.0.insert(thread, count);
            }
        }
        match counts.0.is_empty() {
            true => Err("callgrind wrote no counts".into()),
            false => Ok(counts),
        }
    }

    /// By how many the thread has more that has the most more: the queue's, when all
    /// others have as much to do in both runs.
    ///
    /// # Errors
    /// The runs had different threads.
    pub fn busiest_since(&self, before: &Counts) -> Result<u64, String> {
        if !self.0.keys().eq(before.0.keys()) {
            return Err(format!(
                "other threads than before: {before:?}, now {self:?}"
            ));
        }
        let threads = self.0.iter().zip(before.0.values());
        let grown = threads.map(|((_, now), before)| now.saturating_sub(*before));
        Ok(grown.max().unwrap_or_default())
    }
}

/// Thread and instructions of one file of callgrind (its manual, "Callgrind Format
/// Specification"); nothing for the file that has no thread of its own.
fn parse(text: &str) -> Option<(u32, u64)> {
    let value = |key: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value?.split_whitespace().next()?.parse().ok()
    };
    let thread: u64 = value("thread")?;
    let count = value("summary").or_else(|| value("totals"))?;
    Some((thread.try_into().ok()?, count))
}

/// Runs the device on /dev/zero under callgrind while `drive`, given its process id and
/// socket, asks something of it.
pub fn run(
    place: &Place,
    program: &Path,
    name: &str,
    keep: Option<&Path>,
    drive: impl FnOnce(u32, &Path) -> Result<(), String>,
) -> Result<Counts, Box<dyn Error>> {
    let dir = keep.unwrap_or(place.dir()).join(name);
    fs::create_dir_all(&dir)?;
    let (socket, log) = (
        place.dir().join(format!("{name}.sock")),
        place.dir().join(format!("{name}.log")),
    );
    let mut command = place.command("valgrind");
    command.args(["--tool=callgrind", "--separate-threads=yes"]);
    command.arg(format!(
        "--callgrind-out-file={}",
        dir.join("callgrind.out").display()
    ));
    command
        .arg(program)
        .args(["--num-queues=1", "--socket-path"]);
    command.arg(&socket);
    command.arg(format!("--size={AREA}")).arg("/dev/zero");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(&log)?);
    let mut process = Background::start(&mut command)?;
    let said = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("bare-device to listen", PATIENCE, || {
        match process.exited() {
            Some(status) => Ok(Err(format!("valgrind: {status}: {}", said()))),
            None if socket.exists() => Ok(Ok(())),
            None => Err(said()),
        }
    })??;
    drive(process.pid(), &socket).map_err(|error| format!("{error}; {}", said()))?;
    // Callgrind writes its files when the program ends, of a signal too.
    process.terminate();
    process.wait(PATIENCE)?;
    Counts::read(&dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_file_has_its_number_and_its_instructions() {
        let text = "# callgrind format\npid: 9\nthread: 4\n\nevents: Ir\nsummary: 120\n\nfn=(1)\n";
        assert_eq!(parse(text), Some((4, 120)));
        assert_eq!(parse("pid: 9\nsummary: 120\n"), None);
    }

    #[test]
    fn what_counts_is_the_thread_with_the_work() {
        let counts = |counts: [u64; 3]| Counts((1..).zip(counts).collect());
        let before = counts([500, 40, 70]);
        assert_eq!(counts([501, 40, 270]).busiest_since(&before), Ok(200));
        let fewer = Counts(BTreeMap::from([(1, 5)]));
        assert!(fewer.busiest_since(&before).is_err());
    }
}
