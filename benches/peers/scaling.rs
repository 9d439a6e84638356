//! Time and memory a token against the length of responses, the batch and the vocabulary.
//!
//! `cargo run --release --example scaling` measures each point in a process of its own, prints a table and draws
//! `docs/performance/{length,batch,vocabulary}.svg`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use burn::tensor::Device;
use plotters::prelude::*;
use segment_rlhf::model::generate::{Rows, response_log_probs};
use segment_rlhf::model::optim::Trainer;
use segment_rlhf::model::shards::shards;
use segment_rlhf::model::{CausalLm, Grid, ModelConfig};
use segment_rlhf::settings::Settings;
use segment_rlhf::stop::Stop;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROMPT: usize = 16;

/// Response tokens, rows and vocabulary of a point.
type Point = [usize; 3];

/// Points by their place on an axis.
type Series = Vec<(usize, Point)>;

/// Seconds of reading and of a training step, and peak bytes beyond the weights.
type Cost = [f64; 3];

fn config(vocabulary: usize) -> ModelConfig {
    let base = Settings::defaults().model.config(vocabulary, 4096);
    ModelConfig {
        hidden_size: 128,
        layers: 4,
        heads: 4,
        kv_heads: 4,
        head_dim: 32,
        intermediate_size: 344,
        tie_word_embeddings: true,
        ..base
    }
}

/// The most memory that this process has held, in bytes.
fn peak() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number") * 1024.0
}

/// The least of some seconds.
fn seconds(mut run: impl FnMut()) -> f64 {
    let times = (0..4).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn measure([response, rows, vocabulary]: Point) -> Cost {
    segment_rlhf::allocator::keep_freed_memory();
    let config = config(vocabulary);
    let model = CausalLm::fresh(&config, 0, &Device::flex());
    let row = |i: usize| -> Vec<u32> {
        (0..PROMPT + response).map(|t| ((i + 7 * t) % vocabulary) as u32).collect()
    };
    let tokens: Vec<Vec<u32>> = (0..rows).map(row).collect();
    let batch: Vec<(&[u32], &[u32])> = tokens.iter().map(|row| row.split_at(PROMPT)).collect();
    let before = peak();
    let read = seconds(|| {
        Rows::new(&batch, rows).view(&model, &Stop::default()).unwrap();
    });
    let model = CausalLm::fresh(&config, 0, &Device::flex().autodiff());
    let device = model.device();
    let mut trainer = Trainer::new("policy", model, &Settings::defaults().sft.optimizer, 100);
    let lengths = vec![PROMPT + response; rows];
    let step = seconds(|| {
        trainer.accumulate(shards(&lengths, &device), |model, shard| {
            let (grid, first) = Grid::aligned(batch[shard].iter().copied());
            (response_log_probs(model, &grid, first).0.mean().neg(), [])
        });
        trainer.update().unwrap();
    });
    [read, step, peak() - before]
}

/// The same in a process of its own.
fn apart(point: Point) -> Cost {
    let program = std::env::current_exe().expect("this program");
    let output =
        Command::new(program).args(point.map(|n| n.to_string())).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let numbers: Vec<f64> = text.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    numbers.try_into().expect("three")
}

/// A plot of one cost a token against `axis`, both as multiples of the first point's.
fn draw(name: &str, axis: &str, points: &[(usize, [f64; 3])]) {
    let path = Path::new("docs/performance").join(format!("{name}.svg"));
    let root = SVGBackend::new(&path, (640, 360)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let most = points.iter().flat_map(|(_, costs)| costs).copied().fold(0.0, f64::max);
    let range = (points[0].0 as f64)..(points[points.len() - 1].0 as f64);
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(range.log_scale(), 0.0..1.1 * most)
        .unwrap();
    chart
        .configure_mesh()
        .x_desc(axis)
        .y_desc("cost a token, first point = 1")
        .disable_x_mesh()
        .x_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .draw()
        .unwrap();
    let colors = [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44)];
    let names = ["reading, time", "training step, time", "training step, memory"];
    for (i, (color, name)) in colors.into_iter().zip(names).enumerate() {
        let line = points.iter().map(|(x, costs)| (*x as f64, costs[i]));
        let path = PathElement::new(line.collect::<Vec<_>>(), color.stroke_width(2));
        chart
            .draw_series([path])
            .unwrap()
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .unwrap();
    root.present().unwrap();
}

fn main() {
    let arguments: Vec<usize> =
        std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    if let Ok(point) = Point::try_from(arguments) {
        let [read, step, memory] = measure(point);
        println!("{read} {step} {memory}");
        return;
    }
    fs::create_dir_all("docs/performance").unwrap();
    let lengths = [64, 128, 256, 512, 1024, 2048];
    let series: [(&str, &str, Series); 3] = [
        // As many tokens at every length.
        ("length", "response tokens", lengths.map(|n| (n, [n, 4096 / n, 512])).to_vec()),
        ("batch", "rows", [8, 16, 32, 64, 128].map(|n| (n, [64, n, 512])).to_vec()),
        (
            "vocabulary",
            "vocabulary",
            [512, 2048, 8192, 32768, 128_000].map(|n| (n, [2048, 1, n])).to_vec(),
        ),
    ];
    println!("| response × rows, vocabulary | reading, µs a token | step, µs a token | peak, MB |");
    println!("| --- | ---: | ---: | ---: |");
    for (name, axis, points) in series {
        let mut costs = Vec::new();
        for (x, point) in points {
            let cost = apart(point);
            let [response, rows, vocabulary] = point;
            let tokens = ((PROMPT + response) * rows) as f64;
            let [read, step, memory] = cost;
            println!(
                "| {response} × {rows}, {vocabulary} | {:.1} | {:.1} | {:.0} |",
                1e6 * read / tokens,
                1e6 * step / tokens,
                memory / 1e6
            );
            costs.push((x, cost.map(|cost| cost / tokens)));
        }
        let first = costs[0].1;
        let relative = costs.iter().map(|(x, cost)| (*x, [0, 1, 2].map(|i| cost[i] / first[i])));
        draw(name, axis, &relative.collect::<Vec<_>>());
    }
}
