//! Stopping a run from outside, and telling how far it is.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Asks running stages to write a checkpoint and end.
#[derive(Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    steps_left: Option<Arc<AtomicUsize>>,
}

impl Stop {
    /// A stop that comes by itself after `steps` optimizer steps or PPO iterations.
    pub fn after(steps: usize) -> Self {
        Self { steps_left: Some(Arc::new(AtomicUsize::new(steps))), ..Self::default() }
    }

    /// A stop on Ctrl-C or SIGTERM; a second signal ends the program at once.
    pub fn on_signals(self) -> Self {
        let requested = self.requested.clone();
        let handler = move || {
            if requested.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            say("\nstopping after this step; again to stop at once");
        };
        // A process has one handler; in tests that start several stops, the first one serves.
        let _ = ctrlc::set_handler(handler);
        self
    }

    /// Whether to stop now; called once after each optimizer step or PPO iteration.
    pub fn after_step(&self) -> bool {
        if let Some(left) = &self.steps_left {
            let spent = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if matches!(spent, Ok(1) | Err(_)) {
                return true;
            }
        }
        self.requested.load(Ordering::SeqCst)
    }
}

/// Writes a line to standard error; a run does not end because nobody takes it, or a full disk.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Progress bars in a terminal; elsewhere one line a stage.
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

    /// The same for many stages, whose bars go when they are finished.
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
        Stage { name, bar, mode: self.mode, keep: self.keep, start: Instant::now() }
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
    /// So many are done, with what to show beside.
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
    start: Instant,
}

impl Stage {
    /// One step further, with what to show of it.
    pub fn step(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
        self.bar.inc(1);
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
