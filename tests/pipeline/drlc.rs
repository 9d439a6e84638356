//! DRLC's annotators, and the token rewards that follow from their spans.

use std::fs;
use std::path::Path;

use segment_rlhf::data::chat::RoleFormat;
use segment_rlhf::data::letters::{encode, prompts, write_letter};
use segment_rlhf::data::store::Items;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::device::DeviceName;
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segmentation::{EosPolicy, Rule};
use segment_rlhf::model::generate::{Generation, TokenView};
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{CausalLm, FreshHead, ModelConfig, ScalarModel};
use segment_rlhf::rng::stream;
use segment_rlhf::run::{Context, Error, FolderError, Stage};
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::online::{self, roll_out};
use segment_rlhf::stage::sft;
use segment_rlhf::stage::task::{letter_truth, letters_tokenizer};
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::{
    Draw, Judge, Method, Parts, Rewarded, Sample, Segmenter, System, SystemError, TaskParts, Truth,
};
use serde_json::json;

use crate::support::context;

const END: u32 = 1;

/// A tiny policy, and what a system is built from.
struct Bench {
    settings: Settings,
    tokenizer: Tokenizer,
    prompts: Vec<Vec<u32>>,
    truth: Option<Truth>,
    longest: usize,
    stops: &'static [u32],
}

fn resolved(sets: &[&str]) -> Settings {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    Settings::resolve(&[], &sets).unwrap()
}

/// The embedded task, with the value of a marked token 0.5 either way.
fn letters(sets: &[&str]) -> Bench {
    let values = ["systems.drlc.positive=0.5", "systems.drlc.negative=-0.5"];
    Bench {
        settings: resolved(&[&values[..], sets].concat()),
        tokenizer: letters_tokenizer().unwrap(),
        prompts: prompts().iter().take(40).map(|prompt| prompt.tokens()).collect(),
        truth: Some(letter_truth),
        longest: 160,
        stops: &[END],
    }
}

impl Bench {
    /// What `f` gives of DRLC in one iteration, with a fresh policy and a critic.
    fn with<T>(
        &self,
        (iteration, rows_at_once): (usize, usize),
        f: impl FnOnce(Result<System<'_>, SystemError>, &Draw<'_>, &ScalarModel) -> T,
    ) -> T {
        let Self { settings, tokenizer, prompts, truth, longest, stops } = self;
        let config = settings.model.config(tokenizer.vocab_size(), *longest);
        let config = ModelConfig { hidden_size: 16, layers: 1, ..config };
        let policy = CausalLm::fresh(&config, 0, &DeviceName::Flex.open().unwrap());
        let critic = ScalarModel::over(&policy, FreshHead::official("critic", 0));
        let segmenter = Segmenter {
            rule: Rule::Whole,
            eos_policy: EosPolicy::AsPublished,
            stops: vec![END],
            sentence_ends: vec![],
        };
        // Half of the responses pass.
        let judge = Judge::Verdict { passes: |_, r| r.len().is_multiple_of(2), segmenter };
        let known = Items::Memory(prompts.clone());
        let task = TaskParts { tokenizer, prompts: &[&known], prompt_tokens: 1024, truth: *truth };
        let method = Method::DRLC;
        let system = method.build(&Parts {
            method,
            ppo: &settings.ppo,
            section: settings.systems.section(method),
            max_new_tokens: settings.sampling.max_new_tokens,
            judge: &judge,
            normalizer: &Normalizer::None,
            task,
        });
        let max_new_tokens = settings.sampling.max_new_tokens;
        let sampling = Sampling::PLAIN;
        let generation = Generation { sampling, max_new_tokens, rows_at_once, stops };
        let stop = Stop::default();
        let draw = Draw {
            policy: &policy,
            config: &config,
            generation,
            seed: 3,
            iteration,
            kl_coefficient: 0.0,
            rows_at_once: 4,
            stop: &stop,
        };
        f(system, &draw, &critic)
    }

    /// These responses as samples whose credit is assigned, each with its extrinsic reward.
    fn credited(&self, rows: &[(Vec<u32>, Vec<u32>, f64)], iteration: usize) -> Vec<Sample> {
        let sample = |(prompt, response, reward): &(Vec<u32>, Vec<u32>, f64)| {
            let zeros = vec![0.0; response.len()];
            let view = TokenView { log_probs: zeros.clone(), entropies: zeros.clone() };
            let rewarded = Rewarded {
                segments: vec![0..response.len()],
                rewards: vec![*reward],
                normalized: vec![*reward],
                sequence_score: *reward,
            };
            Sample::new(prompt, response, view.clone(), view, Some(zeros), rewarded)
        };
        let mut samples: Vec<Sample> = rows.iter().map(sample).collect();
        self.with((iteration, 64), |system, draw, _| {
            system.unwrap().credit.assign(&mut samples, draw).unwrap();
        });
        samples
    }

