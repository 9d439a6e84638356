//! Gradient checkpointing by layer: the forward pass runs without autodiff and keeps the input of each layer;
//! the backward pass runs each layer again, with autodiff, from the last to the first. So the activations of
//! one layer are held at a time, for one more forward pass.
//!
//! A layer y = f(x) gets the gradient g of its output as that of the loss (y · g).sum(), whose gradient by x is
//! the next layer's g.

use std::sync::{Arc, Mutex};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use super::grid::Grid;
use super::names::HEAD;

/// Forward passes whose backward passes have not come yet.
#[derive(Clone, Debug, Default)]
pub struct Tape(Arc<Mutex<Vec<Pass>>>);

/// A forward pass over all columns of a grid up to `end`.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    pub(super) grid: Grid,
    pub(super) end: usize,
    /// The input of each layer, without autodiff.
    pub(super) inputs: Vec<Tensor<2>>,
    /// The output of the last: a leaf of the graph that leads to the loss.
    pub(super) output: Tensor<2>,
}

impl Tape {
    pub(super) fn push(&self, pass: Pass) {
        self.0.lock().expect("no pass panics").push(pass);
    }

    pub(super) fn take(&self) -> Vec<Pass> {
        std::mem::take(&mut self.0.lock().expect("no pass panics"))
    }
}

/// A model that can be trained with its layers computed again in the backward pass.
pub trait Trainable: Module {
    /// A copy that shares the parameters' values and nothing else, so that it can be read beside this one: autodiff
    /// keeps the graphs of both apart.
    fn rank(&self) -> Self;

    /// Gives `add` the gradients that a backward pass has left out, from those that it has found.
    fn replay(&self, found: &Gradients, add: &mut dyn FnMut(GradientsParams));
}

/// Whether `model` has adapters.
pub fn is_adapted<M: Module>(model: &M) -> bool {
    struct Find(bool);
    impl ModuleVisitor for Find {
        fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<D>>) {}
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0 |= name == "lora";
        }
    }
    let mut find = Find(false);
    model.visit(&mut find);
    find.0
}

/// Whether training changes the parameter called `name` of a model that is `adapted` or not: with adapters,
/// them and a scalar head alone.
pub fn is_trained(adapted: bool, name: &str) -> bool {
    !adapted || name == HEAD || name.contains(".lora.")
}
