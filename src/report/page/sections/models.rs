//! What policies are trained on: normalizers, segments and reward models, compared with the truth.

use std::collections::BTreeMap;
use std::ops::Range;

use super::training::groups;
use super::{arms, arms_only, figure, main_experiment, table, text, title};
use crate::equations::normalizer::{LocationStatistic, Normalizer};
use crate::grid::analysis::{Analysis, Arm, Column, Experiment, Quantity};
use crate::grid::reported::reported;
use crate::grid::results::Figures;
use crate::report::page::plots::{Layer, Plot, Style};
use crate::report::page::view::{Block, Cell, Drawing, Entry, Piece, Section, ShadedRow};
use crate::report::page::{Fit, Page};
use crate::report::texts::ShadedText;
use crate::stage::segmented_text::SegmentedText;
use crate::statistics::Estimate;

/// The most points drawn for a fit: there may be hundreds of locations with few rewards each.
const LOCATIONS: usize = 80;

/// The statistics, pooled over neighbouring locations if there are too many to draw.
fn pooled(statistics: &[LocationStatistic]) -> Vec<LocationStatistic> {
    if statistics.len() <= LOCATIONS {
        return statistics.to_vec();
    }
    let mut bins: BTreeMap<usize, Vec<&LocationStatistic>> = BTreeMap::new();
    for statistic in statistics {
        bins.entry((statistic.location * LOCATIONS as f64).ceil() as usize)
            .or_default()
            .push(statistic);
    }
    let pool = |bin: Vec<&LocationStatistic>| {
        let count: usize = bin.iter().map(|s| s.count).sum();
        let mean = |of: fn(&LocationStatistic) -> f64| {
            bin.iter().map(|s| s.count as f64 * of(s)).sum::<f64>() / count.max(1) as f64
        };
        LocationStatistic {
            location: mean(|s| s.location),
            mean: mean(|s| s.mean),
            std: mean(|s| s.std),
            count,
        }
    };
    bins.into_values().map(pool).filter(|s| s.count > 0).collect()
}

pub(super) fn normalizer(page: &Page) -> Option<Section> {
    let (mean, std) = (Style::Series(0), Style::Series(1));
    let fits = page.extras.fits.iter();
    let fits = fits.filter(|fit| matches!(fit.file.normalizer, Normalizer::LocationAware { .. }));
    let plots = fits.filter_map(|fit: &Fit| {
        let statistics = pooled(&fit.file.statistics);
        let points = |of: fn(&LocationStatistic) -> f64| {
            statistics.iter().map(|s| (s.location, of(s))).collect::<Vec<_>>()
        };
        let first = statistics.first()?.location.max(fit.file.min_location);
        let curve = |of: &dyn Fn(f64) -> f64| {
            let x = (0..=60).map(|i| first * (1.0 / first).powf(f64::from(i) / 60.0));
            x.map(|p| (p, of(p))).collect::<Vec<_>>()
        };
        let normalizer = fit.file.normalizer;
        let line = |style, points| Layer::Line { style, points, marked: false };
        let plot = Plot {
            y: "Reward of a segment".into(),
            x: "location p in the response".into(),
            description: format!(
                "Mean and standard deviation of segment rewards by location, {}",
                fit.arm
            ),
            x_range: Some([0.0, 1.0]),
            layers: vec![
                Layer::Dots(mean, points(|s| s.mean)),
                Layer::Dots(std, points(|s| s.std)),
                line(mean, curve(&|p| normalizer.mean(p))),
                line(std, curve(&|p| normalizer.std(p))),
            ],
            ..Plot::default()
        };
        Drawing::of(Some(&format!("{}, seed {}", fit.arm, fit.seed)), &plot)
    });
    let legend = vec![
        Entry::new(mean, "mean, and Mean(p)"),
        Entry::new(std, "standard deviation, and Std(p)"),
    ];
    let caption = format!(
        "The paper's regression: rewards of the calibration set by location p = (t + 1) / T of segment t of T. Markers \
         are the statistics of a location, weighted means of neighbours where there are more than {LOCATIONS}; the \
         curves w ln p + b are what was fitted to them. A reward is normalized by both at its location."
    );
    let rows = page.extras.fits.iter().map(|fit| {
        let file = &fit.file;
        let numbers = match file.normalizer {
            Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, .. } => {
                [Some(w_mean), Some(b_mean), Some(w_std), Some(b_std)]
            }
            Normalizer::Scalar { mean, std } => [None, Some(mean), None, Some(std)],
            Normalizer::None => [None; 4],
        };
        let numbers = numbers.map(|number| Cell::figure(number, 3));
        let rest = [
            Cell::figure(file.r_squared_mean, 2),
            Cell::figure(file.r_squared_std, 2),
            Cell::number(file.rewards.to_string()),
        ];
        let name = Cell::name(format!("{}, seed {}", fit.arm, fit.seed));
        [name].into_iter().chain(numbers).chain(rest).collect()
    });
    let fitted = table(
        "The fits. R²: share of the variance over locations that the curve explains.",
        &["arm", "w mean", "b mean", "w std", "b std", "R² mean", "R² std", "rewards"],
        rows.collect(),
    );
    let blocks = [figure(caption, legend, plots.collect()), fitted];
    Section::new("normalizer", "Normalizers", blocks.into_iter().flatten().collect())
}

