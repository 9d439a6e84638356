//! The statistics of a grid: by hand where a person can check, then what must hold whatever the numbers are.

use std::collections::BTreeSet;

use segment_rlhf::grid::analysis::*;
use segment_rlhf::grid::results::{Cell, Figures, Results, State};
use segment_rlhf::statistics::Estimate;

use crate::synthetic;
use crate::tolerance::HOST_F64;

/// The finished cells of an arm of the synthetic results by seed, to be changed.
fn figures<'a>(results: &'a mut Results, arm: &str) -> Vec<&'a mut Figures> {
    let ids: Vec<String> = arm_of(results, arm).cells.clone();
    let cells = results.cells.iter_mut().filter(|cell| ids.contains(&cell.id));
    let finished = |cell: &'a mut Cell| match &mut cell.state {
        State::Finished(figures) => Some(&mut **figures),
        _ => None,
    };
    cells.filter_map(finished).collect()
}

fn arm_of<'a>(results: &'a Results, name: &str) -> &'a segment_rlhf::grid::results::Arm {
    results.experiments[0].arms.iter().find(|arm| arm.name == name).unwrap()
}

/// The synthetic results with these gold rewards of an arm's seeds 1, 2, 3.
fn with_gold(mut results: Results, arm: &str, gold: [f64; 3]) -> Results {
    for (figures, gold) in figures(&mut results, arm).into_iter().zip(gold) {
        figures.evaluation.after.gold = Some(gold);
    }
    results
}

fn difference<'a>(experiment: &'a Experiment, arm: &str, baseline: &str) -> &'a Difference {
    experiment.differences.iter().find(|d| d.arm == arm && d.baseline == baseline).unwrap()
}

fn ordering<'a>(experiment: &'a Experiment, a: &str, b: &str) -> &'a Ordering {
    let pair = BTreeSet::from([a, b]);
    let is = |o: &&Ordering| BTreeSet::from([&o.better[..], &o.worse]) == pair;
    experiment.orderings.iter().find(is).unwrap()
}

#[test]
fn an_arm_is_the_mean_over_its_seeds_with_standard_error_and_interval() {
    let results = with_gold(synthetic::results(), "token", [1.0, 2.0, 3.0]);
    let analysis = Analysis::of(&results);
    let gold = analysis.experiments[0].arm("token").unwrap().figure(Quantity::Gold).unwrap();
    let error = 1.0 / 3f64.sqrt();
    let reach = 0.95 * (2.0 / (1.0 - 0.95f64.powi(2))).sqrt() * error; // t of 2 degrees of freedom
    assert_eq!((gold.mean, gold.n), (2.0, 3));
    approx::assert_relative_eq!(gold.error.unwrap(), error, epsilon = HOST_F64);
    let [low, high] = gold.interval.unwrap();
    approx::assert_relative_eq!(low, 2.0 - reach, max_relative = HOST_F64);
    approx::assert_relative_eq!(high, 2.0 + reach, max_relative = HOST_F64);
}

#[test]
fn a_difference_is_paired_by_seed() {
    // Differences 1, 2, 3 whatever the seeds have in common.
    let results = with_gold(synthetic::results(), "bandit", [10.0, -5.0, 100.0]);
    let results = with_gold(results, "token", [11.0, -3.0, 103.0]);
    let analysis = Analysis::of(&results);
    let difference = &difference(&analysis.experiments[0], "token", "bandit").figures;
    let expected = Estimate::of([1.0, 2.0, 3.0]);
    assert_eq!(difference.get(&Quantity::Gold), expected.as_ref());
}

#[test]
fn every_pair_of_arms_is_compared_once_the_later_less_the_earlier() {
    let analysis = Analysis::of(&synthetic::results());
    for experiment in &analysis.experiments {
        let place = |name: &str| experiment.arms.iter().position(|arm| arm.name == name).unwrap();
        let pairs: BTreeSet<(usize, usize)> =
            experiment.differences.iter().map(|d| (place(&d.baseline), place(&d.arm))).collect();
        let n = experiment.arms.len();
        assert_eq!((pairs.len(), experiment.differences.len()), (n * (n - 1) / 2, n * (n - 1) / 2));
        assert!(pairs.iter().all(|(baseline, arm)| baseline < arm));
    }
}

