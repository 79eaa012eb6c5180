//! Where a step's time goes on the CPU: what each primitive, each launch of the pool and each thread took.
//!
//! While a profile is taken, the primitives' CPU kernels note when they begin and end. Stock ops between them are not
//! noted: their time, MLX's queue and freeing what is no longer needed appear as the gaps before the next primitive.
//! Without a profile this costs one load of a flag for each launch and thread.

use std::collections::BTreeMap;
use std::fmt;

use zmlx_sys::ffi;

use crate::error::Result;

/// What a [`Span`] covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A primitive's work on its stream.
    Op,
    /// Work that went to the thread pool.
    Launch,
    /// Work too small for the pool, done by the stream's own thread.
    Inline,
    /// A thread's part in a launch.
    Part,
}

/// One stretch of work of one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The primitive.
    pub name: String,
    /// What it covers.
    pub kind: Kind,
    /// Threads are numbered in the order in which they first did something.
    pub thread: u32,
    /// Nanoseconds, from an arbitrary moment on.
    pub begin_ns: i64,
    /// Likewise.
    pub end_ns: i64,
    /// Tasks of a launch, or those that a thread ran; 0 of a primitive.
    pub tasks: i64,
    /// When a primitive was handed to its stream; `None` of the others and where that was before the profile.
    pub queued_ns: Option<i64>,
}

/// What [`stop`] hands out.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// By their beginnings.
    pub spans: Vec<Span>,
    /// Spans for which there was no room.
    pub dropped: i64,
}

/// Starts a profile of at most `capacity` spans (48 bytes each). One that is being taken is forgotten.
///
/// # Errors
/// `Mlx` when there is not so much memory.
pub fn start(capacity: usize) -> Result<()> {
    Ok(ffi::profile_start(i64::try_from(capacity).unwrap_or(i64::MAX))?)
}

/// Ends the profile, without what still runs: call it after [`crate::eval`] of what was started. Empty without a
/// [`start`].
pub fn stop() -> Profile {
    let rows = ffi::profile_stop();
    let mut spans: Vec<Span> = rows
        .spans
        .into_iter()
        .map(|s| {
            let kind = match s.kind {
                0 => Kind::Op,
                1 => Kind::Launch,
                2 => Kind::Inline,
                _ => Kind::Part,
            };
            let is_op = kind == Kind::Op;
            Span {
                name: s.name,
                kind,
                thread: s.thread,
                begin_ns: s.begin_ns,
                end_ns: s.end_ns,
                tasks: if is_op { 0 } else { s.tasks },
                queued_ns: (is_op && s.tasks != 0).then_some(s.tasks),
            }
        })
        .collect();
    spans.sort_by_key(|s| s.begin_ns);
    Profile { spans, dropped: rows.dropped }
}

/// A primitive's sums over a profile, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    ops: usize,
    op: f64,
    gap_before: f64,
    late: f64,
    launches: usize,
    launch: f64,
    wake_up: f64,
    busy: f64,
    parts: usize,
}

impl Profile {
    fn sums(&self) -> BTreeMap<&str, Sums> {
        let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
        let mut last_end = BTreeMap::new(); // of each stream's thread
        let mut launch = BTreeMap::new(); // the last one of each primitive
        for s in &self.spans {
            let of = sums.entry(&s.name).or_default();
            let took = micros(s.end_ns - s.begin_ns);
            match s.kind {
                Kind::Op => {
                    of.ops += 1;
                    of.op += took;
                    if let Some(end) = last_end.insert(s.thread, s.end_ns) {
                        of.gap_before += micros((s.begin_ns - end).max(0));
                        let queued = s.queued_ns.unwrap_or(end);
                        of.late += micros((queued - end).max(0));
                    }
                }
                Kind::Launch => {
                    of.launches += 1;
                    of.launch += took;
                    launch.insert(&s.name, s.begin_ns);
                }
                Kind::Inline => {}
                Kind::Part => {
                    of.parts += 1;
                    of.busy += took;
                    of.wake_up += launch.get(&s.name).map_or(0.0, |&b| micros(s.begin_ns - b));
                }
            }
        }
        sums
    }

