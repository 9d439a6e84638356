//! Segment-level RLHF (Yin et al., "Segmenting Text and Learning Their Rewards for Improved RLHF in Language
//! Model", arXiv 2501.02790) on [Burn](https://burn.dev): the equations, the models, and the whole pipeline.
//!
//! ```text
//! preference pairs                                                     prompts
//!       │                                                                 │
//!       ▼                                                                 ▼
//! segments (E1) ──► segment reward model (E2–E4) ──► normalizer (E5)   rollouts ◄──────┐
//!       ▲                        │                         │              │            │
//!       │ entropies              └────────────┬────────────┘              ▼            │
//! reference model ─ segments, ln π_SFT ───────┴──────────────► token rewards (E6, E7)  │
//!                                                                         │            │
//!                                                                         ▼            │
//!                                                                advantages (E8)       │
//!                                                                         │            │
//!                                                                         ▼            │
//!               report ◄── evaluation ◄── policy ◄──────── policy update (E9, E10) ────┘
//! ```
//!
//! # The house
//!
//! A module imports from lower floors alone, and no files import each other in a circle (`tests/floors.rs` reads the
//! diagram and every `use`):
//!
//! ```text
//! 9  cli                             arguments, one call, exit codes
//! 8  report                          tables, plots, the page
//! 7  grid, benchmark                 experiments: arms × seeds, one driver, statistics; public benchmarks
//! 6  stage                           sft, preferences, reward, normalizer, the PPO loop, evaluation, export
//! 5  run                             a stage's folder, lock, checkpoint, log and key; progress; metrics
//! 4  settings                        the sections put together, overlays, --set
//! 3  systems                         one file a system: rollouts, rule, rewards, credit, loss
//! 2  data                            pairs, prompts, tokenizers, templates, the embedded task
//! 2  model                           decoder, cache, generation, heads, LoRA, Hugging Face files, optimizer
//! 1  equations                       one file each: no I/O, no settings, no draws
//! 0  atomic bounds device host rng statistics stop table
//! ```
//!
//! **From the paper to the code:** [`walkthrough`] takes one pair of responses through all ten equations, in numbers.
//!
//! # What lives where
//!
//! | modules | hold |
//! | --- | --- |
//! | [`segmentation`] | E1: entropies, and what one action is |
//! | [`segment_reward`], [`bt_loss`] | E2 to E4: segment rewards, sequence scores, the Bradley-Terry loss |
//! | [`normalizer`] | E5: mean and standard deviation by location, and their fit |
//! | [`interpolation`], [`kl`] | E6 and E7: the reward of each token |
//! | [`gae`] | E8: advantages and returns |
//! | [`ppo`] | E9 and E10: the losses of policy and critic |
//! | [`data`] | pairs, prompts, tokenizers, chat templates, role formats, and the embedded task in [`data::letters`] |
//! | [`model`] | the decoder, its heads and cache, sampling, optimizer, Hugging Face checkpoints |
//! | [`stage`] | one file a stage of the pipeline; each reads and writes a folder of the run |
//! | [`benchmark`] | the public benchmarks: answers for their judges, RewardBench, win rates |
//! | [`experiment`] | settings, run folders and their locks, checkpoints |
//! | [`grid`] | experiments: arms that differ in some settings, with several seeds; their schedule, results and statistics |
//! | [`memory`] | what each stage will need, told before it runs |
//! | [`report`] | metrics, tables, the page with its plots, texts cut into segments, what the paper reports |
//! | [`cli`] | arguments in, checked settings out, one stage called |
//! | [`statistics`] | means, variances, standard errors |
//! | [`device`], [`rng`], [`control`], [`atomic`], [`host`], [`bounds`], [`error`] | the device chosen at run time, seeded draws, stop and progress, whole files, this machine, ranges, every error |
//! | [`walkthrough`] | from the paper to the code, by example |
//!
//! An equation module does no I/O, reads no settings and draws no random number. Training, rollouts and report
//! use the same functions. The labels E1 to E10, the tests of each and the numbered departures from paper and
//! official code stand in the repository's folder `paper`.
//!
//! [`report::metrics::IterationMetrics`] is the glossary of what PPO logs; every setting is documented where its
//! default stands, in [`experiment::settings::DEFAULTS`].
//!
//! # Examples
//!
//! What is one action, and what is each of its tokens worth?
//!
//! ```
//! use segment_rlhf::equations::interpolation::{Interpolation, interpolate};
//! use segment_rlhf::equations::segmentation::{Rule, EosPolicy, ResponseView, segments};
//!
//! let entropies = &[0.3, 2.1, 0.4]; // nats
//! let response = ResponseView { entropies, sentence_ends: &[false; 3], ends_with_eos: false };
//! let cut = Rule::Entropy { cutoff: 1.75 }; // nats
//! let actions = segments(cut, EosPolicy::AsPublished, response).unwrap();
//! assert_eq!(actions, [0..1, 1..3]);
//! let rewards = interpolate(Interpolation::EvenSplit, &[1.0, 3.0], &actions, 3);
//! assert_eq!(rewards, [1.0, 1.5, 1.5]);
//! ```
//!
//! A stage, as the command line runs it: settings, a [`stage::Context`], and the stage's `run`.
//!
//! ```
//! use segment_rlhf::settings::Settings;
//! use segment_rlhf::systems::Method;
//!
//! let sets = ["method=token".to_owned(), "ppo.iterations=24".to_owned()];
//! let settings = Settings::resolve(&[], &sets).unwrap();
//! assert_eq!((settings.method, settings.ppo.iterations), (Method::TOKEN, 24));
//! ```

pub mod atomic;
pub mod benchmark;
pub mod bounds;
pub mod cli;
pub mod data;
pub mod device;
pub mod equations;
pub mod grid;
pub mod host;
pub mod model;
pub mod report;
pub mod rng;
pub mod run;
pub mod settings;
pub mod stage;
pub mod statistics;
pub mod stop;
pub mod systems;
pub mod table;
pub mod walkthrough;

/// The commit that the program was built from, with `-dirty` behind it where files were changed; `None` where git
/// did not know.
pub const COMMIT: Option<&str> = option_env!("SEGMENT_RLHF_COMMIT");

/// The examples of the README, as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