/// The cutoff that an arm sets, in nats.
fn cutoff(arm: &Arm) -> Option<f64> {
    let value = arm.settings.get("segmentation")?.get("entropy_cutoff")?;
    value.as_float().or(value.as_integer().map(|whole| whole as f64)).filter(|c| c.is_finite())
}

/// The experiment that varies the cutoff, with the arms' cutoffs.
fn sweep(analysis: &Analysis) -> Option<(&Experiment, Vec<(f64, &Arm)>)> {
    let swept = |experiment: &'_ Experiment| {
        experiment.arms.iter().filter(|a| cutoff(a).is_some()).count() > 2
    };
    let experiment = analysis.experiments.iter().find(|e| swept(e))?;
    let mut arms: Vec<(f64, &Arm)> =
        experiment.arms.iter().filter_map(|arm| Some((cutoff(arm)?, arm))).collect();
    arms.sort_by(|a, b| a.0.total_cmp(&b.0));
    Some((experiment, arms))
}

/// Quantities over cutoffs in one plot, with their intervals.
fn over_cutoffs(arms: &[(f64, &Arm)], y: &str, quantities: &[Quantity]) -> Option<Drawing> {
    let width = arms.last().zip(arms.first()).map_or(0.0, |(last, first)| last.0 - first.0);
    let layers = quantities.iter().enumerate().flat_map(|(i, quantity)| {
        let style = Style::Series(i);
        let aside = 0.012 * width * i as f64; // so that intervals do not hide each other
        let known = arms.iter().filter_map(|(cutoff, arm)| {
            let of = arm.figure(*quantity)?;
            Some((cutoff + aside, of.mean, of.interval.unwrap_or([of.mean; 2])))
        });
        let points = known.clone().map(|(x, mean, _)| (x, mean)).collect();
        [Layer::Line { style, points, marked: false }, Layer::Intervals(style, known.collect())]
    });
    let plot = Plot {
        y: y.to_owned(),
        x: "entropy cutoff, nats".into(),
        description: format!("{y} over the entropy cutoff"),
        x_range: None,
        layers: layers.collect(),
        ..Plot::default()
    };
    Drawing::of(None, &plot)
}

pub(super) fn segments(page: &Page, truth: bool) -> Option<Section> {
    let lengths = page.extras.segment_lengths.iter().filter_map(|lengths| {
        let all: usize = lengths.counts.iter().sum();
        let bar = |(i, &n): (usize, &usize)| {
            (i as f64 + 0.5, i as f64 + 1.5, 100.0 * n as f64 / all.max(1) as f64)
        };
        let plot = Plot {
            y: "Share of segments, %".into(),
            x: "tokens of a segment".into(),
            description: format!("Lengths of segments, {}", lengths.arm),
            y_holds: vec![0.0],
            layers: vec![Layer::Bars(
                Style::Series(0),
                lengths.counts.iter().enumerate().map(bar).collect(),
            )],
            ..Plot::default()
        };
        Drawing::of(Some(&format!("{}, seed {}", lengths.arm, lengths.seed)), &plot)
    });
    let histogram = figure(
        "Lengths of the segments of held-out pairs' responses: a bar is the share of the segments with that many \
         tokens.",
        Vec::new(),
        lengths.collect(),
    );
    let sweep = sweep(page.analysis).and_then(|(experiment, arms)| {
        let score = match truth {
            true => (Quantity::Gold, "Gold reward of a held-out response"),
            false => (Quantity::SequenceScore, "e_φ of a held-out response"),
        };
        let plots = [
            over_cutoffs(&arms, "Tokens of a segment", &[Quantity::SegmentTokens]),
            over_cutoffs(&arms, score.1, &[score.0]),
            over_cutoffs(&arms, "Win rate over the SFT model", &[Quantity::WinRate, Quantity::LengthControlledWinRate]),
        ];
        let paper = &reported().cutoff_sweep;
        let ([from, to], [short, long], [low, high]) =
            (paper.entropy_cutoff, paper.segment_tokens, paper.best_entropy_cutoff);
        let caption = format!(
            "The cutoff sweep: means and 95 % intervals over seeds. In the win rates' plot the second series is the \
             win rate at equal lengths{}. The paper's figure 4 has cutoffs from {from} to {to} nats, which cut segments \
             of {short} to {long} tokens, and finds those from {low} to {high} best.",
            experiment.count(Quantity::WinRate).map_or(String::new(), |n| {
                format!("; both are shares of {n} responses of each seed")
            })
        );
        let legend = vec![
            Entry::new(Style::Series(0), "the quantity above the plot"),
            Entry::new(Style::Series(1), "win rate at equal lengths"),
        ];
        figure(caption, legend, plots.into_iter().flatten().collect())
    });
    Section::new("segments", "Segments", [histogram, sweep].into_iter().flatten().collect())
}

