//! SPO's rollouts and credit on a tiny policy, with a verdict that half of the responses pass.

use segment_rlhf::equations::monte_carlo::chain_advantages;
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segmentation::{EosPolicy, Rule};
use segment_rlhf::model::generate::Generation;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::model::{CausalLm, ModelConfig};
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::online::roll_out;
use segment_rlhf::stage::task::letters_tokenizer;
use segment_rlhf::stop::Stop;
use segment_rlhf::systems::{
    Draw, Edge, Judge, Method, Parts, Pool, Replay, Sample, Segmenter, TaskParts,
};

const LONGEST: usize = 12;
const END: u32 = 1;
const PROMPTS: [&[u32]; 3] = [&[2, 3], &[4], &[5, 6, 7]];

fn passes(_prompt: &[u32], response: &[u32]) -> bool {
    response.len().is_multiple_of(2)
}

/// The samples of an iteration with settings `sets`, and the tokens that were drawn; `rows_at_once` are generated at once.
fn rolled_out(method: Method, sets: &[&str], rows_at_once: usize) -> (Vec<Sample>, usize) {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let settings = Settings::resolve(&[], &sets).unwrap();
    let config = ModelConfig { hidden_size: 16, layers: 1, ..settings.model.config(11, 32) };
    let device = segment_rlhf::device::DeviceName::Flex.open().unwrap();
    let [policy, reference] = [0, 1].map(|seed| CausalLm::fresh(&config, seed, &device));
    let segmenter = Segmenter {
        rule: Rule::Whole,
        eos_policy: EosPolicy::AsPublished,
        stops: vec![END],
        sentence_ends: vec![],
    };
    let judge = Judge::Verdict { passes, segmenter };
    let tokenizer = letters_tokenizer().unwrap();
    let system = method.build(&Parts {
        method,
        ppo: &settings.ppo,
        section: settings.systems.section(method),
        max_new_tokens: LONGEST,
        judge: &judge,
        normalizer: &Normalizer::None,
        task: TaskParts::of(&tokenizer),
    });
    let system = system.unwrap();
    let stops = &[END];
    let generation =
        Generation { sampling: Sampling::PLAIN, max_new_tokens: LONGEST, rows_at_once, stops };
    let draw = Draw {
        policy: &policy,
        config: &config,
        generation,
        seed: 0,
        iteration: 2,
        kl_coefficient: 0.0,
        rows_at_once: 4,
        stop: &Stop::default(),
    };
    let copies = if method == Method::SPO_TREE { 1 } else { 2 };
    let prompts = PROMPTS.iter().flat_map(|&prompt| vec![prompt; copies]).collect::<Vec<_>>();
    roll_out(&system, &draw, &reference, None, &prompts).unwrap()
}

fn teaching(samples: &[Sample]) -> Vec<f64> {
    let each = samples.iter().flat_map(|s| s.advantages.iter().zip(s.teaches.as_ref().unwrap()));
    each.filter(|(_, teaches)| **teaches).map(|(advantage, _)| *advantage).collect()
}

/// Whitened: mean 0 and an unbiased variance of 1 over the tokens that teach, and 0 elsewhere.
fn assert_whitened(samples: &[Sample]) {
    let taught = teaching(samples);
    let n = taught.len() as f64;
    let mean = taught.iter().sum::<f64>() / n;
    let variance = taught.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (n - 1.0);
    assert!(mean.abs() < 1e-12 && (variance - 1.0).abs() < 1e-6, "{mean} {variance}");
    for sample in samples {
        let each = sample.advantages.iter().zip(sample.teaches.as_ref().unwrap());
        assert!(each.into_iter().all(|(advantage, teaches)| *teaches || *advantage == 0.0));
    }
}

#[test]
fn a_chain_teaches_unsure_tokens_and_draws_continuations_from_its_boundaries() {
    let sets = ["systems.spo.threshold=0.3", "systems.spo.interval=2", "systems.spo.size=2"];
    let (samples, drawn) = rolled_out(Method::SPO_CHAIN, &sets, 64);
    assert_eq!(samples.len(), 6);
    for sample in &samples {
        let unsure: Vec<bool> =
            sample.log_probs.iter().map(|&l| f64::from(l).exp() < 0.3).collect();
        assert_eq!(sample.teaches.as_ref(), Some(&unsure));
        let passed = f64::from(sample.response.len().is_multiple_of(2));
        assert_eq!(sample.token_rewards.iter().sum::<f64>(), passed);
    }
    assert_whitened(&samples);
    assert!(drawn > samples.iter().map(|sample| sample.response.len()).sum());
}

/// With one state to value, before the first token, and one continuation, the advantage is the difference of two
/// verdicts: 1, 0 or -1.
#[test]
fn a_segment_s_advantage_is_what_the_value_gains() {
    let sets = [
        "systems.spo.cut=length",
        "systems.spo.interval=12",
        "systems.spo.continuations=1",
        "systems.spo.threshold=1",
        "systems.spo.size=2",
    ];
    let (samples, drawn) = rolled_out(Method::SPO_CHAIN, &sets, 64);
    // Equal prompts share their estimate: three continuations.
    let responses: usize = samples.iter().map(|sample| sample.response.len()).sum();
    assert!(drawn - responses <= 3 * LONGEST);
    // Whitening keeps differences' ratios: samples of one prompt differ by their verdicts, on one scale.
    let first = |sample: &Sample| sample.advantages[0];
    let scale: Vec<f64> = (samples.chunks(2))
        .filter_map(|pair| {
            let [a, b] = [&pair[0], &pair[1]].map(|s| s.token_rewards.iter().sum::<f64>());
            (a != b).then(|| (first(&pair[0]) - first(&pair[1])) / (a - b))
        })
        .collect();
    assert!(!scale.is_empty(), "a prompt with both verdicts");
    assert!(scale.iter().all(|of| (of - scale[0]).abs() < 1e-9 && *of > 0.0), "{scale:?}");
    for sample in &samples {
        assert!(sample.advantages.iter().all(|advantage| *advantage == first(sample)));
    }
    // The equation with these values.
    let chain = chain_advantages(&[-1.0; 3], 1.0, &[0], &[1.0], 0.0);
    assert_eq!(chain, [-1.0; 3]);
}

