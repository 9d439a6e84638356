//! Training a reward model of segments from preference pairs (E1 to E4).

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::cut::Cut;
use super::preferences::{self, Pair, is_right};
use super::score::{RewardCard, segmenter};
use super::supervised::{Epochs, NoMore, or_save, train};
use super::task::{HeldOut, Split, Task};
use super::{cutoffs, memory, rates};
use crate::data::diagnostics::{BoundaryCounts, LearnedCredits, rank_correlation};
use crate::data::store::Items;
use crate::equations::bt_loss::{score_regularizer, segment_bt_loss};
use crate::equations::calibration::best_temperature;
use crate::equations::segment_reward::{aggregate, segment_rewards};
use crate::equations::segmentation::Rule;
use crate::model::generate::{ReadAt, Rows, TokenView};
use crate::model::optim::Trainer;
use crate::model::shards::shards;
use crate::model::{CausalLm, ModelConfig, ScalarModel};
use crate::run::alarms::of_accuracy;
use crate::run::fingerprint::{REWARD_CARD, model_fingerprint};
use crate::run::folder::{StageFolder, write_json};
use crate::run::{Context, Error, Stage};
use crate::settings::RewardSettings;
use crate::statistics::mean;
use crate::stop::Stop;
use crate::systems::{Segmented, Segmenter, score_sequences};

/// The result of the stage, on held-out pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Held-out pairs.
    pub pairs: usize,
    /// What was held out: prompts with their pairs, or of a single prompt some of the pairs.
    #[serde(default)]
    pub held_out: HeldOut,
    /// Share of pairs whose chosen response scores higher; ties count half.
    pub accuracy: f64,
    /// As `accuracy`, by the gold reward instead of the label, if it is known, over the pairs that it decides.
    pub gold_accuracy: Option<f64>,
    /// Pairs that the gold reward decides, of which `gold_accuracy` is a share.
    pub gold_pairs: Option<usize>,
    /// Spearman's rank correlation of the sequence score with the gold reward, over responses, where that is
    /// known and the correlation defined.
    pub sequence_rank_correlation: Option<f64>,
    /// As above, of segment rewards with the true credit of their tokens; absent if every response is one
    /// segment, as for the bandit.
    pub rank_correlation: Option<f64>,
    /// The same over [clauses](LearnedCredits::clauses): of the sums of the rewards of the segments that
    /// start in them.
    pub clause_correlation: Option<f64>,
    /// The same over the segments of [topic words](LearnedCredits::topics).
    pub topic_correlation: Option<f64>,
    /// The same over the segments of [quality words](LearnedCredits::qualities).
    pub quality_correlation: Option<f64>,
    /// Share of segment starts that are true phrase starts.
    pub boundary_precision: Option<f64>,
    /// Share of true phrase starts that are segment starts.
    pub boundary_recall: Option<f64>,
    /// F1 of segment starts against true phrase starts.
    pub boundary_f1: Option<f64>,
    /// How often the model is right, by how sure it is; the surest pairs last.
    pub calibration: Vec<Calibration>,
    /// How often the model is right, by the gap between the pair's scores, or gold rewards; the widest last. Of pairs whose gap
    /// is known and not 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_gap: Vec<GapGroup>,
    /// The temperature at which scores of responses spread most evenly over (0, 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Mean segments of a response.
    pub segments: f64,
    /// Mean tokens of a segment.
    pub segment_tokens: f64,
}

/// Held-out pairs that the model is about as sure of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Mean of σ(e_φ difference) for the response that scores higher: the predicted chance that it was chosen.
    pub predicted: f64,
    /// Share of the pairs in which it was chosen; ties count half.
    pub observed: f64,
    /// Pairs.
    pub pairs: usize,
}

/// Held-out pairs with gaps of about the same width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GapGroup {
    /// Their mean gap.
    pub gap: f64,
    /// Share of the pairs whose better response, by the gap, the model scores higher; ties count half.
    pub accuracy: f64,
    /// Pairs.
    pub pairs: usize,
}

