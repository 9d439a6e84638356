//! The memory that a stage needs, and the settings that reduce it.

use std::fmt;

/// The stage needs more memory than the device has.
#[derive(Debug, thiserror::Error)]
#[error("{need}, and {available} are free; {advice}")]
pub struct MemoryError {
    pub need: Need,
    pub available: Bytes,
    pub advice: Advice,
}

/// The most that a stage holds at one time, part by part.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    pub stage: &'static str,
    /// What is held, and its bytes.
    pub parts: Vec<(&'static str, f64)>,
}

impl Need {
    /// All parts together, in bytes.
    pub fn total(&self) -> f64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The bytes of one part.
    pub fn part(&self, name: &str) -> f64 {
        self.parts.iter().filter(|(part, _)| *part == name).map(|(_, bytes)| bytes).sum()
    }
}

/// Settings that bring a need down.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    pub sets: Vec<String>,
    /// What is needed with them, in bytes.
    pub need: f64,
    pub fits: bool,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets: Vec<String> = self.sets.iter().map(|set| format!("--set {set}")).collect();
        let (sets, need) = (sets.join(" "), Bytes(self.need));
        match self.fits {
            true => write!(f, "it takes {need} with {sets}"),
            false if sets.is_empty() => write!(f, "take a smaller model or more memory"),
            false => {
                write!(f, "it takes {need} even with {sets}: take a smaller model or more memory")
            }
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs about {}:", self.stage, Bytes(self.total()))?;
        let mut parts: Vec<_> = self.parts.iter().filter(|(_, bytes)| *bytes > 0.0).collect();
        parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let texts: Vec<String> =
            parts.iter().map(|(name, bytes)| format!("{name} {}", Bytes(*bytes))).collect();
        write!(f, " {}", texts.join(", "))
    }
}

/// A number of bytes, on display.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bytes(pub f64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 + 0.0 {
            // The sum of nothing is -0, and -0 + 0 is 0.
            bytes if bytes < 1e9 => write!(f, "{:.0} MB", bytes / 1e6),
            bytes => write!(f, "{:.1} GB", bytes / 1e9),
        }
    }
}
