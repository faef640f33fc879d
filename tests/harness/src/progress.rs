//! Progress of the harness' programs: a line per finished step, and while a step
//! runs, on a terminal only, a spinner or a bar.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);
const BAR: &str = "{spinner} {msg:<44} {bar:24} {pos}/{len} {elapsed}";
const SPINNER: &str = "{spinner} {msg} {elapsed}";

/// A step under way. Dropped unfinished, its spinner just vanishes.
#[derive(Debug)]
pub struct Step {
    bar: ProgressBar,
    what: String,
    begun: Instant,
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
        Step {
            bar,
            what: what.to_owned(),
            begun: Instant::now(),
        }
    }

    /// Says which part is under way.
    pub fn part(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.what));
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
