//! The texts of the paper's figure 3, from a run's reward models.

use std::path::Path;

use segment_rlhf::data::letters::{encode, gold, prompts, split};
use segment_rlhf::report::texts::texts;
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::stage::preferences::Pair;
use segment_rlhf::stage::segmented_text::Token;
use segment_rlhf::stage::{fit_normalizer, preferences, reward, sft};

use crate::support::context;

/// Contexts of one run with reward model and normalizer: of segments, and of tokens.
fn trained(dir: &Path) -> [Context; 2] {
    ["method=segment", "method=token"].map(|method| {
        let context = context(dir, &[method]);
        sft::run(&context).unwrap();
        reward::run(&context).unwrap();
        fit_normalizer::run(&context).unwrap();
        context
    })
}

#[test]
fn a_letter_and_its_repetition_are_shaded_by_segments_and_by_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let [segment, token] = trained(dir.path());
    // The tiny model writes no letters: put one among its responses.
    let prompt = split(prompts()).1[0];
    let [topic, disliked] = [prompt.asked()[0], prompt.disliked()].map(|topic| topic.word());
    let clause = |topic: &str| match topic {
        "food" => "food : cooks serve superb soup .",
        "music" => "music : bands play superb songs .",
        "nature" => "nature : paths cross superb woods .",
        _ => "history : ruins hold superb graves .",
    };
    let filler = "it is what it is .";
    let letter =
        format!("dear {} , {filler} {} {} <eos>", prompt.name(), clause(topic), clause(disliked));
    let chosen = encode(&letter).unwrap();
    let credits = gold(&prompt, &chosen).credits;
    let pair = Pair {
        prompt: prompt.tokens(),
        chosen,
        rejected: vec![1],
        gold: None,
        score_gap: None,
        labels: None,
    };
    let path = segment.dir(Stage::Preferences).join("held_out.jsonl");
    let others = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{others}{}\n", serde_json::to_string(&pair).unwrap())).unwrap();

    let [normal, repeating] = &texts(&segment, &token).unwrap()[..] else { panic!("two texts") };
    let text = |tokens: &[Token]| {
        tokens.iter().map(|token| token.text.trim()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(text(&normal.by_segment.tokens), letter);
    assert_eq!(normal.credits, Some(credits));
    assert!(normal.repeats.is_empty());
    let thrice = letter.replacen(clause(topic), &[clause(topic); 3].join(" "), 1);
    assert_eq!(text(&repeating.by_segment.tokens), thrice);
    assert_eq!(repeating.repeats, [16..22, 23..29]);
    for shaded in [normal, repeating] {
        let tokens = shaded.by_segment.tokens.len();
        assert_eq!(text(&shaded.by_token.tokens), text(&shaded.by_segment.tokens));
        assert_eq!(shaded.by_token.segments.len(), tokens - 1, "each token but <eos>");
        assert!(shaded.by_segment.segments.len() < tokens);
        for seen in [&shaded.by_segment, &shaded.by_token] {
            assert!(seen.sequence_score.is_some());
            assert!(seen.segments.iter().all(|s| s.reward.is_some() && s.normalized.is_some()));
        }
    }
}

#[test]
fn without_a_typical_letter_the_first_response_is_shown_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [segment, token] = trained(dir.path());
    let task =
        segment_rlhf::stage::task::Task::open(&segment, Some(&segment.reference_dir().unwrap()));
    let held_out = preferences::load(&segment, &task.unwrap(), false).unwrap().0.held_out;
    let ids = held_out.get(0).unwrap().chosen;
    let texts = texts(&segment, &token).unwrap();
    assert_eq!(texts.len(), 1);
    let shown: Vec<u32> = texts[0].by_token.tokens.iter().map(|token| token.id).collect();
    assert_eq!(shown, ids);
}
