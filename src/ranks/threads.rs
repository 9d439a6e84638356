//! Ranks that are threads of this process, each with a device of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use burn::tensor::{Device, Tensor};

use super::Link;

/// A rank's end of the channels between all.
pub struct Threads {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    /// The devices of all ranks, if sums are made on them.
    devices: Option<Vec<Device>>,
}

/// The links of `count` ranks, by rank.
pub fn links(count: usize) -> Vec<Threads> {
    let mut to: Vec<Vec<Sender<Vec<u8>>>> = (0..count).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<Receiver<Vec<u8>>>> = (0..count).map(|_| Vec::new()).collect();
    for senders in &mut to {
        for receivers in &mut from {
            let (sender, receiver) = channel();
            senders.push(sender);
            receivers.push(receiver);
        }
    }
    let links = to.into_iter().zip(from).enumerate();
    links.map(|(rank, (to, from))| Threads { rank, to, from, devices: None }).collect()
}

impl Threads {
    /// The same, with sums on the devices of the ranks themselves, by NCCL. Their order is NCCL's.
    #[must_use]
    pub fn summing_on(self, devices: &[Device]) -> Self {
        Self { devices: Some(devices.to_vec()), ..self }
    }
}

/// Ends a rank whose partner has ended: that one says why.
struct Ended;

impl Link for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        for (to, message) in self.to.iter().zip(messages) {
            if to.send(message).is_err() {
                resume_unwind(Box::new(Ended));
            }
        }
        let receive = |from: &Receiver<Vec<u8>>| {
            from.recv().unwrap_or_else(|_| resume_unwind(Box::new(Ended)))
        };
        self.from.iter().map(receive).collect()
    }

    fn sum(&self, part: &Tensor<1>) -> Option<Tensor<1>> {
        let devices = self.devices.clone()?;
        Some(on_devices::sum(part.clone(), devices))
    }
}

mod on_devices {
    use burn::tensor::distributed::{ReduceOperation, all_reduce};
    use burn::tensor::{Device, Tensor};

    pub(super) fn sum(part: Tensor<1>, devices: Vec<Device>) -> Tensor<1> {
        all_reduce(part, ReduceOperation::Sum, devices).resolve()
    }
}

/// What `work` gives for each link, on a thread of its own; `None` for a rank that ended because another had.
///
/// # Panics
///
/// As `work`.
pub fn run<T: Send>(links: Vec<Threads>, work: impl Fn(Threads) -> T + Sync) -> Vec<Option<T>> {
    let work = |link| catch_unwind(AssertUnwindSafe(|| work(link)));
    let ended = |panic: &Box<dyn Any + Send>| panic.is::<Ended>();
    thread::scope(|scope| {
        let ranks: Vec<_> = links.into_iter().map(|link| scope.spawn(move || work(link))).collect();
        let results = ranks.into_iter().map(|rank| rank.join().unwrap_or_else(Err));
        let result = |result: thread::Result<T>| match result {
            Ok(value) => Some(value),
            Err(panic) if ended(&panic) => None,
            Err(panic) => resume_unwind(panic),
        };
        results.collect::<Vec<_>>().into_iter().map(result).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks;

    #[test]
    fn a_rank_that_ends_takes_the_others_with_it() {
        let results = run(links(3), |link| {
            let fails = link.rank() == 1;
            ranks::join(Box::new(link), || {
                if fails {
                    return "failed";
                }
                ranks::wait();
                "unreachable"
            })
        });
        assert_eq!(results, [None, Some("failed"), None]);
    }
}
