//! Whether ranks run the same stage, in a folder that all of them see.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::files::FolderError;
use super::record::{Difference, all_differences};
use crate::file_error::FileError;
use crate::{host, ranks};

/// How long a shared file system may take to show a rank what the first has written.
const SHOWN_WITHIN: Duration = Duration::from_secs(15);

/// Checks that this rank was started with the same program, settings and inputs as the first.
pub(super) fn compare_ranks(dir: &Path, record: &toml::Table) -> Result<(), FolderError> {
    if ranks::size() == 1 {
        return Ok(());
    }
    let of_first = ranks::of_first(|| Ok::<_, FolderError>(record.clone()))?;
    let differences = all_differences(&of_first, record);
    let differences: Vec<String> = differences.iter().map(Difference::to_string).collect();
    all_agree(differences.is_empty(), || FolderError::OtherRank {
        dir: dir.to_owned(),
        rank: ranks::rank(),
        host: host::name(),
        differences,
    })
}

/// Checks that this rank sees the folder `dir` of the first.
pub(super) fn check_shared(dir: &Path) -> Result<(), FolderError> {
    if ranks::size() == 1 {
        return Ok(());
    }
    // Left behind by a kill, it goes as what is half-written goes.
    let name = format!(".ranks.{}-{}.tmp", host::name(), std::process::id());
    let (name, first) = ranks::of_first(|| {
        let sign = dir.join(&name);
        fs::write(&sign, "").map_err(FileError::writing(&sign))?;
        Ok::<_, FolderError>((name, host::name().to_owned()))
    })?;
    let sign = dir.join(name);
    let until = Instant::now() + SHOWN_WITHIN;
    while !sign.exists() && Instant::now() < until {
        sleep(Duration::from_millis(100));
    }
    let is_seen = sign.exists();
    ranks::wait();
    if ranks::is_first() {
        fs::remove_file(&sign).map_err(FileError::writing(&sign))?;
    }
    all_agree(is_seen, || FolderError::NotShared {
        dir: dir.to_owned(),
        rank: ranks::rank(),
        host: host::name(),
        first,
    })
}

/// Ends the rank that does not agree with its error, and lets the others wait until it has ended them.
fn all_agree(agrees: bool, error: impl FnOnce() -> FolderError) -> Result<(), FolderError> {
    let all = ranks::gather(&agrees);
    if !agrees {
        return Err(error());
    }
    if all.contains(&false) {
        ranks::wait();
    }
    Ok(())
}
