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
    // All but the pass rate, which a run without a verdict lacks.
    assert_eq!(difference.figures.len(), Quantity::COMPARED.len() - 1);
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
        let mut verdicts = experiment.orderings.iter().filter_map(|o| Some(o.gold?.verdict));
        assert!(verdicts.all(|verdict| verdict == Verdict::Undecided));
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
        figures.evaluations[2].evaluation.kl = f64::NAN;
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
        figures.evaluations.iter_mut().for_each(|line| line.evaluation.gold = None);
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    let of_gold = [Quantity::Gold, Quantity::Area, Quantity::GoldAtOneNat];
    assert!(of_gold.iter().all(|quantity| token.figure(*quantity).is_none()));
    assert!(token.band(Column::Gold).is_empty() && token.paths.is_empty());
    assert!(token.reached.is_empty());
    assert!(token.figure(Quantity::SequenceScore).is_some());
}

#[test]
fn only_a_line_over_locations_has_a_share_explained() {
    let table4 = Analysis::of(&synthetic::results()).experiments.remove(1);
    let known = |arm: &str| table4.arm(arm).unwrap().figure(Quantity::NormalizerMeanR2).is_some();
    assert_eq!(["none", "global", "last", "regression"].map(known), [false, false, false, true]);
}

/// A path through these iterations, KLs and gold rewards.
fn points<const N: usize>(points: [(usize, f64, f64); N]) -> [PathPoint; N] {
    points.map(|(iteration, kl, gold)| PathPoint { iteration, kl, gold })
}

#[test]
fn gold_at_matched_kl_is_read_at_the_first_crossing() {
    let path = points([(0, 0.0, 1.0), (1, 1.0, 2.0), (2, 0.5, 9.0), (3, 3.0, 4.0)]);
    assert_eq!(gold_at_kl(&path, 0.5), Some(1.5)); // on the way up, not at the 9 later
    assert_eq!(gold_at_kl(&path, 1.0), Some(2.0)); // reached exactly
    assert_eq!(gold_at_kl(&path, 2.0), Some(6.0)); // 9 + 0.6 (4 - 9)
    assert_eq!(gold_at_kl(&path, 4.0), None);
    assert_eq!(gold_at_kl(&path[3..], 2.0), None); // starts beyond it
}

/// The held-out evaluations of a cell are these.
fn evaluate(figures: &mut Figures, path: &[PathPoint]) {
    let line = figures.evaluations[0].clone();
    figures.evaluations.clear();
    for &PathPoint { iteration, kl, gold } in path {
        let mut line = line.clone();
        line.iteration = iteration;
        (line.evaluation.gold, line.evaluation.kl) = (Some(gold), kl);
        figures.evaluations.push(line);
    }
}

