//! Ranks: processes that MPI has started, or threads with a device each, that share one run.
//!
//! All ranks run the same command and keep the same models. What is read or learned in shards is shared out, and the
//! results are exchanged, so that every rank goes on with the same numbers. The first rank alone reads the run's folder
//! for all and writes into it. Without other ranks, every function here is what it says of a single one.

#[cfg(feature = "mpi")]
pub mod mpi;
pub mod threads;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use burn::tensor::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host;
use crate::stop::Stop;

/// What joins ranks.
pub trait Link {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Sends each rank its message, and gives what each has sent to this one, by rank. All ranks call it at the same time.
    fn exchange(&self, messages: Vec<Vec<u8>>) -> Vec<Vec<u8>>;

    /// The sum over ranks of a tensor on each rank's device, where devices are joined themselves; else `None`.
    fn sum(&self, part: &Tensor<1>) -> Option<Tensor<1>> {
        let _ = part;
        None
    }
}

/// The ranks that this thread is one of.
struct Ranks {
    link: Box<dyn Link>,
    /// What asks this rank to stop. Ranks agree on a stop with every exchange, so that all stop at the same place.
    stop: RefCell<Stop>,
    /// The host of each rank.
    hosts: RefCell<Vec<String>>,
}

thread_local! {
    static RANKS: RefCell<Option<Rc<Ranks>>> = const { RefCell::new(None) };
    /// Whether this rank does its own share of something, and must not wait for others.
    static APART: Cell<bool> = const { Cell::new(false) };
}

fn ranks() -> Option<Rc<Ranks>> {
    RANKS.with_borrow(Clone::clone)
}

/// The ranks with which results are to be exchanged.
fn together() -> Option<Rc<Ranks>> {
    if APART.get() { None } else { ranks() }
}

/// Runs `work` as one of the ranks that `link` joins.
pub fn join<T>(link: Box<dyn Link>, work: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            RANKS.set(None);
        }
    }
    let joined = Rc::new(Ranks { link, stop: RefCell::default(), hosts: RefCell::default() });
    RANKS.set(Some(joined.clone()));
    let _leave = Leave;
    joined.hosts.replace(gather(&host::name().to_owned()));
    drop(joined); // so that the link goes as this rank leaves
    work()
}

/// This rank, from 0.
pub fn rank() -> usize {
    ranks().map_or(0, |ranks| ranks.link.rank())
}

/// Whether this is the rank that reads and writes the run's folder, and speaks to the user.
pub fn is_first() -> bool {
    rank() == 0
}

/// The ranks that share the work at hand: 1 within a rank's own share.
pub fn size() -> usize {
    together().map_or(1, |ranks| ranks.link.size())
}

/// The ranks on this machine.
pub fn neighbours() -> usize {
    on_this_host(usize::MAX).max(1)
}

/// This rank among those on this machine, from 0.
pub fn number_on_host() -> usize {
    on_this_host(rank())
}

/// How many of the first `count` ranks are on this machine.
fn on_this_host(count: usize) -> usize {
    let here = |ranks: Rc<Ranks>| {
        ranks.hosts.borrow().iter().take(count).filter(|name| *name == host::name()).count()
    };
    ranks().map_or(0, here)
}

/// The stop that this rank is to heed: with others, one on which all agree.
pub fn heeding(stop: Stop) -> Stop {
    match ranks() {
        None => stop,
        Some(ranks) => {
            let stop = stop.by_agreement();
            ranks.stop.replace(stop.clone());
            stop
        }
    }
}

/// Runs `work` without the other ranks.
pub fn apart<T>(work: impl FnOnce() -> T) -> T {
    struct Back(bool);
    impl Drop for Back {
        fn drop(&mut self) {
            APART.set(self.0);
        }
    }
    let _back = Back(APART.replace(true));
    work()
}