#[test]
fn an_arm_differs_from_its_own_copy_by_zero() {
    let mut results = synthetic::results();
    let mut copy = arm_of(&results, "segment").clone();
    copy.name = "copy".into();
    results.experiments[0].arms.push(copy);
    let analysis = Analysis::of(&results);
    let difference = difference(&analysis.experiments[0], "copy", "segment");
    assert_eq!(difference.figures.len(), Quantity::COMPARED.len());
    for estimate in difference.figures.values() {
        let zero = Estimate { mean: 0.0, error: Some(0.0), interval: Some([0.0, 0.0]), n: 3 };
        assert_eq!(*estimate, zero);
    }
}

#[test]
fn only_seeds_that_both_arms_finished_are_compared() {
    let results = with_gold(synthetic::results(), "bandit", [1.0, 1.0, 50.0]);
    let results = with_gold(results, "bandit as segment", [2.0, 4.0, 0.0]); // seed 3 failed
    let analysis = Analysis::of(&results);
    let experiment = &analysis.experiments[0];
    assert_eq!(experiment.arm("bandit as segment").unwrap().seeds.finished, [1, 2]);
    let difference = difference(experiment, "bandit as segment", "bandit");
    assert_eq!(difference.figures.get(&Quantity::Gold), Estimate::of([1.0, 3.0]).as_ref());
    let ordering = ordering(experiment, "bandit as segment", "bandit");
    assert_eq!(ordering.gold.unwrap().difference.n, 2);
}

#[test]
fn the_order_of_cells_and_seeds_does_not_change_a_digit() {
    let results = synthetic::results();
    let mut turned = results.clone();
    turned.cells.reverse();
    turned.cells.swap(0, 7);
    for arm in turned.experiments.iter_mut().flat_map(|e| &mut e.arms) {
        arm.cells.rotate_left(1);
    }
    assert_ne!(turned, results);
    assert_eq!(Analysis::of(&turned), Analysis::of(&results));
}

#[test]
fn one_seed_has_a_mean_and_nothing_more() {
    let mut results = synthetic::results();
    for arm in results.experiments.iter_mut().flat_map(|e| &mut e.arms) {
        arm.cells.truncate(1);
    }
    let analysis = Analysis::of(&results);
    for experiment in &analysis.experiments {
        for estimate in experiment.arms.iter().flat_map(|arm| arm.figures.values()) {
            assert_eq!((estimate.n, estimate.error, estimate.interval), (1, None, None));
        }
        let verdicts = experiment.orderings.iter().filter_map(|o| Some(o.gold?.verdict));
        assert!(!verdicts.clone().any(|verdict| verdict == Verdict::SameSignExcludesZero));
    }
}

#[test]
fn a_grid_without_a_finished_cell_has_arms_but_no_figures() {
    let mut results = synthetic::results();
    results.cells.iter_mut().for_each(|cell| cell.state = State::Pending);
    let analysis = Analysis::of(&results);
    assert!(!analysis.has_figures());
    for experiment in &analysis.experiments {
        assert!(experiment.base.is_empty());
        for arm in &experiment.arms {
            assert_eq!(arm.seeds.pending, [1, 2, 3]);
            assert!(arm.figures.is_empty() && arm.bands.is_empty() && arm.paths.is_empty());
        }
        assert!(experiment.orderings.iter().all(|o| o.gold.is_none()));
    }
}

#[test]
fn failed_corrupt_and_pending_cells_are_named_with_their_errors() {
    let analysis = Analysis::of(&synthetic::results());
    let [table1, table4, _, figure4] = &analysis.experiments[..] else {
        panic!("four experiments")
    };
    let failed = table1.arm("bandit as segment").unwrap();
    assert_eq!((&failed.seeds.failed[..], &failed.seeds.finished[..]), (&[3][..], &[1, 2][..]));
    assert_eq!(failed.problems[0].stage.as_deref(), Some("ppo"));
    let corrupt = table4.arm("last").unwrap();
    assert_eq!((&corrupt.seeds.corrupt[..], corrupt.seeds.finished.len()), (&[2][..], 2));
    assert!(corrupt.problems[0].error.contains("metrics.jsonl:4"));
    assert_eq!(figure4.arm("entropy_cutoff 2.2").unwrap().seeds.pending, [1, 2, 3]);
}

