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

/// This start of the machine and, as containers number processes anew, this numbering: in it, the id and the start
/// of a process name it for ever. Empty where the system does not say.
pub fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let start = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let numbering = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        format!("{} {}", start.trim(), numbering.display()).trim().to_owned()
    })
}

/// When the process with this id started, in the system's own count; `None` if it does not run. Where the system
/// does not count, 0.
pub fn born(process: u32) -> Option<u64> {
    let Ok(line) = fs::read_to_string(format!("/proc/{process}/stat")) else {
        return runs(process).then_some(0);
    };
    // Behind the name, which may hold anything, stand the state and, 19 fields on, the start.
    let mut fields = line.rsplit(')').next()?.split_whitespace();
    let is_dead = fields.next().is_none_or(|state| ["Z", "X"].contains(&state));
    if is_dead { None } else { fields.nth(18)?.parse().ok() }
}

/// The type of the file system that holds `path`, and where it is mounted, if the system says so.
pub fn file_system(path: &Path) -> Option<String> {
    let path = path.ancestors().find_map(|path| path.canonicalize().ok())?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mount_of(&path, &mounts)
}

/// The same by this table of mounts: what is mounted, where, and its type a line.
fn mount_of(path: &Path, mounts: &str) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?.replace("\\040", " "), fields.next()?))
    });
    // Of two at one place the later one is seen.
    let (at, kind) = mounts
        .filter(|(at, _)| path.starts_with(at))
        .max_by_key(|(at, _)| Path::new(at).components().count())?;
    Some(format!("{kind} at {at}"))
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

    #[test]
    fn a_path_is_in_the_nearest_mount() {
        let mounts = "/dev/sda / ext4 rw 0 0\nfs:/ /my\\040data nfs4 rw 0 0\nfs:/x /my\\040data/x lustre rw 0 0\n";
        let of = |path: &str| mount_of(Path::new(path), mounts).unwrap();
        assert_eq!(of("/home/me"), "ext4 at /");
        assert_eq!(of("/my data/runs"), "nfs4 at /my data");
        assert_eq!(of("/my data/x"), "lustre at /my data/x");
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_known_by_its_start() {
        let (own, mut child) =
            (std::process::id(), Command::new("sleep").arg("60").spawn().unwrap());
        assert_eq!(born(own), born(own));
        assert!(born(child.id()) >= born(own) && born(own) > Some(0));
        child.kill().unwrap();
        let start = std::time::Instant::now();
        while born(child.id()).is_some() {
            assert!(start.elapsed().as_secs() < 20);
        }
        assert!(runs(child.id()), "nobody has waited for it yet");
        child.wait().unwrap();
        assert_eq!(born(child.id()), None);
        assert!(boot().contains("pid:["), "{}", boot());
    }
}
