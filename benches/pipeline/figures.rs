//! The figures, beside what they are to reach: as a Markdown table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a figure is to reach.
#[derive(Clone, Copy)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
    None,
}

/// All figures of a run.
#[derive(Default)]
pub struct Figures(Vec<(String, f64, &'static str, Aim)>);

impl Figures {
    pub fn add(&mut self, name: impl Into<String>, value: f64, unit: &'static str, aim: Aim) {
        let name = name.into();
        println!("{name}: {} {unit}", pretty(value));
        self.0.push((name, value, unit, aim));
    }

    pub fn markdown(&self) -> String {
        let mut table = String::from("| figure | value | aim | reached |\n|---|---:|---:|---|\n");
        for (name, value, unit, aim) in &self.0 {
            let (aim, reached) = match aim {
                Aim::AtLeast(least) => (format!("≥ {} {unit}", pretty(*least)), if value >= least { "yes" } else { "**no**" }),
                Aim::AtMost(most) => (format!("≤ {} {unit}", pretty(*most)), if value <= most { "yes" } else { "**no**" }),
                Aim::None => (String::new(), ""),
            };
            let _ = writeln!(table, "| {name} | {} {unit} | {aim} | {reached} |", pretty(*value));
        }
        table
    }

    pub fn json(&self) -> Value {
        let figure = |(name, value, unit, aim): &(String, f64, &str, Aim)| {
            let (at_least, at_most) = match aim {
                Aim::AtLeast(least) => (Some(*least), None),
                Aim::AtMost(most) => (None, Some(*most)),
                Aim::None => (None, None),
            };
            json!({ "name": name, "value": value, "unit": unit, "at_least": at_least, "at_most": at_most })
        };
        json!({ "figures": self.0.iter().map(figure).collect::<Vec<_>>() })
    }
}

/// Three significant digits, thousands apart.
pub fn pretty(value: f64) -> String {
    if value.abs() >= 1000.0 {
        let text = format!("{value:.0}");
        let mut grouped = String::new();
        for (at, digit) in text.chars().enumerate() {
            if at > 0 && (text.len() - at).is_multiple_of(3) {
                grouped.push(' ');
            }
            grouped.push(digit);
        }
        grouped
    } else if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The value in the middle; of an even number of them, what lies between the two.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    let lower = values.len().saturating_sub(1) / 2;
    values.get(lower).zip(values.get(upper)).map_or(f64::NAN, |(lower, upper)| f64::midpoint(*lower, *upper))
}

/// The value in the middle of what was measured.
pub fn middle<T>(measured: &[T], value: impl Fn(&T) -> f64) -> f64 {
    median(measured.iter().map(value).collect())
}

/// By how much the greatest is more than the least, in percent.
pub fn spread(values: &[f64]) -> f64 {
    let (least, most) = values.iter().fold((f64::MAX, 0.0_f64), |(least, most), &value| (least.min(value), most.max(value)));
    (most / least - 1.0) * 100.0
}

/// The value below which a share of all lies, in milliseconds of nanoseconds.
pub fn percentile(nanos: &mut [u64], share: f64) -> f64 {
    nanos.sort_unstable();
    let at = ((nanos.len() as f64 * share) as usize).min(nanos.len().saturating_sub(1));
    nanos.get(at).map_or(f64::NAN, |&value| value as f64 / 1e6)
}
