//! What a build and machine offer.

use serde_json::Value;

use crate::support::run_plain;

#[test]
fn the_cpu_is_listed_with_what_it_computes_in() {
    let text = run_plain(&["devices"]).ended_with(0).stdout;
    let line = text.lines().find(|line| line.starts_with("| flex")).unwrap();
    assert!(line.contains("| f32, bf16, f16, f64 |"), "{text}");
    if cfg!(target_os = "linux") {
        assert!(line.contains(" threads ") && line.contains("GB "), "{text}");
    }
}

#[test]
fn a_backend_that_is_missing_says_why_and_what_to_do() {
    let json = run_plain(&["devices", "--json"]).ended_with(0).stdout;
    let offers: Vec<Value> = serde_json::from_str(&json).unwrap();
    let text = run_plain(&["devices"]).ended_with(0).stdout;
    for (name, built) in [("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))] {
        let own = |offer: &&Value| offer["device"].as_str().unwrap().starts_with(name);
        let offer = offers.iter().find(own).unwrap_or_else(|| panic!("{name} is not in {json}"));
        let Some(missing) = offer["missing"].as_str() else {
            assert!(built && offer["computes"][0] == "f32", "{json}");
            continue;
        };
        assert!(text.contains(&format!("\n{name}: {missing}\n")), "{text}");
        let remedy = format!("build with `cargo build --release --features {name}`");
        assert_eq!(missing.contains(&remedy), !built, "{missing}");
        assert!(!built || missing.contains("install"), "{missing}");
    }
}

/// Without a driver the loader finds no adapter; nothing panics, and what needs one is refused.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn without_a_driver_wgpu_is_refused_with_what_to_install() {
    use crate::support::program_with_env;
    let run = tempfile::TempDir::new().unwrap();
    let none = [
        ("VK_DRIVER_FILES", "/none"),
        ("VK_ICD_FILENAMES", "/none"),
        ("LIBGL_DRIVERS_PATH", "/none"),
        ("__EGL_VENDOR_LIBRARY_FILENAMES", "/none"),
    ];
    let output = program_with_env(run.path(), &["sft", "--device", "wgpu"], &none);
    output.ended_with(2).says(&["error: --device wgpu: no adapter found; install"]);
    assert_eq!(crate::support::files(run.path()), [""; 0].map(std::path::PathBuf::from));
}

/// Where there is an adapter, an index behind the last one names those that there are.
#[cfg(feature = "wgpu")]
#[test]
fn an_index_out_of_range_is_refused_with_those_that_there_are() {
    let run = tempfile::TempDir::new().unwrap();
    let output = crate::support::program(run.path(), &["sft", "--device", "wgpu:99"]);
    let output = output.ended_with(2).says(&["error: --device wgpu:99: "]);
    if !output.stderr.contains("no adapter found") {
        output.says(&["this machine has"]);
    }
}