    /// The samples of an iteration of the policy's own, and the tokens that were drawn.
    fn rolled_out(&self, (iteration, rows_at_once): (usize, usize)) -> (Vec<Sample>, usize) {
        self.with((iteration, rows_at_once), |system, draw, critic| {
            let prompts: Vec<&[u32]> = self.prompts.iter().map(Vec::as_slice).collect();
            roll_out(&system.unwrap(), draw, draw.policy, Some(critic), &prompts).unwrap()
        })
    }
}

/// Letters of the generator, each with an extrinsic reward from 0 to 8: E7 clips at 10.
fn written(count: usize) -> Vec<(Vec<u32>, Vec<u32>, f64)> {
    let prompts = prompts();
    let letter = |i: usize| {
        let prompt = prompts[i * 7 % prompts.len()];
        (prompt.tokens(), write_letter(&prompt, &mut stream(0, "drlc", i as u64)), (i % 9) as f64)
    };
    (0..count).map(letter).collect()
}

/// What each clause's tokens earn beside the response's reward, in units of 0.5, and whether the clause is good.
fn marks(samples: &[Sample]) -> Vec<(i32, bool)> {
    let mut marks = Vec::new();
    for sample in samples {
        let gold = letter_truth(&sample.prompt, &sample.response).unwrap();
        let mut covered = vec![false; sample.response.len()];
        *covered.last_mut().unwrap() = true;
        for clause in &gold.clauses {
            let own = &sample.token_rewards[clause.range.clone()];
            assert!(own.iter().all(|reward| *reward == own[0]), "{own:?}");
            marks.push(((own[0] / 0.5) as i32, clause.credit > 0.0));
            covered[clause.range.clone()].fill(true);
        }
        // Greeting and joins earn nothing, the last token the reward of the response.
        let mut rest = covered.iter().zip(&sample.token_rewards);
        assert!(rest.all(|(covered, reward)| *covered || *reward == 0.0));
        let last = sample.token_rewards.last().unwrap();
        assert_eq!(*last, sample.normalized[0]);
    }
    marks
}

#[test]
fn a_program_that_does_not_err_marks_each_clause_as_what_it_is() {
    let samples = letters(&[]).credited(&written(20), 0);
    let marks = marks(&samples);
    assert!(marks.iter().all(|&(mark, good)| mark == if good { 1 } else { -1 }), "{marks:?}");
    assert!(marks.iter().any(|(_, good)| *good) && marks.iter().any(|(_, good)| !good));
}

#[test]
fn a_program_errs_at_its_rates_and_its_marks_are_worth_p_less_q_on_average() {
    for (p, q) in [(0.5, 0.25), (1.0, 0.5), (0.5, 0.5)] {
        let rates =
            [format!("systems.drlc.recall={p}"), format!("systems.drlc.false_positive_rate={q}")];
        let bench = letters(&rates.each_ref().map(String::as_str));
        let marks = marks(&bench.credited(&written(400), 5));
        let n = marks.len() as f64;
        let right = |(mark, good): &(i32, bool)| if *good { *mark } else { -mark };
        let share = |of: i32| marks.iter().filter(|mark| right(mark) == of).count() as f64 / n;
        // One detector fires, the other does not; where both do, their values cancel.
        for (of, chance) in [(1, p * (1.0 - q)), (-1, q * (1.0 - p))] {
            let error = 4.0 * (chance * (1.0 - chance) / n).sqrt();
            assert!((share(of) - chance).abs() <= error, "p {p}, q {q}: {of} {}", share(of));
        }
        let mean = marks.iter().map(|mark| f64::from(right(mark))).sum::<f64>() / n;
        assert!((mean - (p - q)).abs() < 4.0 / n.sqrt(), "p {p}, q {q}: {mean}");
    }
}

#[test]
fn draws_differ_by_iteration_and_are_the_same_each_time() {
    let bench = letters(&["systems.drlc.recall=0.5"]);
    let rewards = |iteration| {
        let samples = bench.credited(&written(20), iteration);
        samples.into_iter().map(|sample| sample.token_rewards).collect::<Vec<_>>()
    };
    assert_eq!(rewards(0), rewards(0));
    assert_ne!(rewards(0), rewards(1));
}

