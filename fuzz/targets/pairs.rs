#![no_main]

#[path = "../inputs.rs"]
#[allow(dead_code)]
mod inputs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    inputs::panics_may_be_caught(); // what starts with PAR1 is Parquet
    inputs::pairs(bytes)
});
