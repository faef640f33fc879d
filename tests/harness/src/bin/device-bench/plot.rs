//! Bars with their range, as SVG. Pure.

use std::fmt::Write;

use bypass_harness::stats::Spread;

const WIDTH: f64 = 960.0;
/// Names of the bars stand left of this.
const LEFT: f64 = 200.0;
/// Figures stand right of the longest bar.
const RIGHT: f64 = 170.0;
/// A longer bar ends here, with its figure beside it: else one that is a hundred times as
/// long would leave nothing to see of the others.
const LONGEST_RATIO: f64 = 4.0;
const HEAD: f64 = 50.0;
const GROUP: f64 = 30.0;
const BAR: f64 = 16.0;
/// One for each bar of a group, again from the beginning if they are more.
const COLOURS: [&str; 10] = [
    "#1b6ca8", "#d1495b", "#edae49", "#66a182", "#8d6a9f", "#555555", "#2e9cca", "#c17c74",
    "#7a9e3f", "#b08d57",
];

/// The bars of one workload: a name, its colour's number and the spread.
pub struct Group<'a> {
    /// Its title.
    pub title: &'a str,
    /// From top to bottom.
    pub bars: Vec<(&'a str, usize, Spread)>,
}

/// A plot: medians as bars, least and greatest as a line; a dashed line where ratios are 1
/// if it is of ratios.
pub fn bars(title: &str, groups: &[Group<'_>], ratios: bool) -> String {
    let all = groups.iter().flat_map(|group| &group.bars);
    let longest = all
        .map(|(_, _, spread)| spread.greatest)
        .fold(f64::MIN_POSITIVE, f64::max);
    let longest = match ratios {
        true => longest.clamp(1.0, LONGEST_RATIO),
        false => longest,
    };
    let at = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * (value / longest).min(1.0);
    let rows: usize = groups.iter().map(|group| group.bars.len()).sum();
    let height = HEAD + groups.len() as f64 * GROUP + rows as f64 * BAR + BAR;
    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="24" font-size="16">{}</text>"##,
        escape(title)
    );
    if ratios {
        let (x, end) = (at(1.0), height - BAR / 2.0);
        let _ = writeln!(
            svg,
            r##"<line x1="{x:.1}" x2="{x:.1}" y1="{HEAD}" y2="{end:.1}" stroke="#000000" stroke-dasharray="4 3"/>"##
        );
    }
    let mut y = HEAD;
    for group in groups {
        let _ = writeln!(
            svg,
            r#"<text x="10" y="{:.1}" font-weight="bold">{}</text>"#,
            y + 18.0,
            escape(group.title)
        );
        y += GROUP;
        for (name, colour, spread) in &group.bars {
            svg.push_str(&bar(name, COLOURS[colour % COLOURS.len()], spread, y, at));
            y += BAR;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A bar whose row begins at `y`.
fn bar(name: &str, colour: &str, spread: &Spread, y: f64, at: impl Fn(f64) -> f64) -> String {
    let [least, median, greatest] = [spread.least, spread.median, spread.greatest].map(at);
    let (text_y, middle) = (y + BAR - 4.0, y + BAR / 2.0);
    let (names_end, figures) = (LEFT - 6.0, greatest + 6.0);
    let (thick, long) = (BAR - 3.0, median - LEFT);
    format!(
        r##"<text x="{names_end}" y="{text_y:.1}" text-anchor="end">{name}</text>
<rect x="{LEFT}" y="{y:.1}" width="{long:.1}" height="{thick}" fill="{colour}"/>
<line x1="{least:.1}" x2="{greatest:.1}" y1="{middle:.1}" y2="{middle:.1}" stroke="#000000"/>
<text x="{figures:.1}" y="{text_y:.1}">{spread:.2}</text>
"##,
        name = escape(name)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(ratios: bool) -> String {
        let bars = vec![
            ("one", 0, Spread::of(&[0.5])),
            ("two & more", 11, Spread::of(&[0.25])),
        ];
        super::bars("A < B", &[Group { title: "g", bars }], ratios)
    }

    #[test]
    fn a_bar_is_as_long_as_its_median() {
        let text = plot(false);
        assert!(
            text.contains(r#"width="590.0""#) && text.contains(r#"width="295.0""#),
            "{text}"
        );
        assert!(
            plot(true).contains(r#"width="295.0""#),
            "1 is in the picture"
        );
        assert!(plot(true).contains("stroke-dasharray"));
        let bars = vec![("far", 0, Spread::of(&[100.0]))];
        let text = super::bars("", &[Group { title: "g", bars }], true);
        assert!(
            text.contains(r#"width="590.0""#) && text.contains("100.00 ("),
            "{text}"
        );
    }

    #[test]
    fn text_cannot_end_an_element() {
        let text = plot(false);
        assert!(text.contains("A &lt; B") && text.contains("two &amp; more"));
    }
}