/// As equal as can be many pairs in each of up to four groups, by the width of the gap: the gap of each pair, chosen less
/// rejected, and the model's.
fn by_gap(mut gaps: Vec<[f64; 2]>) -> Vec<GapGroup> {
    gaps.retain(|[known, _]| *known != 0.0);
    gaps.sort_by(|a, b| a[0].abs().total_cmp(&b[0].abs()));
    let (pairs, groups) = (gaps.len(), gaps.len().min(4));
    let group = |i: usize| {
        let gaps = &gaps[i * pairs / groups..(i + 1) * pairs / groups];
        GapGroup {
            gap: mean(gaps.iter().map(|[known, _]| known.abs())),
            accuracy: mean(gaps.iter().map(|[known, model]| is_right(model * known.signum()))),
            pairs: gaps.len(),
        }
    };
    (0..groups).map(group).collect()
}

/// As equal as can be many pairs in each of up to ten groups, by how sure the model is of a pair, given the
/// chosen score less the rejected one of each.
fn calibration(mut gaps: Vec<f64>) -> Vec<Calibration> {
    gaps.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let (pairs, groups) = (gaps.len(), gaps.len().min(10));
    let group = |i: usize| {
        let gaps = &gaps[i * pairs / groups..(i + 1) * pairs / groups];
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        Calibration {
            predicted: mean(gaps.iter().map(|gap| sigmoid(gap.abs()))),
            observed: mean(gaps.iter().map(|&gap| is_right(gap))),
            pairs: gaps.len(),
        }
    };
    (0..groups).map(group).collect()
}

/// Pairs whose responses are cut into segments: before training where that takes the reference model's
/// entropies, else whenever a pair is read.
struct Examples<'a> {
    pairs: &'a Items<Pair>,
    segmenter: &'a Segmenter,
    cuts: Option<Arc<Vec<[Cut; 2]>>>,
}

/// A pair with the segments of both responses.
struct Example {
    pair: Pair,
    segments: [Vec<Range<usize>>; 2],
}

/// Cuts the responses of pairs where that takes the reference model's entropies, once: what is done is kept in the
/// stage's folder until its end.
struct Cutter<'a> {
    context: &'a Context,
    reference: &'a Path,
    segmenter: &'a Segmenter,
}

impl<'a> Cutter<'a> {
    /// The examples of `split`, to train on and held out.
    fn split(
        &self,
        split: &'a Split<Items<Pair>>,
        folder: &StageFolder,
    ) -> Result<Split<Examples<'a>>, Error> {
        let Self { segmenter, .. } = *self;
        let examples = |pairs, cuts| Examples { pairs, segmenter, cuts };
        let Split { train, held_out, what } = split;
        let [cut_train, cut_held_out] = match segmenter.rule {
            Rule::Entropy { .. } => {
                let of_train = Arc::new(self.cut(train, folder, "train")?);
                let of_held_out = match train.are(held_out) {
                    true => of_train.clone(),
                    false => Arc::new(self.cut(held_out, folder, "held-out")?),
                };
                [Some(of_train), Some(of_held_out)]
            }
            _ => [None, None],
        };
        let (train, held_out) = (examples(train, cut_train), examples(held_out, cut_held_out));
        Ok(Split { train, held_out, what: *what })
    }

    /// The segments of both responses of each pair.
    fn cut(
        &self,
        pairs: &Items<Pair>,
        folder: &StageFolder,
        name: &str,
    ) -> Result<Vec<[Cut; 2]>, Error> {
        let context = self.context;
        let mut cuts = folder.parts(&format!("segments-{name}"))?;
        let pairs_at_once = context.settings.reward.rows_at_once;
        let batches = pairs.len().div_ceil(pairs_at_once);
        if cuts.left(pairs.len(), pairs_at_once).is_none() {
            return Ok(cuts.into_items());
        }
        let (model, _) = CausalLm::load(self.reference, context.frozen())?;
        let title = context.title(&format!("segments ({name})"));
        let stage = context.progress.stage(title, batches, cuts.batches());
        while let Some(next) = cuts.left(pairs.len(), pairs_at_once) {
            let chunk = pairs.read(next)?;
            let rows: Vec<(&[u32], &[u32])> = chunk.iter().flat_map(Pair::rows).collect();
            let views = Rows::new(&rows, rows.len()).view(&model, &context.stop)?;
            let cut = |row: &(&[u32], &[u32]), view: &TokenView| {
                let segments = self.segmenter.cut(row.1, &view.entropies)?;
                Ok::<_, Error>(Cut::new(&segments, row.1.len()))
            };
            let both = rows.chunks(2).zip(views.chunks(2));
            let both = both
                .map(|(rows, views)| Ok([cut(&rows[0], &views[0])?, cut(&rows[1], &views[1])?]));
            cuts.push(both.collect::<Result<_, Error>>()?)?;
            stage.step("");
        }
        stage.finish(format!("of {} pairs", pairs.len()));
        Ok(cuts.into_items())
    }
}

