//! Samples that wait for a later iteration: SPO's replay of edges.
//!
//! Each iteration adds the edges of its trees, drops those that have waited too long, and learns from some edges of each
//! prompt, drawn from all that wait for it, old and new alike; these leave. An old edge keeps the log-probabilities and the
//! advantage of its birth.

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::sample::Sample;
use crate::rng::Stream;

/// How many edges an iteration learns from, and how long others wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The most edges of a prompt in an iteration.
    pub edges: usize,
    /// The iterations after which an edge is dropped.
    pub age: usize,
}

/// What waits, in the order in which it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool<T> {
    waiting: Vec<Waiting<T>>,
}

/// An item with its prompt and the iteration of its birth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Waiting<T> {
    prompt: Vec<u32>,
    born: usize,
    item: T,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { waiting: Vec::new() }
    }
}

impl<T> Pool<T> {
    /// Adds the items of an iteration, each with its prompt, and drops those of `age` iterations and more.
    pub fn admit(
        &mut self,
        items: impl IntoIterator<Item = (Vec<u32>, T)>,
        iteration: usize,
        age: usize,
    ) {
        let new = items.into_iter().map(|(prompt, item)| Waiting { prompt, born: iteration, item });
        self.waiting.extend(new);
        self.waiting.retain(|waiting| iteration - waiting.born < age);
    }

    /// The numbers of what an iteration learns from, rising: of each prompt so many at most, drawn.
    pub fn draw(&self, most: usize, rng: &mut Stream) -> Vec<usize> {
        let mut prompts: Vec<(&[u32], Vec<usize>)> = Vec::new();
        for (i, waiting) in self.waiting.iter().enumerate() {
            match prompts.iter_mut().find(|(prompt, _)| *prompt == waiting.prompt) {
                Some((_, own)) => own.push(i),
                None => prompts.push((&waiting.prompt, vec![i])),
            }
        }
        let mut drawn = Vec::new();
        for (_, mut own) in prompts {
            own.shuffle(rng);
            drawn.extend(own.into_iter().take(most));
        }
        drawn.sort_unstable();
        drawn
    }

    /// Takes the items with these numbers, which rise.
    pub fn take(&mut self, numbers: &[usize]) -> Vec<T> {
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        let mut numbers = numbers.iter().peekable();
        for (i, waiting) in std::mem::take(&mut self.waiting).into_iter().enumerate() {
            match numbers.next_if(|&&number| number == i) {
                Some(_) => taken.push(waiting.item),
                None => left.push(waiting),
            }
        }
        self.waiting = left;
        taken
    }

    /// The prompt and the birth of each item that waits.
    pub fn waiting(&self) -> impl Iterator<Item = (&[u32], usize)> {
        self.waiting.iter().map(|waiting| (&waiting.prompt[..], waiting.born))
    }
}

impl Pool<Sample> {
    /// What an iteration learns from in place of its own samples: edges, at least `least` of them. Where too few teach, samples
    /// that teach nothing are among them, so that every minibatch has a row.
    pub fn exchange(
        &mut self,
        samples: &[Sample],
        iteration: usize,
        replay: Replay,
        least: usize,
        rng: &mut Stream,
    ) -> Vec<Sample> {
        let edges = samples.iter().flat_map(Sample::teaching_edges);
        let edges = edges.map(|edge| (edge.prompt.clone(), edge));
        self.admit(edges, iteration, replay.age);
        let mut taken = self.take(&self.draw(replay.edges, rng));
        let idle = samples.iter().cycle().take(least.saturating_sub(taken.len()));
        taken.extend(idle.map(|sample| Sample {
            teaches: Some(vec![false; sample.response.len()]),
            ..sample.clone()
        }));
        taken
    }
}