/// The figures of an arm's finished cells.
fn finished<'a>(page: &Page<'a>, experiment: &str, arm: &str) -> Vec<&'a Figures> {
    let rows = page.results.rows().filter(|(e, a, _)| e.name == experiment && a.name == arm);
    rows.filter_map(|(.., cell)| cell.figures()).collect()
}

pub(super) fn reward_model(page: &Page) -> Option<Section> {
    let experiment = main_experiment(page.analysis)?;
    let own = experiment.arms.iter().filter(|arm| arm.method.reward_model() == arm.method);
    let mut seen: Vec<Vec<(f64, f64, [f64; 2])>> = Vec::new(); // arms may share their reward models
    let plots = own.filter_map(|arm| {
        let bins: Vec<_> = finished(page, &experiment.name, &arm.name)
            .into_iter()
            .filter_map(|figures| Some(&figures.reward.as_ref()?.calibration))
            .collect();
        let most = bins.iter().map(|bins| bins.len()).max()?;
        let points = (0..most).filter_map(|i| {
            let bins = bins.iter().filter(|bins| bins.len() == most).map(|bins| &bins[i]);
            let predicted = Estimate::of(bins.clone().map(|bin| bin.predicted))?;
            let observed = Estimate::of(bins.map(|bin| bin.observed))?;
            let interval = observed.interval.unwrap_or([observed.mean; 2]);
            Some((predicted.mean, observed.mean, interval))
        });
        let points: Vec<_> = points.collect();
        if points.is_empty() || seen.contains(&points) {
            return None;
        }
        seen.push(points.clone());
        let diagonal = vec![(0.5, 0.5), (1.0, 1.0)];
        let plot = Plot {
            y: "Share of pairs that it gets right".into(),
            x: "predicted share, σ of the score gap".into(),
            description: format!("Calibration of the reward model, {}", arm.name),
            x_range: Some([0.5, 1.0]),
            y_holds: vec![0.5, 1.0],
            layers: vec![
                Layer::Line { style: Style::Reference, points: diagonal, marked: false },
                Layer::Line {
                    style: Style::Series(0),
                    points: points.iter().map(|&(x, y, _)| (x, y)).collect(),
                    marked: false,
                },
                Layer::Intervals(Style::Series(0), points),
            ],
            ..Plot::default()
        };
        Drawing::of(Some(&title(arm)), &plot)
    });
    let legend = vec![
        Entry::new(Style::Series(0), "held-out pairs, by how sure the model is"),
        Entry::new(Style::Reference, "perfectly calibrated"),
    ];
    let pairs = experiment.count(Quantity::RewardAccuracy);
    let pairs = pairs.map_or(String::new(), |n| format!(", {n} of each seed,"));
    let calibration = figure(
        format!(
            "Calibration of the reward models: held-out pairs{pairs} in groups of equal size by σ of the gap between their \
         scores. Below the dotted line a model is surer than it ought to be. Means and 95 % intervals over seeds."
        ),
        legend,
        plots.collect(),
    );
    let columns = [
        (Quantity::RewardAccuracy, 3),
        (Quantity::RewardGoldAccuracy, 3),
        (Quantity::SegmentTokens, 2),
        (Quantity::NormalizerMeanR2, 2),
        (Quantity::NormalizerStdR2, 2),
    ];
    let accuracy = arms_only(
        experiment,
        "Reward models on held-out pairs, tokens of their segments there, and how much of the variation over \
         locations the normalizers explain.",
        &columns,
    );
    let blocks = [accuracy, calibration];
    Section::new("reward", "Reward models", blocks.into_iter().flatten().collect())
}

