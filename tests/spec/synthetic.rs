//! Results of a grid that nobody ran: numbers by formula and seeded noise, for tests of what is made of them.
//!
//! `tests/data/grid/results.json` holds [`results`]. Written anew: `WRITE_FIXTURE=1 cargo test --release --test spec
//! the_fixture`.

use rand::Rng;

use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segmentation::Rule;
use segment_rlhf::grid::results::{Arm, Cell, Curve, Experiment, FORMAT, Figures, Results, State};
use segment_rlhf::rng::{Stream, fnv1a, stream};
use segment_rlhf::run::Stage;
use segment_rlhf::run::folder::Origin;
use segment_rlhf::settings::{NormalizerKind, Settings};
use segment_rlhf::stage::evaluate::{self, Evaluation, Sample};
use segment_rlhf::stage::fit_normalizer::NormalizerFile;
use segment_rlhf::stage::online::keep::{self, EvaluationLine};
use segment_rlhf::stage::task::HeldOut;
use segment_rlhf::stage::{preferences, reward};
use segment_rlhf::systems::Method;
use segment_rlhf::systems::paper::METHODS;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/grid/results.json");
const SEEDS: [u64; 3] = [1, 2, 3];
const ITERATIONS: usize = 8;
const EVALUATE_EVERY: usize = 2;

#[test]
fn the_fixture_is_what_the_formulas_give() {
    let lines = |results: &Results| {
        // One cell a line: short, and still fit for a diff.
        let text = serde_json::to_string(results).unwrap();
        text.replace("{\"id\"", "\n{\"id\"").replace("{\"name\"", "\n{\"name\"") + "\n"
    };
    if std::env::var_os("WRITE_FIXTURE").is_some() {
        std::fs::write(FIXTURE, lines(&results())).unwrap();
    }
    let kept: Results = serde_json::from_str(&std::fs::read_to_string(FIXTURE).unwrap()).unwrap();
    assert!(kept == results(), "write it anew: see the head of this module");
}

/// Four experiments with three seeds; one cell failed, one is corrupt, and one arm has not begun.
pub fn results() -> Results {
    let mut cells = Vec::new();
    let mut experiment =
        |name: &str, title: &str, paper_table: Option<u32>, arms: &[(&str, &str)]| Experiment {
            name: name.into(),
            title: format!("{title} (synthetic)"),
            note: Some("invented numbers, to test the report with".into()),
            paper_table,
            arms: arms.iter().map(|(name, changes)| arm(name, changes, &mut cells)).collect(),
        };
    let methods = METHODS
        .map(|method| (method.name().replace('_', " "), format!("method = \"{}\"", method.name())));
    let mut table1: Vec<(&str, &str)> = methods.iter().map(|(a, b)| (&a[..], &b[..])).collect();
    table1.push(("length-neutral", "method = \"segment\"\nppo.length_neutral = true"));
    let experiments = vec![
        experiment("table1", "Table 1: what one action is", Some(1), &table1),
        experiment(
            "table4",
            "Table 4: the normalizer",
            Some(4),
            &[
                ("none", "method = \"segment\"\nnormalizer.kind = \"none\""),
                ("global", "method = \"segment\"\nnormalizer.kind = \"global\""),
                ("last", "method = \"segment\"\nnormalizer.kind = \"last\""),
                ("regression", "method = \"segment\""),
            ],
        ),
        experiment(
            "table5",
            "Table 5: within a segment",
            Some(5),
            &[
                ("last token", "method = \"segment\"\nppo.interpolation = \"last_token\""),
                ("repeat", "method = \"segment\"\nppo.interpolation = \"repeat\""),
                ("even split", "method = \"segment\""),
            ],
        ),
        experiment(
            "figure4",
            "Figure 4: the entropy cutoff",
            None,
            &[
                ("entropy_cutoff 0.5", "method = \"segment\"\nsegmentation.entropy_cutoff = 0.5"),
                ("entropy_cutoff 1", "method = \"segment\"\nsegmentation.entropy_cutoff = 1.0"),
                ("entropy_cutoff 1.2", "method = \"segment\""),
                ("entropy_cutoff 1.5", "method = \"segment\"\nsegmentation.entropy_cutoff = 1.5"),
                ("entropy_cutoff 1.8", "method = \"segment\"\nsegmentation.entropy_cutoff = 1.8"),
                ("entropy_cutoff 2.2", "method = \"segment\"\nsegmentation.entropy_cutoff = 2.2"),
            ],
        ),
    ];
    Results {
        format: FORMAT,
        version: "synthetic".into(),
        device: "none".into(),
        experiments,
        cells,
    }
}

