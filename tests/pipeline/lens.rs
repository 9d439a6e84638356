//! LENS's rewards, against each of them alone.

use segment_rlhf::data::letters::{RESPONSE_LIMIT, prompts, write_letter};
use segment_rlhf::equations::segment_reward::{aggregate, segment_rewards};
use segment_rlhf::equations::segmentation::Rule;
use segment_rlhf::model::generate::{ReadAt, Rows};
use segment_rlhf::rng::stream;
use segment_rlhf::run::Context;
use segment_rlhf::stage::fit_normalizer;
use segment_rlhf::stage::score::Scorer;
use segment_rlhf::stage::task::{Task, letter_truth};
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::rewards::NormalizedRewards;
use segment_rlhf::systems::{Method, Parts, Rewarded, Rewards, Segmenter, TaskParts, Truth};

use crate::support::{context, pipeline};

/// A letter that keeps its form, one without its greeting, and one that is cut off.
fn letters() -> Vec<(Vec<u32>, Vec<u32>)> {
    let prompt = prompts()[20];
    let letter = write_letter(&prompt, &mut stream(0, "lens", 0));
    assert!(letter.len() < RESPONSE_LIMIT);
    let [no_greeting, cut_off] = [letter[3..].to_vec(), letter[..letter.len() - 1].to_vec()];
    [letter, no_greeting, cut_off].map(|response| (prompt.tokens(), response)).into()
}

/// What LENS with these weights of format, sentence and segment gives the letters.
fn rewards(
    context: &Context,
    weights: [f64; 3],
    truth: Option<Truth>,
    rows_at_once: usize,
) -> Vec<f64> {
    let [format, sentence, segment] = weights;
    let changes = format!(
        "[systems.lens]\nformat = {format:?}\nsentence = {sentence:?}\nsegment = {segment:?}"
    );
    let settings = context.settings.with("test", &changes.parse().unwrap()).unwrap();
    let reference_dir = context.reference_dir().unwrap();
    let task = Task::open(context, Some(&reference_dir)).unwrap();
    let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(context, ends, stops, 3).unwrap();
    let normalizer = fit_normalizer::run(context).unwrap().normalizer;
    let system = Method::LENS.build(&Parts {
        method: Method::LENS,
        ppo: &settings.ppo,
        section: settings.systems.section(Method::LENS),
        max_new_tokens: 64,
        judge: &scorer.judge,
        normalizer: &normalizer,
        task: TaskParts { truth, ..TaskParts::of(&task.tokenizer) },
    });
    let system = system.unwrap();
    let letters = letters();
    let rows: Vec<(&[u32], &[u32])> = letters.iter().map(|(p, r)| (&p[..], &r[..])).collect();
    let rows = Rows::new(&rows, rows_at_once);
    let stop = Stop::default();
    let reference = rows.view(&scorer.reference, &stop).unwrap();
    let rewarded = system.rewards.score(&rows, &reference).unwrap();
    let alone =
        NormalizedRewards { judge: &scorer.judge, normalizer: &normalizer, length_neutral: false };
    let alone = alone.score(&rows, &reference).unwrap();
    for (Rewarded { segments, sequence_score, .. }, (alone, (_, response))) in
        rewarded.iter().zip(alone.iter().zip(&letters))
    {
        assert_eq!(segments, &[0..response.len()]);
        assert_eq!(*sequence_score, alone.sequence_score);
    }
    if weights == [0.0, 0.0, 1.0] {
        let alone: Vec<f64> = alone.iter().map(|alone| alone.normalized[0]).collect();
        let own: Vec<f64> = rewarded.iter().map(|own| own.normalized[0]).collect();
        assert_eq!(own, alone, "the segment reward alone is that of segment_as_bandit");
    }
    if weights == [0.0, 1.0, 0.0] {
        let model = scorer.judge.reward_model().unwrap();
        let scores = rows.scalars(&model.model, ReadAt::Token, &stop).unwrap();
        let cut = Segmenter { rule: Rule::Sentence, ..model.reward_segmenter.clone() };
        let views = reference.iter().zip(&letters);
        for ((own, scores), (view, (_, response))) in rewarded.iter().zip(scores).zip(views) {
            let sentences = cut.cut(response, &view.entropies).unwrap();
            assert!(sentences.iter().all(|sentence| ends[response[sentence.end - 1] as usize]));
            let mean = aggregate(&segment_rewards(&scores, &sentences), model.aggregation);
            assert_eq!(own.normalized, normalizer.normalize_all(&[mean]));
        }
    }
    rewarded.into_iter().map(|rewarded| rewarded.normalized[0]).collect()
}

#[test]
fn rewards_of_all_granularities_add_up_by_their_weights_and_one_of_weight_0_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &["method=lens"]);
    let of = |weights| rewards(&context, weights, Some(letter_truth), 3);
    let [format, sentence, segment] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]].map(of);
    assert_eq!(format, [1.0, 0.0, 0.0]);
    assert_ne!(sentence, segment);
    let sum = of([2.0, 0.5, 1.5]);
    for (i, sum) in sum.iter().enumerate() {
        let expected = 2.0 * format[i] + 0.5 * sentence[i] + 1.5 * segment[i];
        assert!((sum - expected).abs() < 1e-12, "{sum} {expected}");
    }
    // Without a truth, what ends keeps its form.
    assert_eq!(rewards(&context, [1.0, 0.0, 0.0], None, 3), [1.0, 1.0, 0.0]);
    assert_eq!(rewards(&context, [1.0; 3], Some(letter_truth), 1), of([1.0; 3]));
}

#[test]
fn weights_of_nothing_and_groups_that_do_not_divide_the_rollouts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), &["method=lens"]);
    let refused = |changes: &str| {
        let changes = format!("[systems.lens]\n{changes}").parse().unwrap();
        context.settings.with("test", &changes).unwrap_err().to_string()
    };
    assert_eq!(
        refused("format = 0.0\nsentence = 0.0\nsegment = 0.0"),
        "test: systems.lens.format = 0, as sentence and segment; expected a weight above 0 of one of the three"
    );
    assert_eq!(
        refused("size = 3"),
        "test: systems.lens.size = 3; expected a divisor of ppo.rollouts = 8"
    );
}