pub(super) fn texts(page: &Page) -> Option<Section> {
    let shaded = page.extras.texts.iter().map(|text| {
        let credits = text.credits.iter().map(|credits| {
            let tokens = text.by_token.tokens.iter().zip(credits).enumerate();
            let pieces = tokens.map(|(i, (token, &credit))| Piece {
                text: token.text.clone(),
                value: Some(credit),
                repeated: is_repeated(text, i),
            });
            ShadedRow::new("true credit", pieces.collect())
        });
        let rows = [
            ShadedRow::new("segment rewards", pieces(text, &text.by_segment)),
            ShadedRow::new("token rewards", pieces(text, &text.by_token)),
        ];
        let title = match text.repeats.len() {
            0 => "A normal response",
            _ => "The same with a repetition",
        };
        Block::Shaded {
            title: title.into(),
            prompt: text.by_segment.prompt.clone(),
            rows: rows.into_iter().chain(credits).collect(),
        }
    });
    let words = text(
        "The same text as two reward models see it: the paper's figure 3. Blue is a normalized reward above 0, orange \
         with a dotted line one below, the stronger the farther from it; the figure below each piece says how far. \
         Shades are relative to the strongest of their row. What is said again is in italics.",
    );
    Section::new("texts", "Rewards in texts", [words].into_iter().chain(shaded).collect())
}

fn is_repeated(text: &ShadedText, token: usize) -> bool {
    text.repeats.iter().any(|range| range.contains(&token))
}

/// A response's segments with their rewards, and the tokens between them.
fn pieces(text: &ShadedText, shown: &SegmentedText) -> Vec<Piece> {
    let joined = |range: Range<usize>| {
        let tokens = shown.tokens.get(range).unwrap_or_default();
        tokens.iter().map(|token| token.text.as_str()).collect::<String>()
    };
    let piece = |range: Range<usize>, value| Piece {
        repeated: is_repeated(text, range.start),
        text: joined(range),
        value,
    };
    let mut pieces = Vec::new();
    let mut next = 0;
    for segment in &shown.segments {
        if next < segment.start {
            pieces.push(piece(next..segment.start, None));
        }
        pieces.push(piece(segment.start..segment.end, segment.normalized.or(segment.reward)));
        next = segment.end;
    }
    if next < shown.tokens.len() {
        pieces.push(piece(next..shown.tokens.len(), None)); // EOS is in no segment
    }
    pieces
}

pub(super) fn ground_truth(page: &Page) -> Option<Section> {
    let experiment = main_experiment(page.analysis)?;
    let boundaries = sweep(page.analysis).and_then(|(_, arms)| {
        let quantities = [Quantity::BoundaryPrecision, Quantity::BoundaryRecall, Quantity::BoundaryF1];
        let plots = over_cutoffs(&arms, "Segment starts against phrase starts", &quantities);
        let legend = quantities.iter().enumerate();
        let legend = legend.map(|(i, q)| Entry::new(Style::Series(i), q.title())).collect();
        figure(
            "What segmentation finds of the true phrases, by cutoff: precision, recall and F1 of segment starts, \
             means and 95 % intervals over seeds. Too low a cutoff cuts within phrases and costs precision; too high a \
             one runs them together and costs recall.",
            legend,
            plots.into_iter().collect(),
        )
    });
    let learned = arms_only(
        experiment,
        "What reward models know of the truth: Spearman's ρ of scores of whole responses with gold reward, and of learned \
         with true rewards by what an action is, where a response has several; boundaries: segment starts against true \
         phrase starts.",
        &[
            (Quantity::SequenceRankCorrelation, 2),
            (Quantity::RankCorrelation, 2),
            (Quantity::ClauseCorrelation, 2),
            (Quantity::TopicCorrelation, 2),
            (Quantity::QualityCorrelation, 2),
            (Quantity::BoundaryPrecision, 2),
            (Quantity::BoundaryRecall, 2),
            (Quantity::BoundaryF1, 2),
        ],
    );
    let advantage = arms_only(
        experiment,
        "Where the advantage lands: the share of Σ |A| on tokens that caused a reward, beside the share of such \
         tokens, and the correlation of a token's advantage with its credit; means over iterations.",
        &[
            (Quantity::CauseAdvantageShare, 3),
            (Quantity::CauseTokenShare, 3),
            (Quantity::CreditCorrelation, 3),
        ],
    );
    let curves = groups(experiment).into_iter().filter_map(|group| {
        let columns = [
            (Column::CauseAdvantageShare, "Share of Σ |A| on causes"),
            (Column::CauseTokenShare, "Share of tokens that are causes"),
            (Column::CreditCorrelation, "Correlation of advantage and credit"),
        ];
        let plots = columns.iter().filter_map(|&(column, y)| group.plot(column, y)).collect();
        let caption = "Credit during training. If |A| did not depend on what a token caused, its share on causes would be the \
             share of tokens that are causes. Lines are means over seeds, bands their 95 % intervals.";
        figure(caption, group.legend(), plots)
    });
    let blocks: Vec<Block> =
        [boundaries, learned, advantage].into_iter().flatten().chain(curves).collect();
    let truth = arms(page.analysis).any(|arm| {
        [Quantity::BoundaryF1, Quantity::RankCorrelation, Quantity::CauseAdvantageShare]
            .iter()
            .any(|&quantity| arm.figure(quantity).is_some())
    });
    truth.then(|| Section::new("truth", "Against the known truth", blocks))?
}
