//! Policies during training: learning curves, and reward against KL.

use std::collections::BTreeSet;

use super::{Shown, arms_only, figure, heading, main_experiment, text, title};
use crate::grid::analysis::{Arm, BandPoint, Column, Experiment, ONE_BETA, PathPoint, Quantity};
use crate::report::page::Page;
use crate::report::page::plots::{Layer, Plot, SERIES, Style};
use crate::report::page::view::{Block, Drawing, Entry, Section};
use crate::systems::Method;

/// Arms that are drawn together: all of an experiment or, if they are too many for one plot, those with the same
/// value on an axis.
pub(super) struct Group<'a> {
    name: Option<&'a str>,
    /// Each with its name in the group.
    arms: Vec<(String, &'a Arm)>,
}

pub(super) fn groups(experiment: &Experiment) -> Vec<Group<'_>> {
    let one = || {
        let arms = experiment.arms.iter().map(|arm| (title(arm), arm)).collect();
        vec![Group { name: None, arms }]
    };
    if experiment.arms.len() <= 4 {
        return one();
    }
    let mut groups: Vec<Group> = Vec::new();
    for arm in &experiment.arms {
        let Some((base, place)) = arm.name.rsplit_once(", ") else { return one() };
        let base = if arm.ours { format!("{base} (ours)") } else { base.to_owned() };
        match groups.iter_mut().find(|group| group.name == Some(place)) {
            Some(group) => group.arms.push((base, arm)),
            None => groups.push(Group { name: Some(place), arms: vec![(base, arm)] }),
        }
    }
    groups
}

/// The series of each arm: by its method if that tells the arms apart, so that a method looks the same in every
/// figure.
pub(super) fn series(arms: &[&Arm]) -> Vec<Style> {
    let by_method: Vec<usize> = (arms.iter())
        .filter_map(|arm| Method::all().iter().position(|method| *method == arm.method))
        .collect();
    // There are more methods than looks.
    let looks: BTreeSet<usize> = by_method.iter().map(|number| number % SERIES).collect();
    let distinct = looks.len() == arms.len();
    let number = |i: usize| if distinct { by_method[i] } else { i };
    (0..arms.len()).map(|i| Style::Series(number(i))).collect()
}

impl Group<'_> {
    /// Its arms with their names and styles.
    fn styled(&self) -> Vec<(Style, &str, &Arm)> {
        let arms: Vec<&Arm> = self.arms.iter().map(|(_, arm)| *arm).collect();
        let named = self.arms.iter().map(|(name, arm)| (name.as_str(), *arm));
        series(&arms)
            .into_iter()
            .zip(named)
            .map(|(style, (name, arm))| (style, name, arm))
            .collect()
    }

    pub(super) fn legend(&self) -> Vec<Entry> {
        self.styled().into_iter().map(|(style, name, _)| Entry::new(style, name)).collect()
    }

    /// A curve for each arm over updates of the policy, with a band if there are several seeds.
    pub(super) fn plot(&self, column: Column, y: &str) -> Option<Drawing> {
        self.plot_over("updates of the policy", column, y, |_, point| Some(point.iteration as f64))
    }

    /// The pass rate over the tokens that were sampled, if there is a verdict.
    fn pass_rate(&self) -> Option<Drawing> {
        let tokens = |arm: &Arm, point: &BandPoint| {
            let drawn = arm.band(Column::SampledTokens).iter();
            let at = drawn.into_iter().find(|drawn| drawn.iteration == point.iteration)?;
            Some(at.estimate.mean)
        };
        self.plot_over("sampled tokens, thousands", Column::PassRate, "Pass rate, held out", tokens)
    }

    /// A curve for each arm, its points at the place that `x` gives them.
    fn plot_over(
        &self,
        axis: &str,
        column: Column,
        y: &str,
        x: impl Fn(&Arm, &BandPoint) -> Option<f64>,
    ) -> Option<Drawing> {
        let arms = self.styled().into_iter();
        let bands = arms.clone().map(|(style, _, arm)| {
            let interval = |p: &BandPoint| {
                let [low, high] = p.estimate.interval?;
                Some((x(arm, p)?, low, high))
            };
            Layer::Band(style, arm.band(column).iter().filter_map(interval).collect())
        });
        let lines = arms.map(|(style, _, arm)| {
            let points = arm.band(column).iter();
            let points = points.filter_map(|p| Some((x(arm, p)?, p.estimate.mean))).collect();
            Layer::Line { style, points, marked: true }
        });
        let plot = Plot {
            y: y.to_owned(),
            x: axis.to_owned(),
            description: format!("{y} over {axis}, one curve an arm"),
            layers: bands.chain(lines).collect(),
            ..Plot::default()
        };
        Drawing::of(None, &plot)
    }
}