impl Examples<'_> {
    /// The examples with these numbers.
    fn read(&self, numbers: impl IntoIterator<Item = usize>) -> Result<Vec<Example>, Error> {
        let example = |i| {
            let pair = self.pairs.get(i)?;
            let side = |which: usize| match &self.cuts {
                Some(cuts) => Ok(cuts[i][which].segments()),
                None => {
                    let (_, response) = pair.rows()[which];
                    self.segmenter.cut(response, &vec![0.0; response.len()])
                }
            };
            let segments = [side(0)?, side(1)?];
            Ok(Example { pair, segments })
        };
        numbers.into_iter().map(example).collect()
    }
}

/// Trains the reward model of the run's method, or of the method whose reward model it uses.
pub fn run(context: &Context) -> Result<Summary, Error> {
    context.needs_reward_model(Stage::TrainReward.command())?;
    let context = &context.within(Stage::TrainReward);
    let settings = &context.settings;
    let reward = &settings.reward;
    context.check_ranks(&[
        ("reward.batch", reward.batch),
        ("reward.rows_at_once", reward.rows_at_once),
    ])?;
    let method = settings.method.reward_model();
    let reference_dir = context.reference_dir()?;
    let reference = model_fingerprint(&reference_dir)?;
    let task = Task::open(context, Some(&reference_dir))?;
    let (pairs, fingerprint) = preferences::load(context, &task, false)?;
    check_scores(context, &pairs.train)?;
    let inputs = [("model", reference.clone()), ("pairs", fingerprint)];
    let mut folder = context.open(Stage::TrainReward, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    pairs.what.tell(context);
    let config = ModelConfig::from_dir(&reference_dir)?;
    let longest = pairs.train.longest_parts();
    memory::announce(context, folder.dir(), &config, longest, |e, lengths| {
        e.train_reward(lengths)
    })?;
    rates::tell(context, &config, &["reward.optimizer"]);
    let rule = method.reward_rule(settings.segmentation.entropy_cutoff);
    let tokenizer = &task.tokenizer;
    let segmenter = segmenter(settings, rule, tokenizer.sentence_ends(), tokenizer.stop_tokens());
    let cutter = Cutter { context, reference: &reference_dir, segmenter: &segmenter };
    let examples = cutter.split(&pairs, &folder)?;
    if let (Rule::Entropy { cutoff }, Some(cuts)) = (rule, &examples.train.cuts) {
        let both = || cuts.iter().flatten().map(Cut::segments);
        let segments = both().map(|segments| segments.len()).sum();
        let tokens = both().flatten().map(|segment| segment.len()).sum();
        context.progress.line(&cutoffs::tell(cutoff, 2 * cuts.len(), segments, tokens));
    }

    let model = context.trained_scalar_model(&reference_dir, None, "reward")?;
    let epochs = Epochs { items: pairs.train.len(), epochs: reward.epochs, batch: reward.batch };
    let trainer = Trainer::new("reward", model, &reward.optimizer, epochs.steps());
    let trainer =
        train(context, &mut folder, Stage::TrainReward, &epochs, trainer, |trainer, batch| {
            let batch = examples.train.read(batch.iter().copied())?;
            Ok((accumulate(trainer, &batch, reward, &context.stop)?, NoMore {}))
        })?;
    let summary = evaluate(context, &task, &trainer.model().inference(), &examples.held_out);
    let mut summary = or_save(&folder, &trainer, summary)?;
    if let Some(raised) = of_accuracy(summary.accuracy, summary.pairs, epochs.steps() - 1) {
        context.raise(Stage::TrainReward, &raised);
    }
    summary.held_out = pairs.what;
    let card = RewardCard {
        method,
        rule,
        eos: settings.segmentation.eos,
        aggregation: reward.aggregation,
        reference,
    };
    write_json(&folder.to_write()?.join(REWARD_CARD), &card)?;
    let model = trainer.model().valid();
    context.write_scalar_model(folder.to_write()?, &task, &model, &config, &reference_dir)?;
    folder.finish(&summary)?;
    Ok(summary)
}

/// Rejects `reward.margin_scale` for pairs without scores, and tells how many of a file's have none.
fn check_scores(context: &Context, pairs: &Items<Pair>) -> Result<(), Error> {
    let scale = context.settings.reward.margin_scale;
    let (scored, all) = match pairs {
        Items::Memory(pairs) => {
            (pairs.iter().filter(|pair| pair.gap().is_some()).count(), pairs.len())
        }
        Items::Stored(store, _) => (store.scored(), store.len()),
    };
    if scale == 0.0 || scored == all {
        return Ok(());
    }
    if scored == 0 {
        return Err(Error::Usage(format!(
            "reward.margin_scale is {scale}, but no pair has scores: give --data with chosen_score and \
             rejected_score, score_chosen and score_rejected, or margin; or set reward.margin_scale = 0"
        )));
    }
    let without = all - scored;
    context
        .progress
        .line(&format!("{without} of {all} pairs have no scores: their margin is reward.margin"));
    Ok(())
}

/// m of E4 for each pair; nothing if it is 0 for all.
fn margins(settings: &RewardSettings, examples: &[Example]) -> Option<Vec<f32>> {
    let RewardSettings { margin, margin_scale, .. } = *settings;
    let gap = |example: &Example| example.pair.gap().unwrap_or(0.0);
    let margins = examples.iter().map(|example| (margin + margin_scale * gap(example)) as f32);
    (margin != 0.0 || margin_scale != 0.0).then(|| margins.collect())
}

/// Adds the gradient of the segment Bradley-Terry loss, averaged over the batch's pairs; gives the tokens read.
fn accumulate(
    trainer: &mut Trainer<ScalarModel>,
    batch: &[Example],
    settings: &RewardSettings,
    stop: &Stop,
) -> Result<usize, Error> {
    let mut tokens = 0;
    for chunk in batch.chunks(settings.rows_at_once) {
        stop.check()?;
        let length = |e: &Example| e.pair.rows().iter().map(|(p, r)| p.len() + r.len()).sum();
        let lengths: Vec<usize> = chunk.iter().map(length).collect();
        let device = trainer.model().device();
        trainer.accumulate(shards(&lengths, &device), |model, pairs| {
            let share = pairs.len() as f64 / batch.len() as f64;
            (pair_loss(model, &chunk[pairs], settings).mul_scalar(share), [])
        });
        tokens += lengths.iter().sum::<usize>();
    }
    Ok(tokens)
}

/// The segment Bradley-Terry loss, averaged over pairs.
fn pair_loss(model: &ScalarModel, pairs: &[Example], settings: &RewardSettings) -> Tensor<1> {
    let n = pairs.len();
    let side =
        |which: usize| pairs.iter().map(move |e| (e.pair.rows()[which], &e.segments[which][..]));
    let rows: Vec<Segmented<'_>> = side(0).chain(side(1)).collect();
    let scores = score_sequences(model, &rows, settings.aggregation); // [2n]
    let (chosen, rejected) = (scores.clone().narrow(0, 0, n), scores.narrow(0, n, n));
    let margin = margins(settings, pairs)
        .map(|margins| Tensor::<1>::from_data(TensorData::new(margins, [n]), &chosen.device()));
    let loss = segment_bt_loss(chosen.clone(), rejected.clone(), margin);
    match settings.regularizer {
        Some(weight) => loss + score_regularizer(chosen, rejected) * weight,
        None => loss,
    }
}

fn evaluate(
    context: &Context,
    task: &Task,
    model: &ScalarModel,
    examples: &Examples,
) -> Result<Summary, Error> {
    let settings = &context.settings.reward;
    let count = examples.pairs.len();
    let mut learned = LearnedCredits::default();
    let mut boundaries = BoundaryCounts::default();
    let (mut segments, mut segment_tokens) = (0, 0);
    let mut sequences = Vec::new();
    let (mut known_gaps, mut all_scores) = (Vec::new(), Vec::new());
    let (mut gaps, mut gold_right, mut gold_decided, mut gold_known) = (Vec::new(), 0.0, 0, 0);
    for start in (0..count).step_by(settings.rows_at_once) {
        let chunk = examples.read(start..count.min(start + settings.rows_at_once))?;
        let rows: Vec<(&[u32], &[u32])> = chunk.iter().flat_map(|e| e.pair.rows()).collect();
        let scores = Rows::new(&rows, rows.len()).scalars(model, ReadAt::Token, &context.stop)?;
        let mut sequence = Vec::with_capacity(rows.len());
        let cut = chunk.iter().flat_map(|example| &example.segments);
        for ((row, cut), scores) in rows.iter().zip(cut).zip(&scores) {
            let rewards = segment_rewards(scores, cut);
            sequence.push(aggregate(&rewards, settings.aggregation));
            segments += cut.len();
            segment_tokens += cut.last().map_or(0, |last| last.end);
            if let Some(gold) = task.gold(row.0, row.1) {
                learned.add(cut, &rewards, &gold);
                sequences.extend(sequence.last().map(|&score| (score, gold.reward())));
                boundaries.add(cut, &gold.phrase_starts);
            }
        }
        all_scores.extend_from_slice(&sequence);
        for (example, scores) in chunk.iter().zip(sequence.chunks(2)) {
            let gap = scores[0] - scores[1];
            gaps.push(gap);
            known_gaps.extend(example.pair.gap().map(|known| [known, gap]));
            if let Some([chosen, rejected]) = example.pair.gold {
                gold_known += 1;
                if chosen != rejected {
                    gold_decided += 1;
                    gold_right += is_right(gap * (chosen - rejected).signum());
                }
            }
        }
    }
    let share = |right: f64, of: usize| right / of.max(1) as f64;
    let dense = segments > 2 * count;
    let known = (!learned.segments.is_empty()).then(|| boundaries.score());
    Ok(Summary {
        pairs: count,
        held_out: HeldOut::default(),
        accuracy: share(gaps.iter().map(|&gap| is_right(gap)).sum(), count),
        gold_accuracy: (gold_known == count).then(|| share(gold_right, gold_decided)),
        gold_pairs: (gold_known == count).then_some(gold_decided),
        sequence_rank_correlation: rank_correlation(&sequences),
        rank_correlation: rank_correlation(&learned.segments).filter(|_| dense),
        clause_correlation: rank_correlation(&learned.clauses),
        topic_correlation: rank_correlation(&learned.topics),
        quality_correlation: rank_correlation(&learned.qualities),
        boundary_precision: known.map(|score| score.precision),
        boundary_recall: known.map(|score| score.recall),
        boundary_f1: known.map(|score| score.f1),
        calibration: calibration(gaps),
        by_gap: by_gap(known_gaps),
        temperature: best_temperature(&all_scores),
        segments: segments as f64 / (2 * count) as f64,
        segment_tokens: segment_tokens as f64 / segments.max(1) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use burn::tensor::Device;

    fn example(score_gap: Option<f32>) -> Example {
        let pair = Pair {
            prompt: vec![5],
            chosen: vec![6, 1],
            rejected: vec![7, 1],
            gold: None,
            score_gap,
            labels: None,
        };
        Example { pair, segments: [vec![0..1, 1..2], vec![0..1, 1..2]] }
    }

    #[test]
    fn accuracy_by_gap_is_that_of_quarters_from_narrow_to_wide_and_a_tie_is_left_out() {
        // Known gap, the model's: right on wide gaps, wrong on the narrowest, which is negative.
        let gaps = vec![[4.0, 1.0], [0.0, 9.0], [-0.5, 0.25], [3.0, 0.5], [1.0, 0.0]];
        let groups = by_gap(gaps);
        let group = |gap, accuracy| GapGroup { gap, accuracy, pairs: 1 };
        assert_eq!(groups, [group(0.5, 0.0), group(1.0, 0.5), group(3.0, 1.0), group(4.0, 1.0)]);
        assert!(by_gap(vec![[0.0, 1.0]]).is_empty());
    }

    #[test]
    fn the_regularizer_is_added_to_the_loss_times_its_weight() {
        let config = Settings::defaults().model.config(11, 16);
        let device = Device::flex();
        let head = crate::model::FreshHead { purpose: "reward", seed: 0, std: Some(1.0) };
        let model = ScalarModel::over(&crate::model::CausalLm::fresh(&config, 0, &device), head);
        let loss = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
            let settings = Settings::resolve(&[], &sets).unwrap().reward;
            f64::from(pair_loss(&model, &[example(None)], &settings).into_scalar::<f32>())
        };
        let (none, one, two) =
            (loss(&[]), loss(&["reward.regularizer=1.0"]), loss(&["reward.regularizer=2.0"]));
        assert!(one > none + 1e-4 && ((two - none) - 2.0 * (one - none)).abs() < 1e-5);
    }

    /// The loss of these pairs if the model scores every response the same.
    fn loss(sets: &[&str], gaps: &[Option<f32>]) -> f64 {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let settings = Settings::resolve(&[], &sets).unwrap();
        let examples: Vec<Example> = gaps.iter().copied().map(example).collect();
        let device = Device::flex();
        let scores = Tensor::<1>::zeros([gaps.len()], &device);
        let margin = margins(&settings.reward, &examples)
            .map(|margins| Tensor::from_data(TensorData::new(margins, [gaps.len()]), &device));
        f64::from(segment_bt_loss(scores.clone(), scores, margin).into_scalar::<f32>())
    }

    #[test]
    fn the_margin_of_a_pair_grows_with_the_gap_of_its_scores() {
        // Equal scores: -ln σ(-m) = ln(1 + e^m).
        let expected = |margins: &[f64]| {
            margins.iter().map(|m| m.exp().ln_1p()).sum::<f64>() / margins.len() as f64
        };
        let close = |loss: f64, margins: &[f64]| {
            assert!((loss - expected(margins)).abs() < 1e-6, "{loss}, not {}", expected(margins));
        };
        // Scores of 9.5 and 2, of 4 and 4.5, and none.
        let gaps = [Some(7.5), Some(-0.5), None];
        close(loss(&[], &gaps), &[0.0, 0.0, 0.0]);
        close(loss(&["reward.margin=0.5"], &gaps), &[0.5, 0.5, 0.5]);
        close(loss(&["reward.margin_scale=1"], &gaps), &[7.5, -0.5, 0.0]);
        let both = ["reward.margin=0.5", "reward.margin_scale=0.2"];
        close(loss(&both, &gaps), &[2.0, 0.4, 0.5]);
        close(loss(&both, &gaps[..1]), &[2.0]);
    }

    #[test]
    fn calibration_compares_how_sure_the_model_is_with_how_often_it_is_right() {
        // Predicted .9 and right nine times of ten; predicted .5, which is no opinion; the surest come last.
        let sure = 9f64.ln(); // σ(ln 9) = .9
        let gaps = [vec![sure; 9], vec![-sure], vec![0.0; 10]].concat();
        let groups = calibration(gaps);
        assert_eq!(groups.len(), 10);
        assert!(groups.iter().all(|group| group.pairs == 2));
        assert!(groups[..5].iter().all(|group| (group.predicted, group.observed) == (0.5, 0.5)));
        assert!(groups[5..].iter().all(|group| (group.predicted - 0.9).abs() < 1e-12));
        assert!((mean(groups[5..].iter().map(|group| group.observed)) - 0.9).abs() < 1e-12);
    }

    #[test]
    fn groups_of_a_calibration_differ_by_one_pair_at_most() {
        let sizes = |pairs: usize| -> Vec<usize> {
            let gaps = (0..pairs).map(|i| i as f64 - 3.0).collect();
            calibration(gaps).iter().map(|group| group.pairs).collect()
        };
        assert_eq!(sizes(23), [2, 2, 2, 3, 2, 2, 3, 2, 2, 3]);
        assert_eq!(sizes(3), [1, 1, 1]);
        assert!(sizes(0).is_empty());
        // -3 and 3 are equally sure: one of them is right.
        let groups = calibration(vec![3.0, 1.0, -3.0, 0.0]);
        let observed: Vec<f64> = groups.iter().map(|group| group.observed).collect();
        assert_eq!(observed[..2], [0.5, 1.0]);
        assert_eq!(observed[2] + observed[3], 1.0);
    }
}
