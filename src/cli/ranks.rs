//! The ranks of a command: the processes of `mpirun` or `srun`, or a thread for each of `--devices`.

use std::env;
#[cfg(feature = "mpi")]
use std::thread::sleep;
#[cfg(feature = "mpi")]
use std::time::Duration;

use super::Common;
use super::error::Error;
use crate::device::{DeviceId, DeviceName};
use crate::ranks::{self, threads};
use crate::run::Error as StageError;
#[cfg(feature = "mpi")]
use crate::stop::say;

/// Runs `work`, which all ranks `share` or which runs in one process, on every rank that there is.
pub(super) fn on_each(
    common: &Common,
    share: bool,
    work: impl Fn(&Common) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let processes = processes();
    if !share && (processes > 1 || common.devices.len() > 1) {
        return Err(Error::Usage(
            "this command runs in one process, on one device: leave mpirun, srun and --devices out; sft, preferences, \
             train-reward, fit-normalizer, ppo, dpo and evaluate take them"
                .into(),
        ));
    }
    match &common.devices[..] {
        _ if processes > 1 => on_processes(common, processes, work),
        [] => work(common),
        [one] => work(&common.on(*one)),
        devices => on_threads(common, devices, &work),
    }
}

/// The processes that a launcher has started, of which this is one.
fn processes() -> usize {
    let number = |name: &str| env::var(name).ok()?.parse::<usize>().ok();
    let of_slurm = || number("SLURM_STEP_NUM_TASKS").filter(|_| env::var("PMIX_RANK").is_ok());
    let named = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].iter().find_map(|name| number(name));
    named.or_else(of_slurm).unwrap_or(1)
}

#[cfg(not(feature = "mpi"))]
fn on_processes(
    _common: &Common,
    processes: usize,
    _work: impl Fn(&Common) -> Result<(), Error>,
) -> Result<(), Error> {
    Err(Error::Usage(format!(
        "a launcher has started {processes} processes, and this program is built without MPI: build it with \
         `cargo build --release --features mpi`, or start it once"
    )))
}

#[cfg(feature = "mpi")]
fn on_processes(
    common: &Common,
    processes: usize,
    work: impl Fn(&Common) -> Result<(), Error>,
) -> Result<(), Error> {
    let link = ranks::mpi::Mpi::start()
        .ok_or_else(|| Error::Usage("MPI cannot be started: see what its launcher says".into()))?;
    ranks::join(Box::new(link), || {
        let ended = if ranks::size() == processes {
            on_process(common, work)
        } else {
            Err(Error::Usage(format!(
                "{} of {processes} processes have found each other: start the program by the launcher of the MPI \
                 that it is built with",
                ranks::size()
            )))
        };
        if let Err(error) = ended {
            end_all(&error);
        }
    });
    Ok(())
}

/// Runs `work` as one process of several, on its device and its share of this machine's cores.
#[cfg(feature = "mpi")]
fn on_process(common: &Common, work: impl Fn(&Common) -> Result<(), Error>) -> Result<(), Error> {
    let mut common = common.clone();
    let (number, neighbours) = (ranks::number_on_host(), ranks::neighbours());
    if !common.devices.is_empty() {
        let Some(device) = common.devices.get(number) else {
            return Err(Error::Usage(format!(
                "--devices names {} devices, and {neighbours} ranks are on this machine: name one for each",
                common.devices.len()
            )));
        };
        common = common.on(*device);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    common.threads.get_or_insert((cores / neighbours).max(1));
    work(&common)
}

/// How long a rank waits for the first to tell an error that both may have.
#[cfg(feature = "mpi")]
const GRACE: Duration = Duration::from_secs(3);

/// Tells the error, and ends all ranks.
#[cfg(feature = "mpi")]
fn end_all(error: &Error) -> ! {
    if !ranks::is_first() {
        // All ranks stop at the same place; the first is saving what was done.
        while let Error::Stage(
            StageError::Interrupted(_) | StageError::Alarm { .. } | StageError::NonFinite(_),
        ) = error
        {
            sleep(GRACE);
        }
        sleep(GRACE);
    }
    match ranks::rank() {
        0 => say(&format!("error: {error}")),
        rank => say(&format!("error: rank {rank}: {error}")),
    }
    ranks::mpi::Mpi::abort(error.exit_code());
}

fn on_threads(
    common: &Common,
    devices: &[DeviceId],
    work: &(impl Fn(&Common) -> Result<(), Error> + Sync),
) -> Result<(), Error> {
    let opened = devices.iter().map(|device| device.open());
    let opened = opened.collect::<Result<Vec<_>, _>>().map_err(StageError::from)?;
    let mut links = threads::links(devices.len());
    if devices.iter().all(|device| device.name == DeviceName::Cuda) {
        links = links.into_iter().map(|link| link.summing_on(&opened)).collect();
    }
    let results = threads::run(links, |link| {
        let rank = ranks::Link::rank(&link);
        ranks::join(Box::new(link), || work(&common.on(devices[rank])))
    });
    let errors =
        results.into_iter().enumerate().filter_map(|(rank, result)| Some((rank, result?.err()?)));
    match errors.into_iter().next() {
        None => Ok(()),
        Some((0, error)) => Err(error),
        Some((rank, error)) => Err(Error::Rank { rank, error: Box::new(error) }),
    }
}