#[test]
fn an_analysis_survives_json_without_a_nan() {
    let mut results = synthetic::results();
    for figures in figures(&mut results, "token") {
        figures.curve.kl_k1[3] = f64::NAN;
        figures.evaluation.after.tokens = f64::INFINITY;
        figures.evaluation.after.win_rate = Some(f64::NAN);
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    assert_eq!((token.figure(Quantity::Tokens), token.figure(Quantity::WinRate)), (None, None));
    assert_eq!(token.figure(Quantity::Area), None); // a path with a hole is none
    assert!(token.figure(Quantity::Gold).is_some());
    assert_eq!(token.band(Column::Kl).len(), token.band(Column::Tokens).len() - 1);
    // serde_json writes NaN as null, which no number can be read from.
    let text = serde_json::to_string(&analysis).unwrap();
    assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), analysis);
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut results = synthetic::results();
    for figures in figures(&mut results, "token") {
        figures.evaluation.after.gold = None;
        figures.curve.gold.iter_mut().for_each(|gold| *gold = None);
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    let of_gold = [Quantity::Gold, Quantity::Area, Quantity::GoldAtOneNat];
    assert!(of_gold.iter().all(|quantity| token.figure(*quantity).is_none()));
    assert!(token.band(Column::Gold).is_empty() && token.paths.is_empty());
    assert!(token.figure(Quantity::SequenceScore).is_some());
}

#[test]
fn only_a_line_over_locations_has_a_share_explained() {
    let table4 = Analysis::of(&synthetic::results()).experiments.remove(1);
    let known = |arm: &str| table4.arm(arm).unwrap().figure(Quantity::NormalizerMeanR2).is_some();
    assert_eq!(["none", "global", "last", "regression"].map(known), [false, false, false, true]);
}

#[test]
fn gold_at_matched_kl_is_read_at_the_first_crossing() {
    let path = [(0.0, 1.0), (1.0, 2.0), (0.5, 9.0), (3.0, 4.0)];
    let path = path.map(|(kl, gold)| PathPoint { kl, gold });
    assert_eq!(gold_at_kl(&path, 0.5), Some(1.5)); // on the way up, not at the 9 later
    assert_eq!(gold_at_kl(&path, 1.0), Some(2.0)); // reached exactly
    assert_eq!(gold_at_kl(&path, 2.0), Some(6.0)); // 9 + 0.6 (4 - 9)
    assert_eq!(gold_at_kl(&path, 4.0), None);
    assert_eq!(gold_at_kl(&path[3..], 2.0), None); // starts beyond it
}

