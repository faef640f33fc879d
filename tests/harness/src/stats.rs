//! What is said of repeated measurements: medians, spreads, percentiles. Pure;
//! used by the programs that measure.

use std::fmt;

/// The middle of some values, or the mean of the two middle ones; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    match values.len() % 2 {
        1 => at(middle),
        _ => (at(middle.saturating_sub(1)) + at(middle)) / 2.0,
    }
}

/// The value that `of_1000` of 1000 values do not exceed (nearest rank); 0 of none.
pub fn percentile<T: Copy + Default>(sorted: &[T], of_1000: usize) -> T {
    let rank = (sorted.len() * of_1000).div_ceil(1000).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

/// The median with the least and the greatest value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// See [`median`].
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl Spread {
    /// Of these values; all 0 of none.
    pub fn of(values: &[f64]) -> Spread {
        let first = values.first().copied().unwrap_or_default();
        Spread {
            median: median(values),
            least: values.iter().copied().fold(first, f64::min),
            greatest: values.iter().copied().fold(first, f64::max),
        }
    }
}

/// With as many digits as the formatter's precision says, such as `{:.2}`.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let Spread {
            median,
            least,
            greatest,
        } = self;
        write!(
            f,
            "{median:.digits$} ({least:.digits$}–{greatest:.digits$})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_ones() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 3.0, 4.0]), 3.5);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let sorted: Vec<u32> = (1..=1000).collect();
        assert_eq!(percentile(&sorted, 500), 500);
        assert_eq!(percentile(&sorted, 999), 999);
        assert_eq!(percentile(&[7u32, 9], 990), 9);
        assert_eq!(percentile::<u32>(&[], 990), 0);
    }

    #[test]
    fn a_spread_is_the_median_and_the_extremes() {
        let spread = Spread::of(&[2.0, 8.0, 4.0]);
        assert_eq!(format!("{spread:.1}"), "4.0 (2.0–8.0)");
        assert_eq!(format!("{:.0}", Spread::of(&[])), "0 (0–0)");
    }
}
