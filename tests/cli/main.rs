//! The program as a user types it, end to end, on models so small that a stage takes a tenth of a second.

mod ablate;
mod bad_input;
mod benchmark;
#[cfg(unix)]
mod browser;
mod card;
#[cfg(unix)]
mod crash;
mod decode;
mod devices;
mod display;
mod errors;
mod export;
mod first_hour;
#[cfg(unix)]
mod full_disk;
mod help;
#[cfg(unix)]
mod hub;
mod inputs;
mod length;
mod locks;
mod lora;
mod memory;
mod page;
mod ranks;
mod real_input;
mod regressions;
mod resume;
#[cfg(unix)]
mod signals;
#[cfg(unix)]
mod slurm;
mod support;
mod tensorboard;
