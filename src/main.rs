//! The program: arguments, one command, one error message, one exit status.

use std::process::ExitCode;

use segment_rlhf::allocator;
use segment_rlhf::cli::Cli;
use segment_rlhf::stage::memory;
use segment_rlhf::stop::say;

/// Training allocates and frees large tensors at every operation: with the C library's allocator a fifth of
/// the time on the CPU goes to page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    memory::hide_exhaustion();
    match Cli::from_process().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
