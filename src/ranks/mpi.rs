//! Ranks that are processes, started by `mpirun` or `srun`.

use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::Link;

/// The most bytes that a rank sends in one call: MPI counts them in 31 bits.
const ROUND: usize = 1 << 30;

/// The same, for tests that cannot send as many.
fn round() -> usize {
    std::env::var("SEGMENT_RLHF_ROUND").ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(ROUND)
}

/// The processes of a launcher. MPI ends when this is dropped.
pub struct Mpi {
    world: SimpleCommunicator,
    _universe: Universe,
}

impl Mpi {
    /// Joins the processes of the launcher that started this one; `None` if MPI cannot be started.
    pub fn start() -> Option<Self> {
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)?;
        Some(Self { world: universe.world(), _universe: universe })
    }

    /// Ends all ranks with this exit status.
    pub fn abort(status: u8) -> ! {
        // The world is there without the link, which this may be called after.
        SimpleCommunicator::world().abort(status.into())
    }
}

impl Drop for Mpi {
    /// A rank that panics must not wait for the others, as the end of MPI does.
    fn drop(&mut self) {
        if std::thread::panicking() {
            Self::abort(101);
        }
    }
}

impl Link for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn exchange(&self, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let size = self.size();
        let lengths: Vec<u64> = messages.iter().map(|message| message.len() as u64).collect();
        let mut expected = vec![0u64; size];
        self.world.all_to_all_into(&lengths[..], &mut expected[..]);
        let mut longest = 0u64;
        let own = lengths.iter().copied().max().unwrap_or_default();
        self.world.all_reduce_into(&own, &mut longest, mpi::collective::SystemOperation::max());

        let mut received: Vec<Vec<u8>> =
            expected.iter().map(|&length| Vec::with_capacity(length as usize)).collect();
        let at_once = round() / size;
        for round in 0..(longest as usize).div_ceil(at_once) {
            let piece = |length: usize| length.saturating_sub(round * at_once).min(at_once);
            let sent: Vec<usize> = messages.iter().map(|message| piece(message.len())).collect();
            let due: Vec<usize> = expected.iter().map(|&length| piece(length as usize)).collect();
            // Never without room: a vector that has none lies at address 1, which is Open MPI's MPI_IN_PLACE.
            let mut pieces = Vec::with_capacity(1 + sent.iter().sum::<usize>());
            for (message, &length) in messages.iter().zip(&sent).filter(|(_, length)| **length > 0)
            {
                pieces.extend_from_slice(&message[round * at_once..][..length]);
            }
            let mut buffer = Vec::with_capacity(1 + due.iter().sum::<usize>());
            buffer.resize(due.iter().sum(), 0u8);
            let [of_sent, of_due] = [&sent, &due].map(|lengths| counts(lengths));
            let send = Partition::new(&pieces[..], of_sent.0, of_sent.1);
            let mut receive = PartitionMut::new(&mut buffer[..], of_due.0, of_due.1);
            self.world.all_to_all_varcount_into(&send, &mut receive);
            let mut rest = &buffer[..];
            for (message, length) in received.iter_mut().zip(due) {
                let (piece, after) = rest.split_at(length);
                message.extend_from_slice(piece);
                rest = after;
            }
        }
        received
    }
}

/// Lengths and starts of pieces that lie side by side.
fn counts(lengths: &[usize]) -> (Vec<i32>, Vec<i32>) {
    let count = |length: usize| i32::try_from(length).expect("a round is below 2^31 bytes");
    let mut starts = Vec::with_capacity(lengths.len());
    let mut end = 0;
    for &length in lengths {
        starts.push(count(end));
        end += length;
    }
    (lengths.iter().map(|&length| count(length)).collect(), starts)
}
