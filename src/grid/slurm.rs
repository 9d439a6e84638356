//! Slurm's commands.

use std::collections::BTreeMap;
use std::process::Command;

use super::error::GridError;

/// What runs in Slurm's words, one element of an array or a job.
pub(super) struct Element {
    job: String,
    state: String,
    /// Why it does not run, or where it does.
    detail: String,
    comment: String,
}

/// What `command` prints.
fn output(command: &str, arguments: &[String]) -> Result<String, GridError> {
    let run = Command::new(command).args(arguments).output();
    let output =
        run.map_err(|source| GridError::NoSlurm { command: command.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(GridError::Slurm { command: command.to_owned(), said: said.join("; ") })
}

/// The number of elements that an array may have on this cluster.
pub fn array_limit() -> Result<usize, GridError> {
    let config = output("scontrol", &["show".into(), "config".into()])?;
    let value = config.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "MaxArraySize").then(|| value.trim().parse().ok())?
    });
    match value {
        Some(0) => Err(GridError::NoArrays),
        limit => Ok(limit.unwrap_or(USUAL_LIMIT)),
    }
}

/// Slurm's own default of MaxArraySize.
pub const USUAL_LIMIT: usize = 1001;

/// Submits a job; gives its number.
pub(super) fn submit(arguments: Vec<String>) -> Result<String, GridError> {
    let said = output("sbatch", &arguments)?;
    // Behind a semicolon stands the cluster.
    Ok(said.trim().split(';').next().unwrap_or_default().to_owned())
}

/// The elements of these jobs that Slurm still knows, all of them or only those that have not ended.
pub(super) fn queue(jobs: &[&str], all: bool) -> Result<Vec<Element>, GridError> {
    let mut arguments = vec!["--noheader".to_owned(), "--array".to_owned()];
    arguments.push("--format=%F|%T|%r|%N|%k".to_owned());
    arguments.push(format!("--jobs={}", jobs.join(",")));
    arguments.extend(all.then(|| "--states=all".to_owned()));
    match output("squeue", &arguments) {
        Ok(text) => Ok(text.lines().filter_map(element).collect()),
        // Jobs that ended a while ago are forgotten, unless the cluster has a database.
        Err(GridError::Slurm { said, .. }) if said.contains("Invalid job id") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn element(line: &str) -> Option<Element> {
    let mut fields = line.trim().splitn(5, '|');
    let mut next = || fields.next().map(str::to_owned);
    let (job, state, reason, node, comment) = (next()?, next()?, next()?, next()?, next()?);
    let detail = match &state[..] {
        "PENDING" => format!(" ({reason})"),
        "RUNNING" => format!(" on {node}"),
        _ => String::new(),
    };
    let comment = if comment == "(null)" { String::new() } else { comment };
    Some(Element { job, state, detail, comment })
}

/// The states of the elements of `job`, each with its number.
pub(super) fn states(elements: &[Element], job: &str) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for element in elements.iter().filter(|element| element.job == job) {
        let failed = !["PENDING", "RUNNING", "COMPLETED"].contains(&&element.state[..]);
        let comment = match &element.comment[..] {
            comment if failed && !comment.is_empty() => format!(": {comment}"),
            _ => String::new(),
        };
        *counts.entry(format!("{}{}{comment}", element.state, element.detail)).or_default() += 1;
    }
    if counts.is_empty() {
        return "nothing any more".into();
    }
    let counts: Vec<String> =
        counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_counted_by_state_reason_and_place() {
        let said = "1|RUNNING|None|n1|(null)\n1|PENDING|Resources||(null)\n1|PENDING|Resources||n1: old\n\
                    2|FAILED|NonZeroExitCode|n2|n2: a | b\n3|COMPLETED|None|n1|(null)\nslurm: x\n";
        let elements: Vec<Element> = said.lines().filter_map(element).collect();
        assert_eq!(states(&elements, "1"), "2 PENDING (Resources), 1 RUNNING on n1");
        assert_eq!(states(&elements, "2"), "1 FAILED: n2: a | b");
        assert_eq!(states(&elements, "3"), "1 COMPLETED");
        assert_eq!(states(&elements, "4"), "nothing any more");
    }
}
