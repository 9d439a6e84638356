//! Data parallelism: rows are cut into shards, which threads read side by side, and which ranks share out.
//!
//! On the CPU, how rows are cut depends on the rows alone, and what shards give is taken in their order, so that every
//! number of threads and of ranks gives the same bits. The gradients of shards are summed before the norm and the clip,
//! along a fixed tree ([`tree_sum`]), wherever the shards were read ([`subtrees`], [`join`]). Other devices are parallel
//! inside: there, each rank has one shard, and sums what it accumulates before ranks exchange it.

use std::ops::Range;

use burn::tensor::Device;
use rayon::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::kernels::is_cpu;
use crate::ranks;

/// Most shards of a batch.
const MOST: usize = 8;
/// Tokens of a shard that are worth a thread's operations.
const TOKENS: usize = 512;

/// Shards of rows of these numbers of tokens, about as long each: 1, 2, 4 or 8 on the CPU, one a rank on other devices.
pub fn shards(tokens: &[usize], device: &Device) -> Vec<Range<usize>> {
    if !is_cpu(device) {
        return split(tokens, a_rank(tokens.len()));
    }
    let total: usize = tokens.iter().sum();
    let worth = (total / TOKENS).min(tokens.len()).clamp(1, MOST);
    split(tokens, 1 << worth.ilog2())
}

/// One shard a rank of rows that are as long as each other.
pub(super) fn even(rows: usize) -> Vec<Range<usize>> {
    split(&vec![1; rows], a_rank(rows))
}

/// Shards of so many rows, one a rank.
fn a_rank(rows: usize) -> usize {
    ranks::size().min(rows).max(1)
}

/// `count` ranges of rows, none empty, with about as many tokens each; `count` is at most the number of rows.
fn split(tokens: &[usize], count: usize) -> Vec<Range<usize>> {
    let total: usize = tokens.iter().sum();
    let (mut start, mut before) = (0, 0);
    let shard = |i: usize| {
        let goal = total * (i + 1);
        let mut end = start;
        // Up to the row whose middle is past the goal, which leaves a row for each shard behind.
        while end < tokens.len() + i + 1 - count
            && (end == start || (2 * before + tokens[end]) * count < 2 * goal)
        {
            before += tokens[end];
            end += 1;
        }
        if i + 1 == count {
            end = tokens.len();
        }
        std::mem::replace(&mut start, end)..end
    };
    (0..count).map(shard).collect()
}

/// What `run` gives for each item, in order; several items run side by side, on the threads of the program.
pub fn side_by_side<T: Send, R: Send>(items: Vec<T>, run: impl Fn(T) -> R + Sync) -> Vec<R> {
    // A pool of one thread would take turns with the other runs of the program.
    if items.len() == 1 || rayon::current_num_threads() == 1 {
        return items.into_iter().map(run).collect();
    }
    items.into_par_iter().with_max_len(1).map(&run).collect()
}

/// What `run` gives for each item of each group, in order. Ranks share the items out, and all get all results. A rank reads
/// one group after the other, and the items of a group side by side.
///
/// # Errors
///
/// The first error of `run`.
pub fn over_ranks<T: Send, R, E: Send>(
    groups: Vec<Vec<T>>,
    run: impl Fn(T) -> Result<Vec<R>, E> + Sync,
) -> Result<Vec<R>, E>
where
    R: Send + Serialize + DeserializeOwned,
{
    let own = ranks::share(groups.iter().map(Vec::len).sum());
    let mut results = Vec::new();
    let mut start = 0;
    for group in groups {
        let of_group = own.start.saturating_sub(start)..own.end.saturating_sub(start);
        start += group.len();
        let items = group.into_iter().enumerate();
        let items = items.filter(|(i, _)| of_group.contains(i)).map(|(_, item)| item).collect();
        for result in ranks::apart(|| side_by_side(items, &run)) {
            results.extend(result?);
        }
    }
    Ok(if ranks::size() == 1 {
        results
    } else {
        ranks::gather(&results).into_iter().flatten().collect()
    })
}

/// The sum of what `run` gives for each item, along a fixed tree: neighbours first, then neighbouring sums. Several items
/// run side by side; no more sums are in memory than the tree is deep, beside one a thread.
///
/// # Panics
///
/// Of none.
pub fn tree_sum<T: Send, R: Send>(
    items: Vec<T>,
    run: &(impl Fn(T) -> R + Sync),
    add: &(impl Fn(R, R) -> R + Sync),
) -> R {
    let mut left = items;
    if left.len() == 1 {
        return run(left.remove(0));
    }
    let right = left.split_off(halves(&(0..left.len()))[1].start);
    let (left, right) = if rayon::current_num_threads() == 1 {
        (tree_sum(left, run, add), tree_sum(right, run, add))
    } else {
        rayon::join(|| tree_sum(left, run, add), || tree_sum(right, run, add))
    };
    add(left, right)
}