#[test]
fn a_path_is_of_held_out_evaluations_alone() {
    let mut results = synthetic::results();
    for figures in figures(&mut results, "token") {
        // Rollouts to training prompts, and the evaluation stage's second look at the last policy.
        figures.curve.gold.fill(Some(77.0));
        figures.curve.kl_k1.fill(0.9);
        (figures.evaluation.after.gold, figures.evaluation.after.kl) = (Some(88.0), 9.0);
        evaluate(figures, &points([(0, 0.0, 1.0), (2, 0.5, 2.0), (3, 1.5, 4.0)]));
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    assert_eq!(token.paths[0].points, points([(0, 0.0, 1.0), (2, 0.5, 2.0), (3, 1.5, 4.0)]));
    assert_eq!(token.figure(Quantity::GoldAtOneNat).unwrap().mean, 3.0);
    assert_eq!(token.figure(Quantity::Area).unwrap().mean, 2.0); // (2 · 1.5 + 1 · 3) / 3
    assert_eq!(token.figure(Quantity::GoldAtTwoNats), None);
}

#[test]
fn gold_at_a_kl_is_known_only_where_every_seed_reaches_it() {
    let mut results = synthetic::results();
    for (figures, kl) in figures(&mut results, "token").into_iter().zip([3.0, 0.75, 1.0]) {
        evaluate(figures, &points([(0, 0.0, 1.0), (8, kl, 2.0)]));
    }
    for figures in figures(&mut results, "segment") {
        evaluate(figures, &points([(0, 0.0, 1.0), (8, 5.0, 2.0)]));
    }
    let analysis = Analysis::of(&results);
    let experiment = &analysis.experiments[0];
    let token = experiment.arm("token").unwrap();
    let reached = |quantity| &token.reached[&quantity][..];
    assert_eq!(reached(Quantity::GoldAtHalfNat), [1, 2, 3]);
    assert_eq!(reached(Quantity::GoldAtOneNat), [1, 3]);
    assert_eq!(reached(Quantity::GoldAtTwoNats), [1]);
    assert_eq!(reached(Quantity::GoldAtFourNats), [0; 0]);
    let known = |quantity| token.figure(quantity).map(|estimate| estimate.n);
    assert_eq!(known(Quantity::GoldAtHalfNat), Some(3));
    assert_eq!(known(Quantity::GoldAtOneNat), None);
    // The same of differences, over the seeds that both arms finished.
    let with = |arm: &str, baseline: &str| {
        let figures = &difference(experiment, arm, baseline).figures;
        [Quantity::GoldAtHalfNat, Quantity::GoldAtOneNat].map(|q| figures.get(&q).map(|of| of.n))
    };
    assert_eq!(with("segment", "token"), [Some(3), None]);
    assert_eq!(with("bandit as segment", "segment"), [Some(2), Some(2)]); // seed 3 failed
}

#[test]
fn samples_to_a_gold_reward_are_counted_until_the_first_crossing_of_every_seed() {
    let mut results = synthetic::results();
    for (figures, end) in figures(&mut results, "token").into_iter().zip([2.5, 3.0, 4.0]) {
        figures.curve.sampled_tokens = vec![1000, 3000, 2000, 2000];
        evaluate(figures, &points([(0, 0.0, 1.5), (2, 0.0, 2.5), (3, 0.0, 1.0), (4, 0.0, end)]));
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    // Gold 2 is half way to iteration 2: after the first update. A later fall changes nothing.
    assert_eq!(token.figure(Quantity::SamplesToGoldTwo).unwrap().mean, 1.0);
    assert_eq!(token.figure(Quantity::SamplesToGoldThree), None, "the first seed never reaches 3");
    for figures in figures(&mut results, "token") {
        evaluate(figures, &points([(0, 0.0, 2.0), (4, 0.0, 6.0)]));
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    assert_eq!(token.figure(Quantity::SamplesToGoldTwo).unwrap().mean, 0.0, "the SFT model's");
    assert_eq!(token.figure(Quantity::SamplesToGoldThree).unwrap().mean, 1.0);
}

#[test]
fn a_constant_curve_has_itself_as_area() {
    let path: Vec<PathPoint> =
        [0, 2, 3, 7].map(|iteration| PathPoint { iteration, kl: 0.0, gold: 1.7 }).into();
    approx::assert_relative_eq!(area(&path).unwrap(), 1.7, max_relative = HOST_F64);
    assert_eq!(area(&path[..1]), None);
    assert_eq!(area(&[]), None);
}

#[test]
fn the_strength_of_the_kl_term_is_beta_over_the_spread_of_advantages() {
    let mut results = synthetic::results();
    for figures in figures(&mut results, "token") {
        figures.curve.advantage_spread = vec![4.0, 2.0, 0.0];
        figures.curve.kl_coefficient = vec![0.1, 0.2, 0.3];
    }
    let analysis = Analysis::of(&results);
    let token = analysis.experiments[0].arm("token").unwrap();
    let mean = |quantity| token.figure(quantity).unwrap().mean;
    assert_eq!(mean(Quantity::AdvantageSpreadAtFirst), 4.0);
    assert_eq!(mean(Quantity::AdvantageSpread), 2.0);
    // Where advantages do not vary, there is no strength: (0.1 / 4 + 0.2 / 2) / 2.
    let expected = (0.1 / 4.0 + 0.2 / 2.0) / 2.0;
    approx::assert_relative_eq!(
        mean(Quantity::EffectiveKlCoefficient),
        expected,
        max_relative = HOST_F64
    );
    let curve: Vec<_> =
        token.band(Column::EffectiveKlCoefficient).iter().map(|p| p.iteration).collect();
    assert_eq!(curve, [0, 1]);
    assert_eq!(token.band(Column::AdvantageSpread).len(), 3);
}

#[test]
fn a_share_has_a_count_where_all_arms_and_seeds_have_the_same() {
    let mut results = synthetic::results();
    let analysis = Analysis::of(&results);
    let experiment = &analysis.experiments[0];
    assert_eq!(experiment.title(Quantity::WinRate), "win rate (n 384)");
    assert_eq!(experiment.title(Quantity::LengthControlledWinRate), "LC win rate (n 384)");
    assert_eq!(experiment.title(Quantity::RewardAccuracy), "RM accuracy (n 800)");
    assert_eq!(experiment.title(Quantity::RewardGoldAccuracy), "RM gold accuracy (n 790)");
    assert_eq!(experiment.title(Quantity::Gold), "gold");
    let wanted = [Quantity::Gold, Quantity::WinRate, Quantity::LengthControlledWinRate];
    assert_eq!(experiment.columns(&wanted), wanted);
    // One seed of one arm with another: the count is a column of its own, once.
    figures(&mut results, "token")[1].evaluation.after.responses = 12;
    let analysis = Analysis::of(&results);
    let experiment = &analysis.experiments[0];
    assert_eq!(experiment.title(Quantity::WinRate), "win rate");
    let [gold, win_rate, controlled] = wanted;
    assert_eq!(experiment.columns(&wanted), [gold, Quantity::Responses, win_rate, controlled]);
    assert_eq!(experiment.title(Quantity::RewardAccuracy), "RM accuracy (n 800)");
}

#[test]
fn a_win_rate_of_one_response_is_shown_as_such() {
    let mut results = synthetic::results();
    for arm in results.experiments.iter_mut().flat_map(|e| &mut e.arms) {
        arm.cells.truncate(1);
    }
    for figures in figures(&mut results, "token") {
        figures.evaluation.after.responses = 1;
        figures.evaluation.after.win_rate = Some(1.0);
    }
    let analysis = Analysis::of(&results);
    let of_one = |arm: &str, q| analysis.experiments[0].arm(arm).unwrap().of_one(q);
    assert_eq!(of_one("token", Quantity::WinRate).as_deref(), Some("1 of 1"));
    assert_eq!(of_one("token", Quantity::LengthControlledWinRate).as_deref(), Some("–"));
    assert_eq!(of_one("token", Quantity::RewardAccuracy), None);
    assert_eq!(of_one("segment", Quantity::WinRate), None);
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
    assert_eq!(win_rate.iter().map(|p| p.iteration).collect::<Vec<_>>(), [0, 2, 4, 6, 8]);
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
    assert_eq!(verdict([1.0, 1.1, 0.9]), Verdict::AsInThePaper);
    assert_eq!(verdict([3.0, 0.1, -0.1]), Verdict::Undecided);
    assert_eq!(verdict([-3.0, 0.1, 0.1]), Verdict::Undecided);
    assert_eq!(verdict([-1.0, -1.1, -0.9]), Verdict::Opposite);
    assert_eq!(verdict([0.0; 3]), Verdict::Undecided);
}

#[test]
fn a_difference_is_none_only_where_its_whole_interval_lies_within_the_margin() {
    let margin = Quantity::Gold.margin().unwrap();
    let of = |low: f64, high: f64| Estimate {
        mean: (low + high) / 2.0,
        error: Some(0.0),
        interval: Some([low, high]),
        n: 5,
    };
    let is = |low, high| Quantity::Gold.is_no_difference(&of(low, high));
    assert!(is(-margin, margin));
    assert!(is(0.1 * margin, 0.2 * margin)); // small, though it excludes 0
    assert!(!is(-1.01 * margin, 0.0) && !is(0.0, 1.01 * margin));
    let single = Estimate { mean: 0.0, error: None, interval: None, n: 1 };
    assert!(!Quantity::Gold.is_no_difference(&single));
    assert!(!Quantity::Kl.is_no_difference(&of(0.0, 0.0))); // what has no margin
    // In the units of each, and told in analysis.json.
    let with = |q: &Quantity| q.margin().map(|margin| (*q, margin));
    let margins = Quantity::ALL.iter().filter_map(with).collect();
    assert_eq!(Analysis::of(&synthetic::results()).margins, margins);
    assert_eq!(
        (margin, margins[&Quantity::GoldAtOneNat], margins[&Quantity::WinRate]),
        (0.2, 0.2, 0.02)
    );
}

#[test]
fn orderings_are_counted_over_experiments_and_their_arms_once() {
    let analysis = Analysis::of(&synthetic::results());
    let claims = analysis.claims(|ordering| ordering.gold).unwrap();
    assert_eq!((&claims.tables[..], claims.verdicts.len()), (&[1, 4, 5][..], 21 + 6 + 3));
    // Six methods; three further normalizers; two further interpolations: segment, regression and even split are one arm.
    assert_eq!(claims.arms, 6 + 3 + 2);
    let count = |verdict| claims.count(verdict);
    let counts = Verdict::ALL.map(count);
    assert_eq!(counts.iter().sum::<usize>(), 30);
    let [same, undecided, opposite] = counts;
    assert_eq!(
        claims.text("gold reward"),
        format!(
            "Of 30 orderings that tables 1, 4 and 5 of the paper claim, by gold reward: {same} as in the paper (the \
             interval excludes 0), {undecided} undecided (the interval does not exclude 0), {opposite} opposite (the \
             interval excludes 0). All come from 11 arms, so that the luck of one arm shows in several orderings."
        )
    );
    let one = Claims { tables: vec![4], verdicts: vec![Verdict::Opposite], arms: 2 };
    let text = one.text("gold reward");
    assert!(
        text.starts_with("Of 1 orderings that table 4 of the paper claims, by gold reward: 0 as"),
        "{text}"
    );
    assert_eq!(analysis.claims(|_| None), None);
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
    assert_eq!((win_rate.difference.mean, win_rate.verdict), (0.25, Verdict::AsInThePaper));
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
