//! Which machine this is, and whether a process on it still runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The name of this machine, made of letters, digits, dots and hyphens alone, so that it fits into a file's name.
pub fn name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| plain(&given_name().unwrap_or_default()))
}

fn given_name() -> Option<String> {
    let file = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = || std::env::var("COMPUTERNAME").ok();
    let command = || {
        let output = Command::new("hostname").stdin(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()
    };
    file.or_else(variable).or_else(command)
}

fn plain(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    match name.trim() {
        "" => "unknown".into(),
        name => name.chars().map(fits).collect(),
    }
}

/// Whether the process with this id runs on this machine. Where the system does not say, it counts as running.
pub fn runs(process: u32) -> bool {
    let processes = Path::new("/proc");
    if processes.join("self").exists() {
        return processes.join(process.to_string()).exists();
    }
    let listed = Command::new("ps").args(["-p", &process.to_string()]).output();
    !cfg!(unix) || listed.map_or(true, |listed| listed.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_into_a_file_name() {
        assert_eq!(plain("node-3.cluster\n"), "node-3.cluster");
        assert_eq!(plain("a/b c"), "a-b-c");
        assert_eq!(plain(" \n"), "unknown");
        assert_eq!(name(), plain(name()));
    }

    #[cfg(unix)]
    #[test]
    fn a_process_runs_until_it_has_ended() {
        assert!(runs(std::process::id()));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(runs(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!runs(child.id()));
    }
}