/// The arm of these changes, and its cells where no other arm has them.
fn arm(name: &str, changes: &str, cells: &mut Vec<Cell>) -> Arm {
    let table: toml::Table = changes.parse().unwrap();
    let settings = Settings::defaults().with(name, &table).unwrap();
    let ids = SEEDS.map(|seed| format!("{:016x}", fnv1a(format!("{changes} {seed}").as_bytes())));
    for (id, seed) in ids.iter().zip(SEEDS) {
        if !cells.iter().any(|cell| cell.id == *id) {
            let state = state(name, &settings, seed);
            let finished = matches!(state, State::Finished(_));
            let origin = || Origin { numerics: 1, commit: Some("synthetic".into()) };
            let stages = Stage::ALL.iter().filter(|_| finished);
            let stages = stages.map(|stage| (stage.folder().to_owned(), origin())).collect();
            cells.push(Cell { id: id.clone(), seed, state, stages });
        }
    }
    let ours = settings.ppo.length_neutral;
    Arm { name: name.into(), ours, method: settings.method, settings: table, cells: ids.into() }
}

fn state(name: &str, settings: &Settings, seed: u64) -> State {
    match (name, seed) {
        ("bandit as segment", 3) => State::Failed {
            stage: "ppo".into(),
            error: "ppo: iteration 5: the policy loss is NaN, expected a finite number".into(),
        },
        ("last", 2) => State::Corrupt {
            error: "store/ppo-0123456789abcdef/metrics.jsonl:4: expected value at column 1".into(),
        },
        ("entropy_cutoff 2.2", _) => State::Pending,
        _ => State::Finished(Box::new(figures(name, settings, seed))),
    }
}

/// Whether a response has more than one reward.
fn is_dense(settings: &Settings) -> bool {
    settings.method.policy_rule(1.0) != Rule::Whole
}

/// Where training takes an arm: its final gold reward, KL and tokens.
fn destination(settings: &Settings) -> [f64; 3] {
    let [gold, kl, tokens] = match settings.method.name() {
        "bandit" => [2.6, 0.6, 35.8],
        "sentence" => [3.2, 2.8, 48.5],
        "token" => [3.4, 3.7, 48.1],
        "segment" => [3.3, 4.4, 47.6],
        "bandit_as_segment" => [-0.8, 14.0, 52.3],
        "segment_as_bandit" => [2.4, 0.55, 36.6],
        other => panic!("{other}"),
    };
    let normalizer = match settings.normalizer.kind {
        NormalizerKind::Regression => 0.0,
        NormalizerKind::Global => -0.2,
        NormalizerKind::Last => -1.0,
        NormalizerKind::None => -0.6,
    };
    let cutoff = settings.segmentation.entropy_cutoff;
    let neutral = if settings.ppo.length_neutral { -9.0 } else { 0.0 };
    [gold + normalizer - 0.4 * (cutoff - 1.2).abs(), kl, tokens + neutral]
}

const BEFORE: [f64; 3] = [1.44, 0.0, 34.8];

