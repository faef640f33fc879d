//! Progress of the harness' programs: a line per finished step, and while a step
//! runs a spinner or a bar. Where there is no terminal, a line as it begins and now and then
//! one for its parts: whoever reads a pipe or a file sees that something goes on.

use std::cell::Cell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);
const BAR: &str = "{spinner} {msg:<44} {bar:24} {pos}/{len} {elapsed}";
/// How often a part is told where there is no terminal.
const TELL: Duration = Duration::from_secs(5);
const SPINNER: &str = "{spinner} {msg} {elapsed}";

/// A step under way. Dropped unfinished, its spinner just vanishes.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    what: String,
    begun: Instant,
    told: Cell<Instant>,
}

impl Step {
    /// A step that cannot tell how far it is.
    pub fn begin(what: &str) -> Step {
        Step::with(ProgressBar::new_spinner(), SPINNER, what)
    }

    /// A step of `parts` parts.
    pub fn begin_parts(what: &str, parts: usize) -> Step {
        Step::with(ProgressBar::new(parts as u64), BAR, what)
    }

    fn with(bar: ProgressBar, template: &str, what: &str) -> Step {
        // The templates are constants; a wrong one only loses its looks.
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(TICK);
        if bar.is_hidden() {
            eprintln!("… {what}");
        }
        let now = Instant::now();
        Step {
            bar,
            what: what.to_owned(),
            begun: now,
            told: Cell::new(now),
        }
    }

    /// Says which part is under way.
    pub fn part(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.what));
        if self.bar.is_hidden() && self.told.get().elapsed() >= TELL {
            eprintln!("… {}: {what}", self.what);
            self.told.set(Instant::now());
        }
    }

    /// One part is done.
    pub fn part_done(&self) {
        self.bar.inc(1);
    }

    /// The step is done; `outcome` is what is worth saying of it.
    pub fn done(self, outcome: &str) {
        self.bar.finish_and_clear();
        let seconds = self.begun.elapsed().as_secs_f32();
        eprintln!("✓ {} ({seconds:.1} s) {outcome}", self.what);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
