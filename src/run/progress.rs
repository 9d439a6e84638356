//! How far a run is: bars in a terminal, lines elsewhere.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::stop::say;

/// How long a stage says nothing outside of a terminal.
const QUIET: Duration = Duration::from_secs(30);

/// Progress bars in a terminal; elsewhere a line every half minute, and one at the end of each stage.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    mode: Mode,
    /// Whether bars of finished stages stay.
    keep: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Bars,
    Lines,
    Silent,
}

impl Progress {
    /// Bars if standard error is a terminal, else lines.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let mode = if terminal { Mode::Bars } else { Mode::Lines };
        Self { bars: MultiProgress::with_draw_target(target), mode, keep: true }
    }

    /// Nothing at all, for tests and for use as a library.
    pub fn silent() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Self { bars, mode: Mode::Silent, keep: true }
    }

    /// For many stages: bars of finished ones disappear.
    #[must_use]
    pub fn of_many(mut self) -> Self {
        self.keep = false;
        self
    }

    /// Whether bars are shown.
    pub fn is_terminal(&self) -> bool {
        self.mode == Mode::Bars
    }

    /// Starts showing how many of `total` are done, above the stages that start later; nothing outside of a terminal.
    pub fn gauge(&self, name: &str, total: usize) -> Gauge {
        let bar = self.bars.add(ProgressBar::new(total as u64));
        let template = "{prefix:28} {bar:24.green/blue} {pos:>4}/{len:<4} {msg}";
        let style = ProgressStyle::with_template(template).expect("the template parses");
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_prefix(name.to_owned());
        bar.tick();
        Gauge(bar)
    }

    /// Starts showing a stage of `total` steps, `done` of them done before.
    pub fn stage(&self, name: impl Into<String>, total: usize, done: usize) -> Stage {
        let name = name.into();
        let bar = self.bars.add(ProgressBar::new(total as u64).with_position(done as u64));
        let template =
            "{prefix:28} {bar:24.cyan/blue} {pos:>4}/{len:<4} {elapsed:>4} (left {eta:>4}) {msg}";
        let style = ProgressStyle::with_template(template).expect("the template parses");
        bar.set_style(style.progress_chars("━╸─"));
        bar.set_prefix(name.clone());
        bar.tick();
        let start = Instant::now();
        let (mode, keep) = (self.mode, self.keep);
        let quiet = QUIET;
        Stage { name, bar, mode, keep, quiet, done, start, last_line: Cell::new(start) }
    }

    /// Prints a line without breaking the bars.
    pub fn line(&self, text: &str) {
        match self.mode {
            Mode::Bars => {
                let _ = self.bars.println(text);
            }
            Mode::Lines => say(text),
            Mode::Silent => {}
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// A count on display.
pub struct Gauge(ProgressBar);

impl Gauge {
    /// Sets the count and the message beside the bar.
    pub fn set(&self, done: usize, message: String) {
        self.0.set_position(done as u64);
        self.0.set_message(message);
    }
}

/// One stage on display.
pub struct Stage {
    name: String,
    bar: ProgressBar,
    mode: Mode,
    keep: bool,
    /// How long it says nothing outside of a terminal.
    quiet: Duration,
    /// Steps done before the start.
    done: usize,
    start: Instant,
    last_line: Cell<Instant>,
}

impl Stage {
    /// The same, with a line for each step outside of a terminal, unless it is one stage of many.
    #[must_use]
    pub fn line_by_line(mut self) -> Self {
        if self.keep {
            self.quiet = Duration::ZERO;
        }
        self
    }

    /// One step further, with what to show of it.
    pub fn step(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
        self.bar.inc(1);
        if self.mode == Mode::Lines
            && let Some(line) = self.line_at(Instant::now())
        {
            say(&line);
        }
    }

    /// How far the stage is, if it has said nothing for long enough.
    fn line_at(&self, now: Instant) -> Option<String> {
        if now.duration_since(self.last_line.get()) < self.quiet {
            return None;
        }
        self.last_line.set(now);
        let (at, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let elapsed = now.duration_since(self.start).as_secs_f64();
        let rate = (at - self.done as u64) as f64 / elapsed;
        let left = total.saturating_sub(at) as f64 / rate;
        let message = self.bar.message();
        let message = if message.is_empty() { message } else { format!(", {message}") };
        Some(format!("{:28} {at}/{total}{message} ({elapsed:.0} s, {left:.0} s left)", self.name))
    }

    /// The stage is done; `message` says with what result.
    pub fn finish(self, message: impl AsRef<str>) {
        let message = message.as_ref();
        match self.mode {
            Mode::Bars if !self.keep => self.bar.finish_and_clear(),
            Mode::Bars => {
                self.bar.set_style(
                    ProgressStyle::with_template("{prefix:28} {msg} ({elapsed})")
                        .expect("the template parses"),
                );
                self.bar.finish_with_message(message.to_owned());
            }
            Mode::Lines => {
                let seconds = self.start.elapsed().as_secs_f64();
                say(&format!("{:28} {message} ({seconds:.1} s)", self.name));
            }
            Mode::Silent => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_a_terminal_a_stage_says_every_half_minute_how_far_it_is() {
        let stage = Progress::silent().stage("evaluate", 10, 4);
        let after = |seconds| stage.start + Duration::from_secs(seconds);
        stage.step("");
        assert_eq!(stage.line_at(after(29)), None);
        let line = stage.line_at(after(30)).unwrap();
        assert_eq!(line, format!("{:28} 5/10 (30 s, 150 s left)", "evaluate"));
        stage.step("SFT");
        assert_eq!(stage.line_at(after(59)), None);
        let line = stage.line_at(after(60)).unwrap();
        assert_eq!(line, format!("{:28} 6/10, SFT (60 s, 120 s left)", "evaluate"));
    }
}