fn figures(name: &str, settings: &Settings, seed: u64) -> Figures {
    let mut seeded = stream(seed, "synthetic: seed", 0); // shared by all arms, and so removed by pairing
    let shift: f64 = seeded.random_range(-0.3..0.3);
    let mut own = stream(seed, name, 0);
    let end = destination(settings);
    let at = |share: f64, own: &mut Stream| -> [f64; 3] {
        let of = |i: usize| BEFORE[i] + share.powf([0.7, 1.5, 1.0][i]) * (end[i] - BEFORE[i]);
        let noise = if share > 0.0 { 0.1 } else { 0.0 };
        [of(0) + shift + noise * own.random_range(-1.0..1.0), of(1), of(2) + noise]
    };
    let share = |iteration: usize| iteration as f64 / ITERATIONS as f64;
    let rollouts: Vec<[f64; 3]> = (0..ITERATIONS).map(|i| at(share(i), &mut own)).collect();
    let dense = is_dense(settings);
    let column = |of: &dyn Fn(usize) -> f64| (0..ITERATIONS).map(|i| round(of(i))).collect();
    let known = |of: &dyn Fn(usize) -> f64| (0..ITERATIONS).map(|i| Some(round(of(i)))).collect();
    let curve = Curve {
        gold: known(&|i| rollouts[i][0]),
        sequence_score: column(&|i| rollouts[i][0] / 10.0),
        kl_k1: column(&|i| rollouts[i][1]),
        kl_coefficient: column(&|_| 0.1),
        entropy: column(&|i| 0.45 - 0.1 * share(i)),
        response_tokens: column(&|i| rollouts[i][2]),
        sampled_tokens: (0..ITERATIONS).map(|i| (64.0 * rollouts[i][2]) as usize).collect(),
        segments: column(&|i| if dense { rollouts[i][2] / 2.6 } else { 1.0 }),
        eos_rate: column(&|i| 0.98 - 0.05 * share(i)),
        clip_fraction: column(&|i| 0.02 + 0.03 * share(i)),
        advantage_spread: column(&|i| if dense { 2.0 } else { 4.0 } - 0.5 * share(i)),
        explained_variance: (0..ITERATIONS)
            .map(|i| (i > 0).then(|| round(0.5 * share(i))))
            .collect(),
        cause_advantage_share: known(&|i| if dense { 0.31 } else { 0.2 } + 0.02 * share(i)),
        cause_token_share: known(&|_| 0.2),
        credit_correlation: known(&|i| if dense { 0.2 } else { 0.05 } + 0.02 * share(i)),
    };
    let before = evaluation([BEFORE[0] + shift, BEFORE[1], BEFORE[2]], dense, false);
    let mut evaluations =
        vec![EvaluationLine { iteration: 0, evaluation: before.clone(), sample: None }];
    for iteration in (EVALUATE_EVERY..=ITERATIONS).step_by(EVALUATE_EVERY) {
        let evaluation = evaluation(at(share(iteration), &mut own), dense, true);
        evaluations.push(EvaluationLine { iteration, evaluation, sample: None });
    }
    let best = evaluations[1..]
        .iter()
        .max_by(|a, b| a.evaluation.gold.partial_cmp(&b.evaluation.gold).unwrap());
    let best = best.unwrap().clone();
    let last = evaluations.last().unwrap().evaluation.clone();
    Figures {
        preferences: Some(preferences::Summary {
            pairs: 4000,
            mean_gap: 3.1,
            label_agreement: 0.87,
        }),
        reward: Some(reward_model(settings, &mut own)),
        normalizer: Some(normalizer(settings)),
        policy: Some(keep::Summary {
            iterations: ITERATIONS,
            last: last.clone(),
            best_iteration: best.iteration,
            best: best.evaluation,
            held_out: HeldOut::Prompts,
        }),
        dpo: None,
        evaluation: evaluate::Summary {
            before,
            after: last,
            sample: Sample {
                prompt: vec![2, 30, 31, 16, 33, 22, 34],
                before: vec![40, 16, 5, 1],
                after: vec![41, 16, 5, 60, 1],
            },
            held_out: HeldOut::Prompts,
        },
        curve,
        evaluations,
    }
}

