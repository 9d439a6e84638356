//! Decoders on a tiny model with a tiny reward model.

use segment_rlhf::device::DeviceName;
use segment_rlhf::equations::segment_reward::{Aggregation, aggregate};
use segment_rlhf::equations::segmentation::{EosPolicy, Rule};
use segment_rlhf::model::generate::{Generation, ReadAt, Rows};
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{CausalLm, FreshHead, ModelConfig, ScalarModel};
use segment_rlhf::rng::streams;
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::{evaluate, preferences, reward, sft};
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::decode::{Decoded, Decoder};
use segment_rlhf::systems::{RewardModel, Segmenter};

use crate::support::context;

const LONGEST: usize = 14;
const END: u32 = 1;
const PROMPTS: [&[u32]; 4] = [&[2, 3], &[4], &[5, 6, 7], &[8, 9, 10, 2, 3, 4, 5, 6, 7, 8]];

/// A language model of 11 tokens, and a reward model that cuts by `rule`.
struct Tiny {
    config: ModelConfig,
    model: CausalLm,
    reward_model: RewardModel,
}

impl Tiny {
    fn new(rule: Rule) -> Self {
        let model = Settings::defaults().model;
        let config = ModelConfig { hidden_size: 16, layers: 1, ..model.config(11, 22) };
        let device = DeviceName::Flex.open().unwrap();
        let model = CausalLm::fresh(&config, 0, &device);
        let head = FreshHead { purpose: "test", seed: 0, std: Some(0.5) };
        let segmenter = Segmenter {
            rule,
            eos_policy: EosPolicy::AsPublished,
            stops: vec![END],
            sentence_ends: vec![],
        };
        let reward_model = RewardModel {
            model: ScalarModel::over(&CausalLm::fresh(&config, 1, &device), head),
            reward_segmenter: segmenter.clone(),
            policy_segmenter: segmenter,
            aggregation: Aggregation::Average,
            stop: Stop::default(),
        };
        Self { config, model, reward_model }
    }

    /// The responses to `prompts`, the first of which has the number `first`, under the settings `sets` of `[decode]`.
    fn decode(&self, sets: &[&str], prompts: &[&[u32]], first: usize) -> Vec<Decoded> {
        let sets: Vec<String> = sets.iter().map(|set| format!("decode.{set}")).collect();
        let settings = Settings::resolve(&[], &sets).unwrap().decode;
        let (sampling, rows_at_once) = (Sampling::PLAIN, prompts.len());
        let stops = &[END];
        let decoder = Decoder {
            settings: &settings,
            generation: Generation { sampling, max_new_tokens: LONGEST, rows_at_once, stops },
            reward_model: Some(&self.reward_model),
            reference: &self.model,
            stop: &Stop::default(),
        };
        let streams = streams(0, "decode", first..first + prompts.len());
        decoder.decode(&self.model, &self.config, prompts, streams).unwrap()
    }

    fn score(&self, prompt: &[u32], response: &[u32]) -> f64 {
        let rows = [(prompt, response)];
        self.reward_model.sequence_scores(&Rows::new(&rows, 1), &self.model).unwrap()[0]
    }
}

/// The kinds with a reward model, each with rejections or several candidates.
const KINDS: [&[&str]; 4] = [
    &["kind=cards", "target=0.5", "entropy_threshold=2.1", "least_tokens=2", "rejects=4"],
    &["kind=items", "target=1.0", "rejects=4"],
    &["kind=best_of_n", "best_of=4"],
    &["kind=args", "args_candidates=3"],
];
const RULES: [Rule; 2] = [Rule::Whole, Rule::Entropy { cutoff: 2.1 }];

#[test]
fn a_response_ends_with_eos_or_at_the_limit_of_settings_or_model() {
    for rule in RULES {
        let tiny = Tiny::new(rule);
        for sets in KINDS.into_iter().chain([&["kind=sample"][..]]) {
            let decoded = tiny.decode(sets, &PROMPTS, 0);
            for (prompt, Decoded { response, calls }) in PROMPTS.iter().zip(&decoded) {
                let limit = LONGEST.min(22 - prompt.len());
                let end = response.iter().position(|&token| token == END);
                let expected = end.map_or(limit, |end| end + 1);
                assert_eq!(response.len(), expected, "{sets:?}: {response:?}");
                assert!(calls.sampled_tokens >= response.len(), "{sets:?}: {calls:?}");
                assert!(calls.model_calls >= calls.sampled_tokens, "{sets:?}: {calls:?}");
            }
        }
    }
}