/// This rank's share of `count` items.
pub fn share(count: usize) -> Range<usize> {
    if size() == 1 { 0..count } else { share_of(rank(), count) }
}

/// The share that the rank `rank` has of `count` items.
pub fn share_of(rank: usize, count: usize) -> Range<usize> {
    nth_share(count, rank, size())
}

fn nth_share(count: usize, rank: usize, ranks: usize) -> Range<usize> {
    count * rank / ranks..count * (rank + 1) / ranks
}

/// For each rank, which of the items with these sizes are its own: neighbours, of about the same size together.
pub fn shares_by_size(sizes: &[usize]) -> Vec<Range<usize>> {
    let (ranks, total) = (size(), sizes.iter().sum::<usize>().max(1));
    let mut before = 0;
    // The rank in whose stretch the middle of an item lies.
    let owner = |&size: &usize| {
        let twice_middle = 2 * before + size;
        before += size;
        (twice_middle * ranks / (2 * total)).min(ranks - 1)
    };
    let owners: Vec<usize> = sizes.iter().map(owner).collect();
    let start = |rank| owners.partition_point(|&owner| owner < rank);
    (0..ranks).map(|rank| start(rank)..start(rank + 1)).collect()
}

/// Sends each rank its message, and gives what each has sent to this one, by rank.
///
/// # Panics
///
/// If there is not one message a rank.
pub fn exchange(mut messages: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    assert_eq!(messages.len(), size(), "one message a rank");
    let Some(ranks) = together() else { return messages };
    let stop = ranks.stop.borrow();
    let asked = u8::from(stop.is_requested());
    messages.iter_mut().for_each(|message| message.push(asked));
    let mut received = ranks.link.exchange(messages);
    let asked = received.iter_mut().fold(0, |asked, message| {
        asked | message.pop().expect("each message ends in whether a stop was asked for")
    });
    if asked != 0 {
        stop.agree();
    }
    received
}

/// What each rank has, by rank.
pub fn gather_bytes(bytes: Vec<u8>) -> Vec<Vec<u8>> {
    exchange(vec![bytes; size()])
}

/// What each rank has, by rank.
pub fn gather<T: Serialize + DeserializeOwned>(value: &T) -> Vec<T> {
    gather_bytes(to_bytes(value)).iter().map(|bytes| from_bytes(bytes)).collect()
}

/// What the first rank gets; it alone calls `get`. Its error is its own: the others end with it.
pub fn of_first<T: Serialize + DeserializeOwned, E>(
    get: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if size() == 1 {
        return get();
    }
    if is_first() {
        let value = apart(get)?;
        broadcast(to_bytes(&value));
        return Ok(value);
    }
    Ok(from_bytes(&broadcast(Vec::new())))
}

/// The bytes that the first rank gets, if there are any; as [`of_first`].
pub fn bytes_of_first<E>(
    get: impl FnOnce() -> Result<Option<Vec<u8>>, E>,
) -> Result<Option<Vec<u8>>, E> {
    if size() == 1 {
        return get();
    }
    if is_first() {
        let bytes = apart(get)?;
        broadcast(bytes.iter().flat_map(|bytes| [&[1], &bytes[..]].concat()).collect());
        return Ok(bytes);
    }
    let bytes = broadcast(Vec::new());
    Ok(bytes.split_first().map(|(_, bytes)| bytes.to_vec()))
}

/// What the first rank has.
fn broadcast(bytes: Vec<u8>) -> Vec<u8> {
    exchange(vec![bytes; size()]).swap_remove(0)
}

/// Runs `work` on the first rank, and then on the others, who find what it has made.
pub fn in_turn<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    if is_first() {
        let done = apart(work)?;
        wait();
        Ok(done)
    } else {
        wait();
        apart(work)
    }
}

/// Waits until all ranks are here.
pub fn wait() {
    gather_bytes(Vec::new());
}

