//! Stopping a run from outside.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A stop was asked for before the work was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped; {}", how_to_go_on(.saved_in.as_deref()))]
pub struct Interrupted {
    /// Where the work that was done is saved, if it is.
    pub saved_in: Option<PathBuf>,
}

fn how_to_go_on(saved_in: Option<&Path>) -> String {
    match saved_in {
        Some(path) => {
            let path = path.display();
            format!("run the same command again to go on from what is saved in {path}")
        }
        None => "this command saves nothing before its end: run it again".into(),
    }
}

/// Asks running work to save what it has and end.
///
/// Every loop that runs models calls [`Stop::check`] before each forward pass, so that at most the pass that is
/// running when the stop comes is waited for.
#[derive(Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    /// With several ranks, what all know: a signal may reach only one of them.
    agreed: Option<Arc<AtomicBool>>,
    steps_left: Option<Arc<AtomicUsize>>,
    saved_in: Option<PathBuf>,
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
            say("\nstopping after this forward pass; again to stop at once");
        };
        // A process has one handler; in tests that start several stops, the first one serves.
        let _ = ctrlc::set_handler(handler);
        self
    }

    /// The same stop, for work that is saved in `path`.
    #[must_use]
    pub fn saving_in(&self, path: &Path) -> Self {
        Self { saved_in: Some(path.to_owned()), ..self.clone() }
    }

    /// The same stop for one of several ranks: it comes with [`Stop::agree`].
    #[must_use]
    pub fn by_agreement(self) -> Self {
        Self { agreed: Some(Arc::default()), ..self }
    }

    /// Asks for the stop, as a signal does.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// Whether this rank was asked to stop.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// All ranks know that one was asked to stop.
    pub fn agree(&self) {
        if let Some(agreed) = &self.agreed {
            agreed.store(true, Ordering::SeqCst);
        }
    }

    fn is_due(&self) -> bool {
        self.agreed.as_ref().unwrap_or(&self.requested).load(Ordering::SeqCst)
    }

    /// Ends the work if a stop was asked for; called before each forward pass.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_due() { Err(self.interrupted()) } else { Ok(()) }
    }

    /// What ends the work after a stop.
    pub fn interrupted(&self) -> Interrupted {
        Interrupted { saved_in: self.saved_in.clone() }
    }

    /// Whether to stop now; called once after each optimizer step or PPO iteration.
    pub fn after_step(&self) -> bool {
        if let Some(left) = &self.steps_left {
            let spent = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
            if matches!(spent, Ok(1) | Err(_)) {
                return true;
            }
        }
        self.is_due()
    }
}

/// Writes a line to standard error; a run does not end because nobody takes it, or a full disk.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_says_where_to_go_on() {
        let stop = Stop::default();
        assert_eq!(stop.check(), Ok(()));
        let stage = stop.saving_in(Path::new("run/sft"));
        stop.request();
        let text = |stop: &Stop| stop.check().unwrap_err().to_string();
        let again = "stopped; run the same command again to go on from what is saved in run/sft";
        assert_eq!(text(&stage), again);
        assert_eq!(text(&stop), "stopped; this command saves nothing before its end: run it again");
    }
}