/// The two sides of the tree over `items`, of which there are at least two.
fn halves(items: &Range<usize>) -> [Range<usize>; 2] {
    let middle = items.start + items.len().next_power_of_two() / 2;
    [items.start..middle, middle..items.end]
}

/// The largest subtrees of the tree over `items` that lie within `own`, in order.
pub fn subtrees(items: &Range<usize>, own: &Range<usize>) -> Vec<Range<usize>> {
    let (start, end) = (items.start.max(own.start), items.end.min(own.end));
    if start >= end {
        Vec::new()
    } else if (start..end) == *items {
        vec![items.clone()]
    } else {
        halves(items).iter().flat_map(|half| subtrees(half, own)).collect()
    }
}

/// The sum along the tree over `items`, given those of some of its subtrees that make up the whole.
///
/// # Panics
///
/// If they do not.
pub fn join<R>(
    items: &Range<usize>,
    sum_of: &mut impl FnMut(&Range<usize>) -> Option<R>,
    add: &impl Fn(R, R) -> R,
) -> R {
    if let Some(sum) = sum_of(items) {
        return sum;
    }
    assert!(items.len() > 1, "no sum of item {}", items.start);
    let [left, right] = halves(items);
    let left = join(&left, sum_of, add);
    let right = join(&right, sum_of, add);
    add(left, right)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tree_adds_neighbours_first() {
        let add = |a: String, b: String| format!("({a}{b})");
        let sum = |n: u8| tree_sum((0..n).collect(), &|i| i.to_string(), &add);
        assert_eq!(sum(1), "0");
        assert_eq!(sum(4), "((01)(23))");
        assert_eq!(sum(5), "(((01)(23))4)");
    }

    #[test]
    fn a_rank_sums_the_largest_subtrees_of_its_share() {
        assert_eq!(subtrees(&(0..8), &(0..4)), [0..4]);
        assert_eq!(subtrees(&(0..8), &(2..5)), [2..4, 4..5]);
        assert_eq!(subtrees(&(0..5), &(3..5)), [3..4, 4..5]);
        assert!(subtrees(&(0..2), &(1..1)).is_empty());
    }

    #[test]
    fn the_number_of_shards_depends_on_the_tokens_and_not_on_the_threads() {
        let cpu = Device::flex();
        let count = |rows, tokens| shards(&vec![tokens; rows], &cpu).len();
        assert_eq!(count(1, 5000), 1);
        assert_eq!(count(32, 16), 1);
        assert_eq!(count(32, 52), 2);
        assert_eq!(count(64, 64), 8);
        assert_eq!(count(3, 5000), 2);
    }

    proptest! {
        #[test]
        fn every_number_of_ranks_adds_along_the_same_tree(count in 1..20usize, ranks in 1..9usize) {
            let add = |a: String, b: String| format!("({a}{b})");
            let sum = |items: &Range<usize>| tree_sum(items.clone().collect(), &|i| format!("{i} "), &add);
            let shares = (0..ranks).map(|rank| count * rank / ranks..count * (rank + 1) / ranks);
            let mut sums: HashMap<Range<usize>, String> = shares
                .flat_map(|own| subtrees(&(0..count), &own))
                .map(|items| (items.clone(), sum(&items)))
                .collect();
            let joined = join(&(0..count), &mut |items| sums.remove(items), &add);
            prop_assert_eq!(joined, sum(&(0..count)));
            prop_assert!(sums.is_empty());
        }

        #[test]
        fn shards_hold_every_row_once_in_order_and_are_about_as_long(
            tokens in prop::collection::vec(1..100usize, 1..60), wanted in 0..4u32,
        ) {
            let count = (1 << wanted).min(1 << tokens.len().ilog2());
            let ranges = split(&tokens, count);
            prop_assert_eq!(ranges.len(), count);
            let mut end = 0;
            for range in &ranges {
                prop_assert_eq!(range.start, end);
                prop_assert!(!range.is_empty());
                end = range.end;
            }
            prop_assert_eq!(end, tokens.len());
            if tokens.len() >= 8 * count {
                let of = |range: &Range<usize>| tokens[range.clone()].iter().sum::<usize>();
                let even = tokens.iter().sum::<usize>() / count;
                prop_assert!(ranges.iter().all(|range| of(range).abs_diff(even) <= 100));
            }
        }
    }
}
