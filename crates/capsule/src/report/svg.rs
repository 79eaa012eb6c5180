//! Shapes. Colours are classes, so that a page decides what they are in light and in dark.

use std::fmt::Write;

/// A drawing in the making, in units of about a pixel.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text stands.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    fn put(&mut self, shape: std::fmt::Arguments<'_>) {
        // a String takes everything
        self.body.write_fmt(shape).ok();
    }

    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.put(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    pub(super) fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.put(format_args!(r#"<polyline class="{class}" points="{}"/>"#, points.join(" ")));
    }

    /// - `tip`: shown to who points at it
    pub(super) fn rect(&mut self, style: &str, at: (f64, f64), size: (f64, f64), tip: &str) {
        let ((x, y), (w, h)) = (at, size);
        self.put(format_args!(
            r#"<rect {style} x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}"><title>{}</title></rect>"#,
            escaped(tip)
        ));
    }

    /// A mark of a series: colours repeat after a while, shapes after another.
    pub(super) fn mark(&mut self, series: usize, (x, y): (f64, f64), r: f64, tip: &str) {
        let class = format!("m {}", colour(series));
        let tip = escaped(tip);
        let points = |offsets: &[(f64, f64)]| {
            let points =
                offsets.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * r, y + dy * r));
            points.collect::<Vec<_>>().join(" ")
        };
        let polygon = match series % 4 {
            0 => None,
            1 => Some(points(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])),
            2 => Some(points(&[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)])),
            _ => Some(points(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)])),
        };
        match polygon {
            None => self.put(format_args!(
                r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{r:.1}"><title>{tip}</title></circle>"#
            )),
            Some(points) => self.put(format_args!(
                r#"<polygon class="{class}" points="{points}"><title>{tip}</title></polygon>"#
            )),
        }
    }

    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#,
            escaped(text)
        ));
    }

    /// - `label`: for who cannot see it
    pub(super) fn finish(self, label: &str) -> String {
        let Self { width, height, body } = self;
        format!(
            r#"<svg viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{}">{body}</svg>"#,
            escaped(label)
        )
    }
}

/// The class of a series' colour.
pub(super) fn colour(series: usize) -> String {
    format!("c{}", series % 6)
}

/// Text in HTML and SVG.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
