//! The figures of an arm by seed, and means over seeds.

use std::collections::BTreeMap;

use super::curves::{BandPoint, Column};
use super::quantity::Quantity;
use crate::grid::results::Figures;
use crate::statistics::Estimate;

/// The finished cells of an arm by seed.
pub(super) type Finished<'a> = BTreeMap<u64, &'a Figures>;

/// Those of `quantities` for which `of` has an estimate.
pub(super) fn known(
    quantities: &[Quantity],
    of: impl Fn(Quantity) -> Option<Estimate>,
) -> BTreeMap<Quantity, Estimate> {
    quantities.iter().filter_map(|&quantity| Some((quantity, of(quantity)?))).collect()
}

/// The mean of a's value minus b's over the seeds for which both have one.
pub(super) fn paired(
    a: &Finished,
    b: &Finished,
    of_a: impl Fn(&Figures) -> Option<f64>,
    of_b: impl Fn(&Figures) -> Option<f64>,
) -> Option<Estimate> {
    Estimate::of(a.iter().filter_map(|(seed, a)| Some(of_a(a)? - of_b(b.get(seed)?)?)))
}

/// The SFT model's value over seeds; `None` if arms disagree.
pub(super) fn base(quantity: Quantity, arms: &[Finished]) -> Option<Estimate> {
    let mut by_seed = BTreeMap::new();
    for (seed, figures) in arms.iter().flatten() {
        let value = quantity.of_base(figures)?;
        if *by_seed.entry(seed).or_insert(value) != value {
            return None;
        }
    }
    Estimate::of(by_seed.into_values())
}

/// Means of a column at each iteration over the seeds that have it.
pub(super) fn band(column: Column, finished: &Finished) -> Vec<BandPoint> {
    let mut points: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (iteration, value) in finished.values().flat_map(|figures| column.of(figures)) {
        points.entry(iteration).or_default().push(value);
    }
    let point =
        |(iteration, values)| Some(BandPoint { iteration, estimate: Estimate::of(values)? });
    points.into_iter().filter_map(point).collect()
}