/// The sum over ranks of a tensor on each rank's device, where devices are joined themselves; else `None`.
pub fn sum(part: &Tensor<1>) -> Option<Tensor<1>> {
    together().and_then(|ranks| ranks.link.sum(part))
}

fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("plain values serialise");
    bytes
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> T {
    ciborium::from_reader(bytes).expect("all ranks run the same program")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What each of `count` ranks makes of `work`.
    fn on_ranks<T: Send>(count: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
        threads::run(threads::links(count), |link| join(Box::new(link), &work))
            .into_iter()
            .map(|result| result.unwrap())
            .collect()
    }

    #[test]
    fn without_others_a_rank_is_the_first_of_one() {
        assert_eq!((rank(), size(), neighbours()), (0, 1, 1));
        assert_eq!(share(5), 0..5);
        assert_eq!(gather(&7), [7]);
        assert_eq!(of_first(|| Ok::<_, ()>(7)), Ok(7));
    }

    #[test]
    fn ranks_exchange_messages() {
        let received = on_ranks(3, || exchange((0..3).map(|to| vec![rank() as u8, to]).collect()));
        for (rank, received) in received.iter().enumerate() {
            let expected: Vec<Vec<u8>> = (0..3).map(|from| vec![from, rank as u8]).collect();
            assert_eq!(received, &expected);
        }
    }

    #[test]
    fn numbers_come_through_to_the_last_bit() {
        let values = [f32::NAN, -0.0, 1.0e-42, f32::MAX, 0.1];
        for gathered in on_ranks(2, || gather(&values.to_vec())) {
            for of_rank in gathered {
                let bits: Vec<u32> = of_rank.iter().map(|value: &f32| value.to_bits()).collect();
                assert_eq!(bits[1..], values.map(f32::to_bits)[1..]);
                assert!(of_rank[0].is_nan());
            }
        }
    }

    #[test]
    fn what_the_first_gets_all_have() {
        let got =
            on_ranks(3, || of_first(|| Ok::<_, ()>(format!("rank {} of {}", rank(), size()))));
        assert_eq!(got, vec![Ok("rank 0 of 1".to_owned()); 3]);
    }

    #[test]
    fn the_others_find_what_the_first_has_made() {
        let made = std::sync::atomic::AtomicUsize::new(0);
        let next = || made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let order = on_ranks(3, || in_turn(|| Ok::<_, ()>((rank(), next()))).unwrap());
        assert_eq!(order[0], (0, 0));
    }

    #[test]
    fn within_its_share_a_rank_is_by_itself_and_writes_no_more_than_before() {
        let inside = on_ranks(2, || (apart(|| (size(), is_first())), size()));
        assert_eq!(inside, [((1, true), 2), ((1, false), 2)]);
    }

    #[test]
    fn a_stop_that_reaches_one_rank_stops_all_at_the_next_exchange_and_none_before() {
        let stopped = on_ranks(3, || {
            let stop = heeding(Stop::default());
            wait();
            if rank() == 2 {
                stop.request();
            }
            let before = stop.check().is_err();
            wait();
            (before, stop.check().is_err(), stop.after_step())
        });
        assert_eq!(stopped, [(false, true, true); 3]);
    }

    #[test]
    fn shares_by_size_are_about_as_large() {
        let shares = on_ranks(2, || shares_by_size(&[10, 10, 10, 30, 1]));
        assert_eq!(shares[0], [0..3, 3..5]);
        assert_eq!(on_ranks(3, || shares_by_size(&[1]))[0], [0..0, 0..1, 1..1]);
    }

    proptest! {
        #[test]
        fn every_item_is_in_one_share(count in 0..50usize, ranks in 1..9usize) {
            let mut end = 0;
            for rank in 0..ranks {
                let share = nth_share(count, rank, ranks);
                prop_assert_eq!(share.start, end);
                prop_assert!(share.len() <= count.div_ceil(ranks));
                end = share.end;
            }
            prop_assert_eq!(end, count);
        }
    }
}