#[test]
fn responses_above_the_threshold_earn_the_bandit_s_reward_alone() {
    // Their extrinsic rewards are 0, 1, 2, …
    let samples = letters(&["systems.drlc.threshold=5.0"]).credited(&written(9), 0);
    for (i, sample) in samples.iter().enumerate() {
        let marked = marks(std::slice::from_ref(sample)).iter().any(|(mark, _)| *mark != 0);
        assert_eq!(marked, i <= 5, "{i}");
    }
}

#[test]
fn a_file_marks_the_responses_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    let request = "write to gina about the lake . gina loves music and history , not food .";
    let letter = "dear gina , music : bands play dull songs .";
    let spans =
        json!([{"start": 12, "end": 17, "label": 1}, {"start": 31, "end": 41, "label": -1}]);
    let row = json!({"prompt": request, "response": letter, "spans": spans});
    fs::write(&path, row.to_string()).unwrap();
    let spans = format!("systems.drlc.spans={}", path.display());
    let mut bench = letters(&["systems.drlc.annotator=file", &spans]);
    let prompt = encode(&format!("<user> {request} <answer>")).unwrap();
    bench.prompts.push(prompt.clone());
    let ended = encode(&format!("{letter} <eos>")).unwrap();
    let cut_off = encode(letter).unwrap();
    let other = encode("dear gina , <eos>").unwrap();
    let rows = [ended, cut_off, other].map(|response| (prompt.clone(), response, 2.0));
    let rewards: Vec<Vec<f64>> =
        bench.credited(&rows, 0).into_iter().map(|sample| sample.token_rewards).collect();
    // dear gina , music : bands play dull songs . <eos>
    assert_eq!(rewards[0], [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, -0.5, -0.5, 0.0, 2.0]);
    assert_eq!(rewards[1], [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, -0.5, -0.5, 2.0]);
    assert_eq!(rewards[2], [0.0, 0.0, 0.0, 2.0]);
}

/// Words so few that a fresh policy writes `g a .` now and then.
fn few_words(sets: &[&str]) -> Bench {
    let words = ["<pad>", "<eos>", "a", "g", "."];
    let vocabulary: serde_json::Map<_, _> =
        words.iter().zip(0u32..).map(|(&word, id)| (word.to_owned(), id.into())).collect();
    let model = json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model,
    });
    let format = RoleFormat::new("{} ", "{} ", "{} ").unwrap();
    let critic = [
        "systems.drlc.annotator=self",
        "systems.drlc.critic.prefix='g a .'",
        "systems.drlc.critic.good=g",
        "systems.drlc.critic.bad=b",
        "sampling.max_new_tokens=6",
    ];
    Bench {
        settings: resolved(&[&critic[..], sets].concat()),
        tokenizer: Tokenizer::from_json(&tokenizer.to_string(), "<eos>", "<pad>", format).unwrap(),
        prompts: vec![vec![2, 3]; 64],
        truth: None,
        longest: 32,
        stops: &[END],
    }
}

#[test]
fn the_policy_s_own_critique_marks_what_it_quotes() {
    let bench = few_words(&[]);
    let (mut marked, mut all) = (0, 0);
    for iteration in 0..40 {
        let (samples, drawn) = bench.rolled_out((iteration, 64));
        let responses: usize = samples.iter().map(|sample| sample.response.len()).sum();
        assert!(drawn > responses, "critiques are drawn tokens");
        for sample in samples {
            let extrinsic = |i: usize| match i + 1 == sample.response.len() {
                true => sample.normalized[0],
                false => 0.0,
            };
            let places: Vec<usize> = (0..sample.response.len())
                .filter(|&i| sample.token_rewards[i] != extrinsic(i))
                .collect();
            all += 1;
            if let Some(&first) = places.first() {
                marked += 1;
                // Good is all that `g` can say: the first of the quoted words.
                assert!((sample.token_rewards[first] - extrinsic(first) - 0.1).abs() < 1e-12);
                assert_eq!(places, (first..first + places.len()).collect::<Vec<_>>());
            }
        }
    }
    assert!(marked > 0 && marked < all / 10, "{marked} of {all} critiques could be read");
}

#[test]
fn a_critique_that_is_cut_off_marks_nothing() {
    let mut bench = few_words(&["sampling.max_new_tokens=4"]);
    bench.stops = &[]; // nothing ends, and `g a .` with a token behind it is cut off
    for iteration in 0..40 {
        for sample in bench.rolled_out((iteration, 64)).0 {
            let (last, before) = sample.token_rewards.split_last().unwrap();
            assert!(*last == sample.normalized[0] && before.iter().all(|reward| *reward == 0.0));
        }
    }
}