pub(super) fn curves(page: &Page, truth: bool) -> Option<Section> {
    let score = match truth {
        true => (Column::Gold, "Gold reward of a rollout"),
        false => (Column::SequenceScore, "e_φ of a rollout"),
    };
    let columns = [
        score,
        (Column::WinRate, "Win rate over the SFT model, held out"),
        (Column::Kl, "KL from the SFT model, nats a rollout"),
        (Column::Tokens, "Tokens of a rollout"),
        (Column::Entropy, "Entropy of the policy, nats a token"),
    ];
    let mut blocks = vec![text(
        "Lines are means over seeds, bands their 95 % intervals, cut where they leave the plot; of a single seed there \
         is no band. Pass rates and win rates are of held-out prompts, the rest of rollouts to training prompts, which the policy draws \
         before its update: what is at 0 is the SFT model.",
    )];
    for experiment in &page.analysis.experiments {
        let mut figures = Vec::new();
        for group in groups(experiment) {
            let curves = columns.iter().filter_map(|&(column, y)| group.plot(column, y));
            let plots = group.pass_rate().into_iter().chain(curves).collect();
            let name = group.name.map_or(String::new(), |name| format!(", {name}"));
            let win_rate = experiment.count(Quantity::WinRate);
            let count = win_rate.map_or(String::new(), |n| {
                format!(" A win rate is a share of {n} responses of each seed.")
            });
            let title = experiment.title.trim_end_matches('.');
            let caption = format!("{title}{name}: training over updates of the policy.{count}");
            figures.extend(figure(caption, group.legend(), plots));
        }
        if !figures.is_empty() {
            blocks.push(heading(&experiment.title));
            blocks.append(&mut figures);
        }
    }
    Section::new("curves", "Learning curves", blocks)
}

/// Where a KL lies on the frontier's axis: its estimate may be a little below 0.
fn root(kl: f64) -> f64 {
    kl.max(0.0).sqrt()
}

