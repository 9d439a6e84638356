//! A full disk ends the program with status 1 and a clear error; once there is space, the same command gives
//! bit for bit what an unbroken run gives.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{
    PROGRAM, assert_same, command_line, copy, files, finish, program, program_with_file_limit,
};

const EACH_STEP: [&str; 2] = ["--set", "checkpoint.every=1"];

#[test]
fn a_write_that_fails_leaves_the_last_checkpoint_and_the_run_goes_on_from_it() {
    let unbroken = TempDir::new().unwrap();
    finish(unbroken.path(), &["sft"], &EACH_STEP);
    let stopped = TempDir::new().unwrap();
    program(stopped.path(), &[&["sft", "--stop-after", "3"], &EACH_STEP[..]].concat())
        .ended_with(130);
    let mut failed = 0;
    // From a limit that not even settings.toml keeps to one that the largest file does, 23 kB.
    for kilobytes in [0, 1, 4, 16, 22, 24] {
        for start in [TempDir::new().unwrap(), copy(stopped.path())] {
            let before = checkpoints(start.path());
            let arguments = [&["sft"], &EACH_STEP[..]].concat();
            let output = program_with_file_limit(start.path(), kilobytes, &arguments);
            if output.code != 0 {
                failed += 1;
                let run = start.path().to_str().unwrap();
                output.ended_with(1).says(&[
                    &format!("error: {run}"),
                    "cannot write: ",
                    "File too large",
                    "free space or mend what the system names, then run the same command again",
                ]);
                assert_eq!(checkpoints(start.path()), before, "with {kilobytes} kB");
            }
            finish(start.path(), &["sft"], &EACH_STEP);
            assert_same(unbroken.path(), start.path());
        }
    }
    assert!(failed >= 8, "{failed}");
}

/// The files of a stage's checkpoints, with their content.
fn checkpoints(run: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let dir = run.join("sft/checkpoints");
    let names = if dir.exists() { files(&dir) } else { Vec::new() };
    names.into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

/// Mounts a disk of `$1` bytes at `$2`, fills it from `$3`, runs the program, whose streams go to `$4`, and
/// copies the disk to `$4/full`; then makes space, runs the program again, and copies the disk to `$4/freed`.
/// The mount is seen by this script alone, and ends with it.
const ON_A_SMALL_DISK: &str = r#"
    set -e
    size=$1 disk=$2 ready=$3 out=$4
    shift 4
    mount -t tmpfs -o size="$size" none "$disk"
    cp -r "$ready/." "$disk"
    "$@" > "$out/stdout" 2> "$out/stderr" && echo 0 > "$out/status" || echo $? > "$out/status"
    cp -r "$disk" "$out/full"
    mount -o remount,size=64m "$disk"
    "$@" > "$out/stdout" 2> "$out/stderr.freed"
    cp -r "$disk" "$out/freed"
"#;

/// How this machine lets a test mount, if it does: as root, or as root of a user namespace.
fn may_mount() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["-m"], &["-rm"]];
    ways.into_iter().find(|way| {
        let mount = ["sh", "-c", "mount -t tmpfs none /mnt && mount -o remount,size=1m /mnt"];
        Command::new("unshare")
            .args(*way)
            .args(mount)
            .output()
            .is_ok_and(|out| out.status.success())
    })
}

#[test]
fn on_a_disk_that_is_really_full_it_is_the_same() {
    let Some(way) = may_mount() else {
        eprintln!("skipped: this machine lets a test mount no disk of its own (unshare -rm)");
        return;
    };
    let trained = TempDir::new().unwrap();
    finish(trained.path(), &["sft", "train-reward", "fit-normalizer"], &EACH_STEP);
    let empty = TempDir::new().unwrap();
    for (ready, stage) in [(&empty, "sft"), (&trained, "ppo")] {
        let unbroken = copy(ready.path());
        finish(unbroken.path(), &[stage], &EACH_STEP);
        let used = pages(ready.path());
        let (mut failed, mut with_checkpoint) = (0, 0);
        for more in [1, 4, 10, 20, 40, 60, 80] {
            let (disk, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let size = (4096 * (used + more)).to_string();
            let [disk, ready, result] =
                [&disk, ready, &out].map(|dir| dir.path().to_str().unwrap().to_owned());
            let script = ["sh", "-c", ON_A_SMALL_DISK, "sh", &size, &disk, &ready, &result];
            let line = command_line(disk.as_ref(), &[&[stage], &EACH_STEP[..]].concat(), "1");
            let run =
                Command::new("unshare").args(way).args(script).arg(PROGRAM).args(line).output();
            let run = run.unwrap();
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            let text = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
            if text("status").trim() != "0" {
                failed += 1;
                let error = text("stderr");
                assert_eq!(text("status").trim(), "1", "{error}");
                for said in [
                    &format!("error: {disk}")[..],
                    "No space left on device",
                    "free space or mend what the system names, then run the same command again",
                ] {
                    assert!(error.contains(said), "{said:?} is not in: {error}");
                }
                let left = files(&out.path().join("full"));
                with_checkpoint += usize::from(left.iter().any(|f| f.ends_with("manifest.json")));
            }
            assert_same(unbroken.path(), &out.path().join("freed"));
        }
        assert!(failed >= 4 && with_checkpoint >= 1, "{stage}: {failed}, {with_checkpoint}");
    }
}

/// Pages of a small disk that the files below `dir` take; folders take one each there.
fn pages(dir: &Path) -> u64 {
    let files = files(dir);
    let size = |file: &std::path::PathBuf| fs::metadata(dir.join(file)).unwrap().len();
    files.iter().map(|file| size(file).div_ceil(4096)).sum()
}