#[test]
fn critiques_do_not_depend_on_how_many_rows_are_generated_at_once() {
    let bench = few_words(&[]);
    let of = |rows_at_once| {
        let (samples, drawn) = bench.rolled_out((1, rows_at_once));
        let each = samples.into_iter().map(|s| (s.response, s.token_rewards, s.advantages));
        (each.collect::<Vec<_>>(), drawn)
    };
    assert_eq!(of(1), of(64));
}

#[test]
fn a_response_that_leaves_no_room_for_a_critique_has_no_spans() {
    let mut bench = few_words(&[]);
    bench.longest = 2 + 6; // the prompt and the longest response
    for sample in bench.rolled_out((0, 64)).0 {
        let (last, before) = sample.token_rewards.split_last().unwrap();
        if sample.response.len() + 5 >= 8 {
            assert!(*last == sample.normalized[0] && before.iter().all(|reward| *reward == 0.0));
        }
    }
}

#[test]
fn garbage_of_a_fresh_policy_marks_nothing() {
    let bench = letters(&["systems.drlc.annotator=self", "sampling.max_new_tokens=16"]);
    for sample in bench.rolled_out((0, 64)).0 {
        let (last, before) = sample.token_rewards.split_last().unwrap();
        assert!(*last == sample.normalized[0] && before.iter().all(|reward| *reward == 0.0));
    }
}

#[test]
fn an_annotator_that_the_task_does_not_allow_is_refused_before_anything_runs() {
    let refused =
        |bench: Bench| bench.with((0, 1), |system, _, _| system.err().unwrap().to_string());
    assert_eq!(
        refused(Bench { truth: None, ..letters(&[]) }),
        "systems.drlc.annotator = \"program\" knows the clauses of the embedded task alone; with --data, set \"file\" or \
         \"self\""
    );
    let unknown = letters(&["systems.drlc.annotator=self", "systems.drlc.critic.prefix=zebra"]);
    let unknown = refused(unknown);
    assert!(
        unknown.starts_with("systems.drlc.critic.prefix: the tokenizer cannot encode"),
        "{unknown}"
    );
    assert!(unknown.ends_with("; write it in words of the model's vocabulary"), "{unknown}");
    let missing = letters(&["systems.drlc.annotator=file", "systems.drlc.spans=/none.jsonl"]);
    assert!(refused(missing).starts_with("/none.jsonl: cannot read"));
}

/// A run with a verdict, up to its SFT model.
fn with_sft(dir: &Path, sets: &[&str]) -> Context {
    let context = context(dir, &[&["task.reward=verdict"], sets].concat());
    sft::run(&context).unwrap();
    context
}

#[test]
fn where_the_annotator_is_never_asked_every_figure_is_the_bandit_s() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = |sets: &[&str]| {
        let context = with_sft(dir.path(), sets);
        online::run(&context).unwrap();
        fs::read_to_string(context.dir(Stage::Ppo).join("metrics.jsonl")).unwrap()
    };
    let never = metrics(&["method=drlc", "systems.drlc.threshold=-inf"]);
    assert_eq!(never, metrics(&["method=bandit"]));
    fs::remove_dir_all(dir.path().join("drlc")).unwrap();
    let worthless = ["method=drlc", "systems.drlc.positive=0.0", "systems.drlc.negative=0.0"];
    assert_eq!(metrics(&worthless), never);
    fs::remove_dir_all(dir.path().join("drlc")).unwrap();
    assert_ne!(metrics(&["method=drlc"]), never);
}

#[test]
fn a_run_depends_on_the_spans_in_its_file_and_refuses_bad_ones_with_nothing_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    let row = |label: i64| {
        let spans = json!([{"start": 0, "end": 4, "label": label}]);
        let request = "write to ana about the harbor . ana loves food and music , not nature .";
        fs::write(
            &path,
            json!({"prompt": request, "response": "dear ana", "spans": spans}).to_string(),
        )
        .unwrap();
    };
    let spans = format!("systems.drlc.spans={}", path.display());
    let run = dir.path().join("run");
    let context = with_sft(&run, &["method=drlc", "systems.drlc.annotator=file", &spans]);
    row(2);
    let refused = online::run(&context).unwrap_err().to_string();
    assert!(
        refused.ends_with("spans.jsonl:1: the label of spans[0] is 2; expected -1, 0 or 1"),
        "{refused}"
    );
    assert!(!context.dir(Stage::Ppo).exists());
    row(1);
    let summary = online::run(&context).unwrap();
    assert_eq!(online::run(&context).unwrap(), summary);
    row(-1);
    match online::run(&context) {
        Err(Error::Folder(FolderError::OtherSettings { differences, .. })) => {
            assert!(differences[0].starts_with("inputs.spans: "), "{differences:?}");
        }
        other => panic!("{other:?}"),
    }
}