#[test]
fn a_response_depends_on_its_own_prompt_and_stream_alone() {
    for rule in RULES {
        let tiny = Tiny::new(rule);
        for sets in KINDS {
            let together = tiny.decode(sets, &PROMPTS, 0);
            let mut reached = 0;
            for (i, prompt) in PROMPTS.iter().enumerate() {
                assert_eq!(tiny.decode(sets, &[prompt], i), together[i..=i], "{sets:?}");
                reached += together[i].calls.reward_calls;
            }
            assert!(reached > PROMPTS.len(), "{sets:?}: more than one candidate each");
        }
    }
}

#[test]
fn cards_with_the_longest_segments_and_alpha_one_is_rejection_sampling_of_whole_responses() {
    let whole = ["entropy_threshold=inf", "most_tokens=14", "alpha=1.0"];
    for rule in RULES {
        let tiny = Tiny::new(rule);
        for more in [["target=0.5", "rejects=20"], ["target=9.0", "rejects=3"]] {
            let cards = tiny.decode(&[&["kind=cards"], &whole[..], &more].concat(), &PROMPTS, 0);
            let items = tiny.decode(&[&["kind=items"], &more[..]].concat(), &PROMPTS, 0);
            assert_eq!(cards, items);
        }
    }
}

#[test]
fn one_candidate_is_a_sample() {
    let tiny = Tiny::new(Rule::Whole);
    let responses = |sets: &[&str]| -> Vec<Vec<u32>> {
        tiny.decode(sets, &PROMPTS, 0).into_iter().map(|decoded| decoded.response).collect()
    };
    let samples = responses(&["kind=sample"]);
    assert_eq!(responses(&["kind=best_of_n", "best_of=1"]), samples);
    assert_eq!(responses(&["kind=items", "rejects=0"]), samples);
    // Segments too are drawn from the same distribution, whatever their ends, where each is taken at once; but the
    // decisions take draws in between.
    let cards = tiny.decode(&["kind=cards", "rejects=0", "alpha=1.0"], &PROMPTS, 0);
    assert!(cards.iter().all(|decoded| decoded.calls.sampled_tokens == decoded.response.len()));
}

#[test]
fn the_best_of_n_scores_as_high_as_the_best_of_fewer_and_rejection_takes_the_best_at_last() {
    let tiny = Tiny::new(RULES[1]);
    let scores = |sets: &[&str]| -> Vec<f64> {
        let decoded = tiny.decode(sets, &PROMPTS, 0);
        PROMPTS.iter().zip(decoded).map(|(prompt, d)| tiny.score(prompt, &d.response)).collect()
    };
    let mut rose = 0;
    let mut before = vec![f64::NEG_INFINITY; PROMPTS.len()];
    for n in 1..=6 {
        let best_of = format!("best_of={n}");
        let now = scores(&["kind=best_of_n", &best_of]);
        assert!(before.iter().zip(&now).all(|(before, now)| before <= now));
        rose += before.iter().zip(&now).filter(|(before, now)| before < now).count();
        before = now;
    }
    assert!(rose > PROMPTS.len());
    // None is accepted, and the best is seldom the last: it is read again behind the prompt.
    let items = tiny.decode(&["kind=items", "target=1e6", "rejects=7"], &PROMPTS, 0);
    let sampled = scores(&["kind=sample"]);
    for (i, decoded) in items.iter().enumerate() {
        assert_eq!(decoded.calls.reward_calls, 8);
        assert!(tiny.score(PROMPTS[i], &decoded.response) >= sampled[i]);
    }
}

#[test]
fn calls_count_candidates_that_an_unsure_token_ends_and_the_prompt_s_score() {
    let tiny = Tiny::new(Rule::Whole);
    let cards = |more: &[&str]| {
        let sets = [&["kind=cards", "rejects=0", "least_tokens=2", "target=0.0"][..], more];
        tiny.decode(&sets.concat(), &PROMPTS, 0)
    };
    // Every token is unsure: segments of two, the last one shorter where the response ends.
    for Decoded { response, calls } in cards(&["entropy_threshold=0.0", "alpha=1.0"]) {
        let segments = response.len().div_ceil(2);
        assert_eq!(calls.reward_calls, segments);
        // The last ends with EOS or at a limit, and no call is needed to find that.
        assert_eq!(calls.model_calls, response.len() + segments - 1);
    }
    for Decoded { response, calls } in cards(&["entropy_threshold=inf", "most_tokens=3"]) {
        assert_eq!(calls.reward_calls, 1 + response.len().div_ceil(3));
        assert_eq!(calls.model_calls, response.len());
    }
}

#[test]
fn guidance_of_no_weight_takes_the_most_likely_tokens() {
    let tiny = Tiny::new(Rule::Whole);
    let [free, guided] = ["args_weight=0.0", "args_weight=50.0"].map(|weight| {
        let sets = ["kind=args", weight, "args_candidates=11"];
        tiny.decode(&sets, &PROMPTS, 0)
    });
    // A draw among one token.
    let greedy = tiny.decode(&["kind=best_of_n", "best_of=1", "top_k=1"], &PROMPTS, 0);
    for ((free, greedy), guided) in free.iter().zip(&greedy).zip(&guided) {
        assert_eq!(free.response, greedy.response);
        assert_ne!(free.response, guided.response);
        assert_eq!(free.calls.reward_calls, 11 * free.response.len());
    }
}

