//! Metrics: what counts, and how it is written for Prometheus (text format 0.0.4).
//!
//! There is no registry: whoever counts owns its counters, and `app` writes them all when it is
//! asked. What stands in a label is bounded by whoever writes it: no id, no host, and never a value.
//! Called by every layer that counts, and by `app`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper ends of a histogram's buckets, in microseconds and as they are written in seconds.
const BOUNDS: [(u64, &str); 13] = [
    (50, "0.00005"),
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (5_000_000, "5"),
];

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds several.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations, counted by their size.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    /// Those that are longer than every bucket.
    longer: AtomicU64,
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Counts a duration.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut buckets = self.buckets.iter().zip(BOUNDS);
        let bucket = buckets.find(|(_, (bound, _))| micros <= *bound);
        let bucket = bucket.map_or(&self.longer, |(bucket, _)| bucket);
        bucket.fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// A page of metrics in the making.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// What the page says that it is.
    pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Writes numbers that only grow, each with its labels.
    pub fn counters<'a, L>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) where
        L: AsRef<[(&'a str, &'a str)]>,
    {
        self.family(name, help, "counter");
        for (labels, value) in samples {
            self.sample(name, labels.as_ref(), &value.to_string());
        }
    }

    /// Writes a number that only grows.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [([], value)]);
    }

    /// Writes a number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.family(name, help, "gauge");
        self.sample(name, &[], &value.to_string());
    }

    /// Writes durations in seconds.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (own, (_, bound)) in histogram.buckets.iter().zip(BOUNDS) {
            count += own.load(Ordering::Relaxed);
            self.sample(&bucket, &[("le", bound)], &count.to_string());
        }
        count += histogram.longer.load(Ordering::Relaxed);
        self.sample(&bucket, &[("le", "+Inf")], &count.to_string());
        let micros = histogram.sum_micros.load(Ordering::Relaxed);
        let sum = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        self.sample(&format!("{name}_sum"), &[], &sum);
        self.sample(&format!("{name}_count"), &[], &count.to_string());
    }

    /// Returns the text.
    pub fn into_text(self) -> String {
        self.0
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            self.push(format_args!("{label}=\"{}\"", escaped(text)));
        }
        self.push(format_args!(
            "{} {value}\n",
            if labels.is_empty() { "" } else { "}" }
        ));
    }

    #[expect(
        clippy::expect_used,
        reason = "a String takes all that is written to it"
    )]
    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a String");
    }
}

/// Escapes the value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_the_text_format() {
        let count = Counter::default();
        count.increment();
        count.increment();
        let mut page = Page::default();
        page.counter("a_total", "What a is.", count.value());
        let labels = [[("one", "x\"\\\n"), ("two", "y")]];
        page.counters("b_total", "What b is.", labels.map(|labels| (labels, 7)));
        page.gauge("c", "What c is.", 3);
        let expected = "# HELP a_total What a is.\n# TYPE a_total counter\na_total 2\n\
                        # HELP b_total What b is.\n# TYPE b_total counter\n\
                        b_total{one=\"x\\\"\\\\\\n\",two=\"y\"} 7\n\
                        # HELP c What c is.\n# TYPE c gauge\nc 3\n";
        assert_eq!(page.into_text(), expected);
    }

    #[test]
    fn durations_fall_into_every_bucket_from_theirs_on() {
        let histogram = Histogram::default();
        for micros in [0, 50, 51, 1_000, 5_000_000, 5_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut page = Page::default();
        page.histogram("t_seconds", "Times.", &histogram);
        let text = page.into_text();
        for line in [
            "t_seconds_bucket{le=\"0.00005\"} 2",
            "t_seconds_bucket{le=\"0.0001\"} 3",
            "t_seconds_bucket{le=\"0.001\"} 4",
            "t_seconds_bucket{le=\"1\"} 4",
            "t_seconds_bucket{le=\"5\"} 5",
            "t_seconds_bucket{le=\"+Inf\"} 6",
            "t_seconds_sum 10.001102",
            "t_seconds_count 6",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} in {text}");
        }
    }

    #[test]
    fn bounds_rise_and_are_written_as_they_are() {
        for pair in BOUNDS.windows(2) {
            assert!(pair[0].0 < pair[1].0);
        }
        for (micros, text) in BOUNDS {
            let seconds: f64 = text.parse().unwrap();
            assert_eq!(
                Duration::from_micros(micros),
                Duration::from_secs_f64(seconds)
            );
        }
    }
}
