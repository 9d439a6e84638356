//! The allocator's settings.

/// Keeps freed memory for what is allocated next, instead of handing it back to the system and having it cleared again:
/// a fifth of the time of an update on the CPU. For programs whose allocator is mimalloc; before any thread is started.
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    // `mi_option_purge_delay` of mimalloc 2 and 3, which the crate does not name.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // Safety: the call stores a number that the allocator reads later. It must not race with itself, and does not: it is
    // made once, at the start of a program.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