#[test]
fn a_path_ends_with_the_final_policy() {
    let mut results = synthetic::results();
    for figures in figures(&mut results, "token") {
        figures.curve.gold = vec![Some(1.0), Some(2.0)];
        figures.curve.kl_k1 = vec![0.0, 0.5];
        (figures.evaluation.after.gold, figures.evaluation.after.kl) = (Some(4.0), 1.5);
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    let points: Vec<(f64, f64)> = token.paths[0].points.iter().map(|p| (p.kl, p.gold)).collect();
    assert_eq!(points, [(0.0, 1.0), (0.5, 2.0), (1.5, 4.0)]);
    assert_eq!(token.figure(Quantity::GoldAtOneNat).unwrap().mean, 3.0);
    assert_eq!(token.figure(Quantity::Area).unwrap().mean, 2.25); // (1.5 + 3) / 2
    assert_eq!(token.figure(Quantity::GoldAtTwoNats), None);
}

#[test]
fn a_constant_curve_has_itself_as_area() {
    let path = [PathPoint { kl: 0.0, gold: 1.7 }; 9];
    approx::assert_relative_eq!(area(&path).unwrap(), 1.7, max_relative = HOST_F64);
    assert_eq!(area(&path[..1]), None);
}

#[test]
fn bands_are_means_over_the_seeds_that_have_the_iteration() {
    let mut results = synthetic::results();
    let columns = [vec![1.0, 2.0], vec![3.0], vec![5.0, 4.0]];
    for (figures, column) in figures(&mut results, "token").into_iter().zip(columns) {
        figures.curve.entropy = column;
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    let band = token.band(Column::Entropy);
    let expected = [Estimate::of([1.0, 3.0, 5.0]), Estimate::of([2.0, 4.0])];
    assert_eq!(
        band.iter().map(|p| (p.iteration, Some(p.estimate))).collect::<Vec<_>>(),
        [(0, expected[0]), (1, expected[1]),]
    );
    // Held out, by iterations done; the SFT model wins half of the comparisons with itself.
    let win_rate = token.band(Column::WinRate);
    assert_eq!(win_rate.iter().map(|p| p.iteration).collect::<Vec<_>>(), [0, 4, 8]);
    assert_eq!(win_rate[0].estimate.mean, 0.5);
}

#[test]
fn the_base_is_the_sft_model_once_a_seed_if_all_arms_agree() {
    let mut results = synthetic::results();
    let gold =
        |results: &Results| Analysis::of(results).experiments[0].base.get(&Quantity::Gold).copied();
    assert_eq!(gold(&results).unwrap().n, 3);
    figures(&mut results, "token")[0].evaluation.before.gold = Some(7.0);
    assert_eq!(gold(&results), None);
}

#[test]
fn an_ordering_of_the_paper_has_one_of_three_verdicts() {
    let verdict = |segment: [f64; 3]| {
        let results = with_gold(synthetic::results(), "bandit", [0.0; 3]);
        let results = with_gold(results, "segment", segment);
        let analysis = Analysis::of(&results);
        let ordering = ordering(&analysis.experiments[0], "segment", "bandit");
        assert_eq!((&ordering.better[..], &ordering.worse[..]), ("segment", "bandit"));
        ordering.gold.unwrap().verdict
    };
    assert_eq!(verdict([1.0, 1.1, 0.9]), Verdict::SameSignExcludesZero);
    assert_eq!(verdict([3.0, 0.1, -0.1]), Verdict::SameSign);
    assert_eq!(verdict([-3.0, 0.1, 0.1]), Verdict::Opposite);
    assert_eq!(verdict([-1.0, -1.1, -0.9]), Verdict::Opposite);
    assert_eq!(verdict([0.0; 3]), Verdict::Opposite);
}

#[test]
fn the_papers_figures_stand_beside_and_the_length_controlled_win_rate_decides_who_is_ahead() {
    let analysis = Analysis::of(&synthetic::results());
    // Bandit is ahead of sentence by length-controlled win rate alone: 27.05 to 25.56; 31.3 to 32.8; 7.46 to 7.51.
    let ordering = ordering(&analysis.experiments[0], "bandit", "sentence");
    assert_eq!((&ordering.better[..], &ordering.worse[..]), ("bandit", "sentence"));
    let reported: Vec<_> =
        ordering.reported.iter().map(|r| (r.benchmark, r.better, r.worse, r.sign)).collect();
    assert_eq!(
        reported,
        [
            (Benchmark::AlpacaLc, 27.05, 25.56, 1),
            (Benchmark::ArenaHard, 31.3, 32.8, -1),
            (Benchmark::MtBench, 7.46, 7.51, -1),
        ]
    );
}

#[test]
fn every_ordering_of_a_table_is_judged_and_no_arm_of_ours() {
    let analysis = Analysis::of(&synthetic::results());
    let counts: Vec<usize> = analysis.experiments.iter().map(|e| e.orderings.len()).collect();
    // Table 1: six methods and the base, 7 · 6 / 2; table 4: four normalizers; table 5: three interpolations.
    assert_eq!(counts, [21, 6, 3, 0]);
    let ours = |o: &Ordering| [&o.better, &o.worse].contains(&&"length-neutral".to_owned());
    assert!(!analysis.experiments[0].orderings.iter().any(ours));
}

#[test]
fn the_sft_model_is_compared_with_the_policy_that_it_became() {
    let mut results = synthetic::results();
    for (figures, gold) in figures(&mut results, "bandit").into_iter().zip([1.0, 2.0, 3.0]) {
        figures.evaluation.after.gold = Some(gold + figures.evaluation.before.gold.unwrap());
        figures.evaluation.after.length_controlled_win_rate = Some(0.75);
    }
    let analysis = Analysis::of(&results);
    let ordering = ordering(&analysis.experiments[0], "bandit", BASE);
    assert_eq!((&ordering.better[..], &ordering.worse[..]), ("bandit", BASE));
    let gold = ordering.gold.unwrap().difference;
    approx::assert_relative_eq!(gold.mean, 2.0, max_relative = HOST_F64);
    let win_rate = ordering.length_controlled_win_rate.unwrap();
    assert_eq!((win_rate.difference.mean, win_rate.verdict), (0.25, Verdict::SameSignExcludesZero));
}

#[test]
fn arms_that_differ_in_more_than_the_rows_of_the_table_are_not_set_against_the_paper() {
    let mut results = synthetic::results();
    let token = results.experiments[0].arms.iter_mut().find(|arm| arm.name == "token").unwrap();
    token.settings.insert("task".into(), "pairs = 1000".parse::<toml::Table>().unwrap().into());
    let orderings = Analysis::of(&results).experiments.remove(0).orderings;
    let with_token = orderings.iter().filter(|o| o.better == "token" || o.worse == "token");
    assert!(with_token.clone().all(|o| o.worse == BASE || o.better == BASE), "{with_token:?}");
    assert_eq!(orderings.len(), 21 - 5);
}
