//! One rank a core: rows are cut into shards, and each thread reads whole shards, with operations of its own.
//!
//! How rows are cut depends on the rows alone, and what shards give is taken in their order, so that every number of
//! threads gives the same bits. What shards of one optimizer step give is summed before the norm and the clip, along a
//! fixed tree ([`tree_sum`]): the place where ranks on other devices would join.

use std::ops::Range;

use burn::tensor::Device;
use rayon::prelude::*;

use crate::model::kernels::is_cpu;

/// Most shards of a batch.
const MOST: usize = 8;
/// Tokens of a shard that are worth a thread's operations.
const TOKENS: usize = 512;

/// Shards of rows of these numbers of tokens, about as long each: 1, 2, 4 or 8 on the CPU, one on other devices, which
/// are parallel inside.
pub fn shards(tokens: &[usize], device: &Device) -> Vec<Range<usize>> {
    if !is_cpu(device) {
        return vec![0..tokens.len()];
    }
    let total: usize = tokens.iter().sum();
    let worth = (total / TOKENS).min(tokens.len()).clamp(1, MOST);
    split(tokens, 1 << worth.ilog2())
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
    let right = left.split_off(left.len().next_power_of_two() / 2);
    let (left, right) = if rayon::current_num_threads() == 1 {
        (tree_sum(left, run, add), tree_sum(right, run, add))
    } else {
        rayon::join(|| tree_sum(left, run, add), || tree_sum(right, run, add))
    };
    add(left, right)
}

#[cfg(test)]
mod tests {
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
