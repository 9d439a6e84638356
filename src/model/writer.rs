//! Writing responses one at a time, with tokens that can be taken back.

use burn::tensor::Tensor;

use super::cache::KvCache;
use super::config::ModelConfig;
use super::decoder::CausalLm;
use super::generate::{Cores, read_on, to_vec};
use super::grid::Grid;
use super::shards::over_ranks;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::equations::segmentation::entropy;
use crate::rng::Stream;
use crate::stop::{Interrupted, Stop};

/// A response to one prompt under way.
pub struct Writer<'a> {
    model: &'a CausalLm,
    stop: &'a Stop,
    /// The prompt and the response.
    tokens: Vec<u32>,
    prompt: usize,
    longest: usize,
    cache: KvCache,
    next: Option<Next>,
}

/// What the model says of the token to come.
#[derive(Clone)]
struct Next {
    tensor: Tensor<3>, // [1, 1, vocabulary]
    logits: Vec<f32>,
}

/// A place in a response to go back to.
pub struct Mark {
    tokens: usize,
    next: Next,
}

impl<'a> Writer<'a> {
    fn new(
        model: &'a CausalLm,
        config: &ModelConfig,
        prompt: &[u32],
        most: usize,
        stop: &'a Stop,
    ) -> Self {
        let longest = (prompt.len() + most).min(config.length_limit().tokens);
        assert!(!prompt.is_empty() && prompt.len() < longest, "a prompt leaves room for a token");
        let cache = KvCache::new(config, 1, longest, (&model.device(), model.dtype()));
        let (tokens, prompt) = (prompt.to_vec(), prompt.len());
        Self { model, stop, tokens, prompt, longest, cache, next: None }
    }

    /// The response so far.
    pub fn response(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }

    /// Whether it has as many tokens as it may have, or with its prompt as many as the model was made for.
    pub fn is_full(&self) -> bool {
        self.tokens.len() == self.longest
    }

    /// Writes a token.
    ///
    /// # Panics
    ///
    /// If the response is full.
    pub fn push(&mut self, token: u32) {
        assert!(!self.is_full(), "a response that is full takes no token");
        self.tokens.push(token);
        self.next = None;
    }

    /// The logits of the next token, `[vocabulary]`; the model reads what it has not seen yet.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] when the writer's stop is asked for.
    pub fn logits(&mut self) -> Result<&[f32], Interrupted> {
        Ok(&self.next()?.logits)
    }

    /// The entropy of the next token (E1), nats.
    ///
    /// # Errors
    ///
    /// As [`Writer::logits`].
    pub fn entropy(&mut self) -> Result<f64, Interrupted> {
        Ok(f64::from(to_vec(entropy(self.next()?.tensor.clone()))[0]))
    }

    /// This place, to go back to.
    ///
    /// # Errors
    ///
    /// As [`Writer::logits`].
    pub fn mark(&mut self) -> Result<Mark, Interrupted> {
        let next = self.next()?.clone();
        Ok(Mark { tokens: self.tokens.len(), next })
    }

    /// Takes back all tokens behind `mark`; what the model has read before them is kept.
    ///
    /// # Panics
    ///
    /// If the mark is ahead.
    pub fn back_to(&mut self, mark: &Mark) {
        assert!(mark.tokens <= self.tokens.len(), "a mark is behind");
        self.tokens.truncate(mark.tokens);
        self.cache.truncate(mark.tokens);
        self.next = Some(mark.next.clone());
    }

    fn next(&mut self) -> Result<&Next, Interrupted> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let columns = self.tokens.len();
                let grid = Grid::new([(0, self.tokens.clone())], columns);
                let tensor = read_on(self.model, &grid, columns, &mut self.cache, self.stop)?;
                Next { logits: to_vec(tensor.clone()), tensor }
            }
        };
        Ok(self.next.insert(next))
    }
}

/// What `write` makes of each prompt, with a writer of at most `most` tokens and the prompt's stream. Prompts are written
/// side by side on the CPU, each alone, so that nothing depends on the others.
///
/// # Errors
///
/// Those of `write`.
///
/// # Panics
///
/// If a prompt is empty or leaves no room for a token, or there is not one stream a prompt.
pub fn write_each<T, E>(
    model: &CausalLm,
    config: &ModelConfig,
    prompts: &[&[u32]],
    most: usize,
    streams: Vec<Stream>,
    stop: &Stop,
    write: impl Fn(&[u32], Writer<'_>, Stream) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E>
where
    T: Send + Serialize + DeserializeOwned,
    E: Send + From<Interrupted>,
{
    assert_eq!(streams.len(), prompts.len(), "one stream a prompt");
    let cores = Cores::of(model);
    let model = &model.for_generation(cores == Cores::ShareProducts);
    stop.check()?;
    let shards = cores.shards(prompts.len(), &model.device());
    over_ranks(vec![shards], |shard| {
        let rows = prompts[shard.clone()].iter().zip(&streams[shard]);
        rows.map(|(&prompt, stream)| {
            write(prompt, Writer::new(model, config, prompt, most, stop), stream.clone())
        })
        .collect::<Result<Vec<T>, E>>()
    })
}
