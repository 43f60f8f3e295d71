//! Runs as a picture: the open connections' rate above, new connections a second below, over time.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::{
    chart::ChartBuilder,
    drawing::IntoDrawingArea as _,
    element::{PathElement, Rectangle},
    series::LineSeries,
    style::{Color as _, RGBColor, WHITE},
};

use super::Run;
use crate::load::FloodKind;

/// Colours by mode, in the order of the runs.
const COLOURS: [RGBColor; 3] = [
    RGBColor(200, 60, 50),
    RGBColor(40, 100, 190),
    RGBColor(40, 140, 70),
];
/// Of the time of the flood.
const FLOOD: RGBColor = RGBColor(225, 225, 225);
/// Seconds in which new connections are counted.
const STEP_S: f64 = 0.5;

/// Draws one run of each mode.
pub fn draw(
    file: &Path,
    kind: FloodKind,
    rate: u64,
    [before, during, after]: [u32; 3],
    runs: &[&Run],
) -> Result<()> {
    let svg = SVGBackend::new(file, (900, 640)).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", file.display());
    svg.fill(&WHITE).map_err(|e| failed(&e))?;
    let (top, bottom) = svg.split_vertically(320);
    let (from, to) = (-f64::from(before), f64::from(during + after));
    let open: Vec<Vec<(f64, f64)>> = runs.iter().map(|run| run.series.open.clone()).collect();
    let connected: Vec<Vec<(f64, f64)>> = runs
        .iter()
        .map(|run| connected(&run.series.attempts, from, to))
        .collect();
    let what = format!("{} flood, {} packets/s wanted", kind.name(), rate);
    for (area, title, lines) in [
        (&top, format!("open connections, Mbit/s ({what})"), &open),
        (
            &bottom,
            format!("new connections, 1/s ({what})"),
            &connected,
        ),
    ] {
        let most = lines.iter().flatten().map(|(_, y)| *y).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(60)
            .build_cartesian_2d(from..to, 0.0..most * 1.15)
            .map_err(|e| failed(&e))?;
        let shade = Rectangle::new(
            [(0.0, 0.0), (f64::from(during), most * 1.15)],
            FLOOD.filled(),
        );
        chart.draw_series([shade]).map_err(|e| failed(&e))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("seconds from the flood's start")
            .draw()
            .map_err(|e| failed(&e))?;
        for ((run, line), colour) in runs.iter().zip(lines).zip(COLOURS) {
            let points = line.iter().copied().filter(|(x, _)| *x >= from && *x <= to);
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|e| failed(&e))?
                .label(run.mode)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .draw()
            .map_err(|e| failed(&e))?;
    }
    svg.present().map_err(|e| failed(&e))?;
    Ok(())
}

/// Attempts that succeeded, a second, by when they began.
fn connected(attempts: &[(f64, Option<f64>)], from: f64, to: f64) -> Vec<(f64, f64)> {
    let steps = ((to - from) / STEP_S) as usize;
    (0..steps)
        .map(|step| {
            let start = from + step as f64 * STEP_S;
            let done = attempts
                .iter()
                .filter(|(at, took)| took.is_some() && *at >= start && *at < start + STEP_S)
                .count();
            (start + STEP_S / 2.0, done as f64 / STEP_S)
        })
        .collect()
}