fn evaluation([gold, kl, tokens]: [f64; 3], dense: bool, compared: bool) -> Evaluation {
    let win_rate = 0.5 + (gold - BEFORE[0]) / 10.0;
    let when = |value: f64| compared.then(|| round(value));
    Evaluation {
        responses: 384,
        pass_rate: None,
        pass_rate_error: None,
        gold: Some(round(gold)),
        gold_error: Some(0.2),
        sequence_score: round(gold / 10.0),
        sequence_score_error: Some(0.02),
        win_rate: when(win_rate),
        win_rate_error: compared.then_some(0.02),
        length_controlled_win_rate: when(win_rate - (tokens - BEFORE[2]) / 500.0),
        length_controlled_error: compared.then_some(0.025),
        kl: round(kl),
        tokens: round(tokens),
        segments: if dense { round(tokens / 2.6) } else { 1.0 },
        repeats: Some(round(0.63 + (tokens - BEFORE[2]) / 15.0)),
        eos_rate: 0.97,
        model_calls: None,
        reward_calls: None,
        sampled_tokens: None,
    }
}

fn reward_model(settings: &Settings, own: &mut Stream) -> reward::Summary {
    let actions = settings.method.reward_model();
    let cutoff = settings.segmentation.entropy_cutoff;
    let (accuracy, segment_tokens) = match actions.name() {
        "bandit" => (0.72, 34.8),
        "sentence" => (0.73, 7.6),
        "token" => (0.77, 1.0),
        _ => (0.75, 1.2 + 1.1 * cutoff),
    };
    let noise: f64 = own.random_range(-0.02..0.02);
    let dense = actions != Method::BANDIT;
    let known = |value: f64| dense.then(|| round(value + noise));
    let calibration = [0.55, 0.7, 0.85, 0.97].map(|predicted| reward::Calibration {
        predicted,
        observed: round(0.5 + 0.9 * (predicted - 0.5) + noise),
        pairs: 200,
    });
    reward::Summary {
        pairs: 800,
        held_out: HeldOut::Prompts,
        accuracy: round(accuracy + noise),
        gold_accuracy: Some(round(accuracy + 0.05 + noise)),
        gold_pairs: Some(790),
        sequence_rank_correlation: Some(round(0.6 + noise)),
        rank_correlation: known(0.3),
        clause_correlation: known(0.47),
        topic_correlation: known(0.35),
        quality_correlation: known(0.36),
        boundary_precision: known(0.9),
        boundary_recall: known(1.0 - 0.3 * (cutoff - 1.2).abs()),
        boundary_f1: known(0.92 - 0.2 * (cutoff - 1.2).abs()),
        calibration: calibration.into(),
        by_gap: Vec::new(),
        temperature: None,
        segments: round(34.8 / segment_tokens),
        segment_tokens: round(segment_tokens),
    }
}

fn normalizer(settings: &Settings) -> NormalizerFile {
    let dense = is_dense(settings);
    let normalizer = match settings.normalizer.kind {
        NormalizerKind::None => Normalizer::None,
        NormalizerKind::Regression if dense => {
            let toml = "kind = \"location_aware\"\nw_mean = 0.76\nw_std = 0.65\nb_mean = 1.47\nb_std = 3.5";
            toml::from_str(toml).unwrap()
        }
        _ => Normalizer::Scalar { mean: -0.5, std: 2.2 },
    };
    NormalizerFile {
        method: settings.method,
        rule: settings.method.policy_rule(settings.segmentation.entropy_cutoff),
        reward_model: "0123456789abcdef".into(),
        normalizer,
        min_location: 1.0 / 64.0,
        rewards: if dense { 106_000 } else { 8_000 },
        statistics: Vec::new(),
        r_squared_mean: dense.then_some(0.31),
        r_squared_std: dense.then_some(0.72),
    }
}

/// To four decimals: what a person reads in the fixture.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
