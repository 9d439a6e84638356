//! Segment-level RLHF (Yin et al., "Segmenting Text and Learning Their Rewards for Improved RLHF in Language
//! Model", arXiv 2501.02790) on [Burn](https://burn.dev): the equations, the models and the whole pipeline.
//!
//! - [`equations`]: every equation as a plain function, in a module of its own
//! - [`systems`]: the methods, and the interface of a system: rollouts, rule, rewards, credit, loss
//! - [`model`]: the decoder, its heads and cache, generation, LoRA, Hugging Face checkpoints, the optimizer
//! - [`stage`]: `sft`, `preferences`, `reward`, `fit_normalizer`, `online` and `evaluate`, each with a `run`
//! - [`data`], [`settings`], [`run`]: what stages read and write: pairs and prompts, settings, folders and logs
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
//! A module imports from lower floors only, and no files import each other in a circle. `tests/floors.rs` reads this
//! diagram and every import:
//!
//! ```text
//! 9  cli                             arguments, one call, exit codes
//! 8  report                          plots, texts, the page
//! 7  grid, benchmark                 experiments: arms × seeds, one driver, statistics; public benchmarks
//! 6  stage                           sft, preferences, reward, normalizer, the PPO loop, evaluation, export
//! 5  run                             a stage's folder, lock, checkpoint, log and key; progress; metrics
//! 4  settings                        the sections put together, overlays, --set
//! 3  systems                         one file a system: rollouts, rule, rewards, credit, loss
//! 2  data                            pairs, prompts, tokenizers, templates, the embedded task
//! 2  model                           decoder, cache, generation, heads, LoRA, Hugging Face files, optimizer
//! 1  equations                       one file each: no I/O, no settings, no draws
//! 0  allocator atomic bounds device file_error host hub ranks rng statistics stop table
//! ```
//!
//! The labels E1 to E10, the tests of each equation and the numbered deviations from paper and official code are in the
//! repository's folder `paper`. [`run::metrics::IterationMetrics`] is the glossary of what PPO logs. Every setting is
//! documented beside its default, in [`settings::DEFAULTS`].
//!
//! # Examples
//!
//! What is one action, and what is each of its tokens worth?
//!
//! ```
//! use segment_rlhf::equations::interpolation::{Interpolation, interpolate};
//! use segment_rlhf::equations::segmentation::{EosPolicy, ResponseView, Rule, segments};
//!
//! let entropies = &[0.3, 2.1, 0.4]; // nats
//! let response = ResponseView { entropies, sentence_ends: &[false; 3], ends_with_eos: false };
//! let rule = Rule::Entropy { cutoff: 1.75 }; // nats
//! let actions = segments(rule, EosPolicy::AsPublished, response).unwrap();
//! assert_eq!(actions, [0..1, 1..3]);
//! let rewards = interpolate(Interpolation::EvenSplit, &[1.0, 3.0], &actions, 3);
//! assert_eq!(rewards, [1.0, 1.5, 1.5]);
//! ```
//!
//! A stage, as the command line runs it:
//!
//! ```no_run
//! use segment_rlhf::device::DeviceName;
//! use segment_rlhf::run::Context;
//! use segment_rlhf::settings::Settings;
//! use segment_rlhf::stage::sft;
//!
//! let sets = ["method=token".to_owned(), "ppo.iterations=24".to_owned()];
//! let settings = Settings::resolve(&[], &sets).unwrap();
//! let context = Context::new(settings, DeviceName::Flex, "runs/mine".into()).unwrap();
//! let summary = sft::run(&context).unwrap();
//! println!("{} nats a held-out token", summary.held_out_cross_entropy);
//! ```

pub mod data;
pub mod device;
pub mod equations;
pub mod model;
pub mod run;
pub mod settings;
pub mod stage;
pub mod statistics;
pub mod systems;

// What the program and the tests need beyond the library.
#[doc(hidden)]
pub mod allocator;
#[doc(hidden)]
pub mod atomic;
#[doc(hidden)]
pub mod benchmark;
#[doc(hidden)]
pub mod bounds;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod file_error;
#[doc(hidden)]
pub mod grid;
#[doc(hidden)]
pub mod host;
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod ranks;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod rng;
#[doc(hidden)]
pub mod stop;
#[doc(hidden)]
pub mod table;

/// The commit that the program was built from, with `-dirty` behind it if files were changed; `None` if git did not
/// know.
pub const COMMIT: Option<&str> = option_env!("SEGMENT_RLHF_COMMIT");

/// The examples of the pages, as tests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/experiments.md")]
    mod experiments {}
    #[doc = include_str!("../docs/library.md")]
    mod library {}
    #[doc = include_str!("../docs/systems.md")]
    mod systems {}
    #[doc = include_str!("../docs/walkthrough.md")]
    mod walkthrough {}
}
