//! Adaptive segment-wise reward: what disagrees with the verdict on its response teaches nothing (arXiv 2411.00809).
//!
//! | method | learns from | what teaches |
//! | --- | --- | --- |
//! | `token_adpo` | preference pairs | tokens whose reward agrees with their response's label |
//! | `segment_adpo` | preference pairs | segments whose mean reward agrees with it |
//! | `appo` | its rollouts | tokens whose value agrees with their advantage |
//!
//! A reconstruction: there is no official code and the text leaves open what a segment is. Rewards are the `token` method's
//! reward model's, normalized by location (E5) so that 0 is the mean; the sign of raw scores of a Bradley-Terry model says
//! nothing. A segment starts where the reward changes by more than `jump`; one that started at every change of sign, too,
//! would have the mask over tokens.

use super::dpo;
use super::error::SystemError;
use super::interface::{Credit, Draw, Method, Parts, Row, System, Training};
use super::pairs::Weights;
use super::paper;
use super::sample::{Sample, wide};
use crate::bounds::{Bounds, section};
use crate::equations::segmentation::Rule;
use crate::equations::sign_mask::advantage_mask;

section! {
    /// The section `[systems.asr]`.
    Settings {
        threshold: f64 = Bounds::Finite,
        jump: f64 = Bounds::NotNegative,
    }
}

/// What both rows of pairs share; each names what is its own.
const ROW: Row = Row {
    paper: "after arXiv 2411.00809, a reconstruction",
    reward_model: Some(Method::TOKEN),
    reward_rule: |_| Rule::Token,
    policy_rule: |_| Rule::Token,
    rewards: "token reward model, normalized (E5)",
    section: Some("asr"),
    ..dpo::ROW
};

impl Method {
    /// DPO over the tokens whose reward agrees with their response's label.
    pub const TOKEN_ADPO: Self = Self(&Row {
        name: "token_adpo",
        about: "DPO over the tokens whose reward agrees with their response's label",
        credit: "tokens that agree",
        training: Training::Offline(|section| Weights::Signs {
            threshold: own(section).threshold,
            jump: None,
        }),
        ..ROW
    });
    /// DPO over the segments whose mean reward agrees with their response's label.
    pub const SEGMENT_ADPO: Self = Self(&Row {
        name: "segment_adpo",
        about: "DPO over the segments whose reward agrees with their response's label",
        credit: "segments that agree, cut where the reward changes",
        training: Training::Offline(|section| {
            let Settings { threshold, jump } = own(section);
            Weights::Signs { threshold, jump: Some(jump) }
        }),
        ..ROW
    });
    /// PPO over the tokens whose value agrees with their advantage.
    pub const APPO: Self = Self(&Row {
        name: "appo",
        about: "PPO over the tokens whose value agrees with their advantage",
        paper: "after arXiv 2411.00809, a reconstruction",
        reward_model: Some(Method::TOKEN),
        reward_rule: |_| Rule::Token,
        policy_rule: |_| Rule::Token,
        rewards: "token reward model, normalized (E5)",
        credit: "as the paper's, tokens that agree",
        section: Some("asr"),
        training: Training::Online(appo),
        ..paper::ROW
    });
}

/// The three methods.
pub const METHODS: [Method; 3] = [Method::TOKEN_ADPO, Method::SEGMENT_ADPO, Method::APPO];

fn own(section: Option<toml::Value>) -> Settings {
    section.expect("a system with a section").try_into().expect("checked when it was read")
}

fn appo<'a>(parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
    let Settings { threshold, .. } = own(parts.section.clone());
    let system = paper::build(parts)?;
    Ok(System { credit: Box::new(Agreeing { credit: system.credit, threshold }), ..system })
}

/// Another credit's advantages, of which those teach that the critic's values agree with.
struct Agreeing<'a> {
    credit: Box<dyn Credit + 'a>,
    threshold: f64,
}

impl Credit for Agreeing<'_> {
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<usize, SystemError> {
        let drawn = self.credit.assign(samples, draw)?;
        for sample in samples {
            let values = wide(sample.values.as_ref().expect("a system with a critic"));
            sample.teaches = Some(advantage_mask(&sample.advantages, &values, self.threshold));
        }
        Ok(drawn)
    }
}
