//! Segment-level systems, one file each, behind one interface.
//!
//! A system of the PPO family makes five choices, and the loop in [`online`](crate::stage::online) does the rest:
//!
//! ```text
//! Rollouts   which continuations are sampled of a prompt
//! Rule       what a segment is (E1)
//! Rewards    where the reward of a segment comes from
//! Credit     what each token's advantage is
//! Loss       what the policy learns from them
//! ```
//!
//! Rules and losses are pure functions behind an enum. Rewards and credit hold models and may sample, so they are
//! traits. A [`Method`] is a row of a system's table: a name for settings and folders, and a `build` that makes the
//! five choices. To add a system, write its file and name it in [`SYSTEMS`]; nothing in `stage`, `grid`, `report` or
//! `cli` changes.

pub mod asr;
pub mod chunk;
pub mod decode;
pub mod dpo;
pub mod drlc;
pub mod error;
pub mod group;
pub mod interface;
pub mod judge;
pub mod lens;
pub mod loss;
pub mod pairs;
pub mod paper;
pub mod replay;
pub mod reward_model;
pub mod rewards;
pub mod sample;
pub mod settings;
pub mod spo;

use std::sync::LazyLock;

use clap::builder::PossibleValue;
use serde::de::{Deserialize, Deserializer, Error as _};

pub use self::chunk::{Chunk, Clipped, Minibatch};
pub use self::error::SystemError;
pub use self::interface::{Credit, Draw, Method, Parts, Rewards, Rollouts, Row, System};
pub use self::interface::{TaskParts, Training, Truth};
pub use self::judge::{Judge, Verdict};
pub use self::loss::{Batch, Loss};
pub use self::pairs::{PairBatch, PairView, Weights};
pub use self::replay::{Pool, Replay};
pub use self::reward_model::{RewardModel, Segmented, Segmenter, score_sequences};
pub use self::sample::{Edge, Path, Rewarded, Sample};
pub use self::settings::{DpoSettings, PpoSettings};
use crate::bounds::{Nested, section};

/// The registry: the methods of every system.
pub const SYSTEMS: &[&[Method]] = &[
    &paper::METHODS,
    &group::METHODS,
    &spo::METHODS,
    &drlc::METHODS,
    &lens::METHODS,
    &dpo::METHODS,
    &asr::METHODS,
];

section! {
    /// The section `[systems]`: a section for each system that has settings of its own.
    SystemsSettings {
        group: group::Settings = Nested,
        spo: spo::Settings = Nested,
        asr: asr::Settings = Nested,
        drlc: drlc::Settings = Nested,
        lens: lens::Settings = Nested,
    }
}

impl SystemsSettings {
    /// The key that does not go with the section `[ppo]` for a method, with its value and what was expected.
    pub fn check(&self, method: Method, ppo: &PpoSettings) -> Option<(String, String)> {
        let (key, problem) = (method.0.check)(ppo, self.section(method)?)?;
        Some((format!("systems.{}.{key}", method.0.section?), problem))
    }

    /// The section of a method's system, if it has one.
    pub fn section(&self, method: Method) -> Option<toml::Value> {
        let all = toml::Table::try_from(self).expect("settings serialise");
        method.0.section.map(|name| all[name].clone())
    }
}

static ALL: LazyLock<Vec<Method>> = LazyLock::new(|| SYSTEMS.concat());

impl Method {
    /// The methods of all systems.
    pub fn all() -> &'static [Self] {
        &ALL
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::all().iter().find(|method| method.name() == name).copied().ok_or_else(|| {
            let names: Vec<String> =
                Self::all().iter().map(|method| format!("`{}`", method.name())).collect();
            D::Error::custom(format!(
                "unknown variant `{name}`, expected one of {}",
                names.join(", ")
            ))
        })
    }
}

impl clap::ValueEnum for Method {
    fn value_variants<'a>() -> &'a [Self] {
        Self::all()
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.0.about))
    }
}