#[test]
fn a_tree_s_leaves_share_edges_that_teach_once() {
    let sets = [
        "systems.spo.branches=[3, 2]",
        "systems.spo.level_tokens=3",
        "systems.spo.mask=false",
        "ppo.rollouts=6",
        "ppo.minibatch=2",
        "method=spo_tree",
    ];
    let (samples, drawn) = rolled_out(Method::SPO_TREE, &sets, 64);
    assert_whitened(&samples);
    let trees: Vec<usize> = samples.iter().map(|sample| sample.path.tree).collect();
    assert!(trees.is_sorted() && trees.last() == Some(&2));
    let mut all = 0;
    for leaves in samples.chunk_by(|a, b| a.path.tree == b.path.tree) {
        let mut edges: Vec<(Edge, Vec<u32>)> = Vec::new();
        for leaf in leaves {
            assert_eq!(leaf.prompt, PROMPTS[leaf.path.tree]);
            assert_eq!(leaf.path.edges.last().unwrap().end, leaf.response.len());
            let whole = leaf.response.last() == Some(&END) || leaf.response.len() == LONGEST;
            assert!(whole && leaf.path.edges.len() <= 2);
            assert!(leaf.path.edges[0].end <= 3);
            for edge in &leaf.path.edges {
                let written = leaf.response[..edge.end].to_vec();
                match edges.iter().find(|(other, _)| other.node == edge.node) {
                    Some((_, other)) => assert_eq!(*other, written),
                    None => edges.push((*edge, written)),
                }
            }
        }
        // Each node has the tokens since its parent, whose end is that of the edge before it on a path.
        for leaf in leaves {
            let ends = [0].into_iter().chain(leaf.path.edges.iter().map(|edge| edge.end));
            for (start, edge) in ends.zip(&leaf.path.edges) {
                if let Some(at) = edges.iter().position(|(other, _)| other.node == edge.node) {
                    edges.swap_remove(at);
                    all += edge.end - start;
                }
            }
        }
    }
    assert_eq!(all, drawn);
    assert!(teaching(&samples).len() <= drawn);
}

#[test]
fn edges_that_wait_teach_what_their_leaves_would_have_taught() {
    let sets = [
        "systems.spo.branches=[3, 2]",
        "systems.spo.level_tokens=3",
        "systems.spo.threshold=0.3",
        "ppo.rollouts=6",
        "ppo.minibatch=2",
        "method=spo_tree",
    ];
    let (samples, _) = rolled_out(Method::SPO_TREE, &sets, 64);
    let exchange = |edges: usize, least: usize| {
        let (mut pool, replay) = (Pool::default(), Replay { edges, age: 8 });
        let mut rng = segment_rlhf::rng::stream(0, "replay", 2);
        let first = pool.exchange(&samples, 2, replay, least, &mut rng);
        let second = pool.exchange(&[], 3, replay, 0, &mut rng);
        (first, second, pool.waiting().count())
    };
    // Each token with its prompt, what was written before it, and its advantage.
    let taught = |samples: &[Sample]| {
        let mut all: Vec<(Vec<u32>, Vec<u32>, u64)> = Vec::new();
        for sample in samples {
            for (t, _) in sample.teaches.as_ref().unwrap().iter().enumerate().filter(|&(_, &t)| t) {
                let written = sample.response[..=t].to_vec();
                all.push((sample.prompt.clone(), written, sample.advantages[t].to_bits()));
            }
        }
        all.sort();
        all
    };
    let (edges, later, left) = exchange(100, 0);
    assert_eq!((taught(&edges), later.len(), left), (taught(&samples), 0, 0));
    for edge in &edges {
        let teaches = edge.teaches.as_ref().unwrap();
        assert_eq!(edge.response.len(), edge.log_probs.len());
        assert!(teaches.contains(&true) && edge.response.len() <= LONGEST);
    }
    // At most two edges of a prompt at a time; samples that teach nothing fill up minibatches that would be empty.
    let (first, second, left) = exchange(2, 40);
    assert_eq!(first.len(), 40);
    let idle = first.iter().filter(|edge| edge.teaching_tokens() == 0).count();
    assert!(first.len() - idle <= 6 && second.len() <= 6);
    assert_eq!(first.len() - idle + second.len() + left, edges.len());
    let prompts = |of: &[Sample]| of.iter().filter(|s| s.prompt == PROMPTS[0]).count();
    assert!(prompts(&second) <= 2);
}

#[test]
fn what_is_drawn_does_not_depend_on_how_many_rows_are_generated_at_once() {
    let chain = ["systems.spo.interval=2", "systems.spo.size=2"];
    let tree = ["systems.spo.branches=[3, 2]", "systems.spo.level_tokens=3"];
    for (method, sets) in [(Method::SPO_CHAIN, &chain[..]), (Method::SPO_TREE, &tree)] {
        let of = |rows_at_once| {
            let (samples, drawn) = rolled_out(method, sets, rows_at_once);
            let each = samples.into_iter().map(|s| (s.response, s.path, s.advantages));
            (each.collect::<Vec<_>>(), drawn)
        };
        assert_eq!(of(1), of(64));
    }
}