pub(super) fn frontier(page: &Page, truth: bool) -> Option<Section> {
    let (column, score) = match truth {
        true => (Column::HeldOutGold, "Gold reward on held-out prompts"),
        false => (Column::HeldOutSequenceScore, "e_φ on held-out prompts"),
    };
    let mut blocks = vec![text(
        "A policy pays for reward in KL from the SFT model. At the same KL, the higher curve is the better method; a \
         curve that bends down has begun to exploit its reward model. Every point is an evaluation on held-out prompts, \
         and the first is the SFT model's. The KL's axis is that of its root, by which reward tends to grow evenly.",
    )];
    for experiment in &page.analysis.experiments {
        for group in groups(experiment) {
            let styled = group.styled();
            let arms = || styled.iter().map(|&(style, _, arm)| (style, arm));
            let faint = arms().flat_map(|(style, arm)| {
                let path = |points: &[PathPoint]| {
                    Layer::Faint(style, points.iter().map(|p| (root(p.kl), p.gold)).collect())
                };
                arm.paths.iter().map(move |seed| path(&seed.points)).collect::<Vec<_>>()
            });
            let mean = arms().map(|(style, arm)| {
                let points = arm.band(Column::HeldOutKl).iter().zip(arm.band(column));
                let points =
                    points.map(|(kl, score)| (root(kl.estimate.mean), score.estimate.mean));
                Layer::Line { style, points: points.collect(), marked: true }
            });
            let path = Plot {
                y: score.into(),
                x: "held-out KL, nats a response, by its root".into(),
                x_squares: true,
                description: format!("{score} against KL, one curve an arm"),
                layers: faint.chain(mean).collect(),
                ..Plot::default()
            };
            let count = group.arms.len() as f64;
            let matched = arms().enumerate().map(|(i, (style, arm))| {
                let levels =
                    Quantity::AT_KL.iter().enumerate().filter_map(|(level, (_, quantity))| {
                        let of = arm.figure(*quantity)?;
                        let x = level as f64 + 1.0 + 0.7 * ((i as f64 + 0.5) / count - 0.5);
                        Some((x, of.mean, of.interval.unwrap_or([of.mean; 2])))
                    });
                Layer::Intervals(style, levels.collect())
            });
            let matched = Plot {
                y: "Held-out gold reward at the KL".into(),
                x: "held-out KL, nats a response".into(),
                description: "Gold reward at matched KL, one marker an arm".into(),
                x_range: Some([0.5, 5.5]),
                x_names: &["¼", "½", "1", "2", "4"],
                layers: matched.collect(),
                ..Plot::default()
            };
            let plots = [Drawing::of(None, &path), Drawing::of(None, &matched)];
            let name = group.name.map_or(String::new(), |name| format!(", {name}"));
            let title = experiment.title.trim_end_matches('.');
            let caption = match truth {
                true => format!(
                    "{title}{name}. First, one faint line a seed, and the mean over seeds of each evaluation; second, \
                     where training first reaches a KL of ¼, ½, 1, 2 and 4 nats, by linear interpolation between \
                     evaluations, with 95 % intervals: only where every seed gets there."
                ),
                false => format!(
                    "{title}{name}. e_φ against KL, means over seeds of each evaluation. Every reward model has its \
                     own scale: compare only arms that share theirs."
                ),
            };
            if path.is_empty() {
                continue;
            }
            blocks.extend(figure(caption, group.legend(), plots.into_iter().flatten().collect()));
        }
    }
    let matched = Quantity::AT_KL.iter().map(|(_, quantity)| *quantity);
    let columns = matched.chain([Quantity::Area, Quantity::BestGold, Quantity::BestIteration]);
    let columns: Vec<Shown> = columns.map(|quantity| (quantity, 2)).collect();
    let caption = "On held-out prompts: gold reward at matched KL, or how many seeds reach that KL; the mean during \
                   training; and the best evaluation, with the update after which it was.";
    let table = main_experiment(page.analysis).and_then(|e| arms_only(e, caption, &columns));
    blocks.extend(table.filter(|_| truth));
    blocks.extend(main_experiment(page.analysis).into_iter().flat_map(strength));
    Section::new("frontier", "Reward against KL", blocks)
}

/// The strength of the KL term of each arm.
fn strength(experiment: &Experiment) -> Vec<Block> {
    let columns = [
        (Quantity::AdvantageSpreadAtFirst, 2),
        (Quantity::AdvantageSpread, 2),
        (Quantity::EffectiveKlCoefficient, 3),
    ];
    let caption = "The spread of advantages (A) before whitening, in the first iteration and as the mean over \
                   iterations, and the mean of β over it.";
    let Some(table) = arms_only(experiment, caption, &columns) else { return Vec::new() };
    let figures = groups(experiment).into_iter().filter_map(|group| {
        let columns = [
            (Column::AdvantageSpread, "Spread of advantages before whitening"),
            (Column::EffectiveKlCoefficient, "β over the spread of advantages"),
        ];
        let plots = columns.iter().filter_map(|&(column, y)| group.plot(column, y)).collect();
        let caption =
            "The same during training. Lines are means over seeds, bands their 95 % intervals.";
        figure(caption, group.legend(), plots)
    });
    [heading("How strong the KL term is"), text(ONE_BETA), table]
        .into_iter()
        .chain(figures)
        .collect()
}