#[test]
fn a_response_under_way_is_worth_what_its_segments_so_far_are() {
    let (prompt, response) = ([2, 3, 4], [5, 6, 7, 8, 9]);
    let rows: [(&[u32], &[u32]); 1] = [(&prompt, &response)];
    let rows = Rows::new(&rows, 1);
    for rule in RULES {
        let tiny = Tiny::new(rule);
        let rm = &tiny.reward_model;
        let scores = rows.scalars(&rm.model, ReadAt::Token, &rm.stop).unwrap().remove(0);
        let view = rows.view(&tiny.model, &rm.stop).unwrap().remove(0);
        for end in 1..=response.len() {
            let cut = rm.reward_segmenter.cut(&response[..end], &view.entropies[..end]).unwrap();
            assert_eq!(cut.last().unwrap().end, end, "what is under way is the last segment");
            let ends: Vec<f64> = cut.iter().map(|s| f64::from(scores[s.end - 1])).collect();
            let found = tiny.score(&prompt, &response[..end]);
            assert!((found - aggregate(&ends, Aggregation::Average)).abs() < 1e-5);
        }
        let whole = rm.score(&rows, &[view]).unwrap().remove(0).sequence_score;
        assert_eq!(tiny.score(&prompt, &response), whole);
        // A prompt is worth what is read at its last token.
        let state = rows.scalars(&rm.model, ReadAt::State, &rm.stop).unwrap()[0][0];
        assert!((rm.prompt_score(&prompt).unwrap() - f64::from(state)).abs() < 1e-5);
    }
}

/// A run with a reward model and no policy.
fn without_policy(dir: &std::path::Path, more: &[&str]) -> Context {
    let own = ["method=segment", "decode.model=reference", "decode.target=0.0"];
    let context = context(dir, &[&own[..], more].concat());
    sft::run(&context).unwrap();
    preferences::run(&context).unwrap();
    reward::run(&context).unwrap();
    context
}

#[test]
fn where_the_reference_writes_no_policy_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    let context = without_policy(dir.path(), &["decode.kind=cards"]);
    let stages: Vec<Stage> = context.stages().collect();
    let expected = [Stage::Sft, Stage::Preferences, Stage::TrainReward, Stage::Evaluate];
    assert_eq!(stages, expected);
    let summary = evaluate::run(&context).unwrap();
    let after = &summary.after;
    assert_eq!((summary.before.model_calls, after.kl), (None, 0.0));
    assert!(after.sampled_tokens.unwrap() >= after.tokens);
    assert!(after.model_calls.unwrap() >= after.sampled_tokens.unwrap());
    assert!(after.reward_calls.unwrap() >= 2.0); // the prompt and a candidate
    let folder = dir.path().join("segment/evaluation-cards");
    assert!(evaluate::Timing::a_response(&folder).unwrap() > 0.0);
}

#[test]
fn a_decoder_s_evaluation_does_not_depend_on_the_rows_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let figures = |kind: &str, rows: &str| {
        let kind = format!("decode.kind={kind}");
        let context = without_policy(dir.path(), &[&kind]);
        let mut other = context.clone();
        other.run = tempfile::tempdir().unwrap().keep();
        let run = context.run.clone();
        other.model = Some(run.join("sft/model"));
        other.reward_model = Some(run.join("segment/reward"));
        let rows_at_once = rows.parse().unwrap();
        other.settings.sampling.rows_at_once = rows_at_once;
        let summary = evaluate::run(&other).unwrap();
        std::fs::remove_dir_all(&other.run).unwrap();
        summary
    };
    for kind in ["cards", "items", "best_of_n", "args", "sample"] {
        assert_eq!(figures(kind, "128"), figures(kind, "1"), "{kind}");
    }
}

#[test]
fn a_plain_evaluation_s_record_does_not_name_decoders() {
    let dir = tempfile::tempdir().unwrap();
    let record = |kind: &str, model: &str| {
        let sets = [format!("decode.kind={kind}"), format!("decode.model={model}")];
        let context = context(dir.path(), &[&sets[0], &sets[1]]);
        let folder = context.open(Stage::Evaluate, &[]).unwrap();
        std::fs::read_to_string(folder.dir().join("settings.toml")).unwrap()
    };
    assert!(!record("sample", "policy").contains("decode"));
    assert!(record("sample", "reference").contains("[settings.decode]"));
    assert!(record("cards", "policy").contains("entropy_threshold"));
}