    /// The spans in the format that Chrome's `about:tracing` and Perfetto open.
    ///
    /// # Source
    /// "Trace Event Format", complete events.
    pub fn to_chrome_trace(&self) -> String {
        let origin = self.spans.first().map_or(0, |s| s.begin_ns);
        let events: Vec<String> = self
            .spans
            .iter()
            .map(|s| {
                let name = if s.kind == Kind::Op { s.name.clone() } else { format!("{} {:?}", s.name, s.kind) };
                format!(
                    r#"{{"name":"{name}","cat":"{:?}","ph":"X","pid":1,"tid":{},"ts":{:.3},"dur":{:.3},"args":{{"tasks":{}}}}}"#,
                    s.kind,
                    s.thread,
                    micros(s.begin_ns - origin),
                    micros(s.end_ns - s.begin_ns),
                    s.tasks
                )
            })
            .collect();
        format!("{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{}\n]}}\n", events.join(",\n"))
    }
}

fn micros(ns: i64) -> f64 {
    ns as f64 / 1e3
}

/// A table: for each primitive its time, what went by before it and how much of that before it was handed to its stream
/// (`late`: whoever builds the graph was behind), and of its launches how long threads took to come and how much of the
/// threads' time was work.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = f64::from(crate::num_threads());
        let sums = self.sums();
        let mut rows: Vec<_> = sums.iter().filter(|(_, s)| s.ops > 0).collect();
        rows.sort_by(|a, b| b.1.op.total_cmp(&a.1.op));
        writeln!(
            f,
            "{:<22}{:>7}{:>11}{:>12}{:>9}{:>10}{:>11}{:>10}{:>8}",
            "primitive",
            "ops",
            "us",
            "us before",
            "late",
            "launches",
            "us in them",
            "wake-up",
            "busy"
        )?;
        let mut all = (0.0, 0.0, 0.0);
        for (name, s) in rows {
            all = (all.0 + s.op, all.1 + s.gap_before, all.2 + s.late);
            write!(
                f,
                "{name:<22}{:>7}{:>11.0}{:>12.0}{:>9.0}{:>10}",
                s.ops, s.op, s.gap_before, s.late, s.launches
            )?;
            if s.launches > 0 {
                let wake_up = s.wake_up / s.parts.max(1) as f64;
                let busy = 100.0 * s.busy / (s.launch * threads);
                write!(f, "{:>11.0}{wake_up:>10.2}{busy:>7.0}%", s.launch)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "{:<29}{:>11.0}{:>12.0}{:>9.0}", "all", all.0, all.1, all.2)?;
        if self.dropped > 0 {
            writeln!(f, "{} more spans had no room", self.dropped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(kind: Kind, thread: u32, begin_ns: i64, end_ns: i64) -> Span {
        Span { name: "Matmul".into(), kind, thread, begin_ns, end_ns, tasks: 4, queued_ns: None }
    }

    #[test]
    fn sums_tell_gaps_wake_ups_and_work() {
        let spans = vec![
            span(Kind::Op, 0, 0, 10_000),
            span(Kind::Launch, 0, 1_000, 9_000),
            span(Kind::Part, 0, 1_000, 8_000),
            span(Kind::Part, 1, 3_000, 8_000),
            Span { queued_ns: Some(12_000), ..span(Kind::Op, 0, 15_000, 16_000) },
        ];
        let profile = Profile { spans, dropped: 0 };
        let expected = Sums {
            ops: 2,
            op: 11.0,
            gap_before: 5.0,
            late: 2.0,
            launches: 1,
            launch: 8.0,
            wake_up: 2.0,
            busy: 12.0,
            parts: 2,
        };
        assert_eq!(profile.sums()["Matmul"], expected);
        assert!(profile.to_string().contains("Matmul"), "{profile}");
    }

    #[test]
    fn trace_has_a_complete_event_for_each_span() {
        let profile = Profile { spans: vec![span(Kind::Op, 3, 5_000, 7_500)], dropped: 0 };
        let event = r#"{"name":"Matmul","cat":"Op","ph":"X","pid":1,"tid":3,"ts":0.000,"dur":2.500,"args":{"tasks":4}}"#;
        assert!(profile.to_chrome_trace().contains(event), "{}", profile.to_chrome_trace());
    }
}
