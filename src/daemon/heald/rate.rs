//! How fast to heal, as people write it.

use std::fmt;

/// Bytes per second; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

/// The lowest limit: below it a heal would never end.
const LOWEST: u64 = 64 << 10;

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unlimited" {
            return Ok(Self(0));
        }
        let (digits, shift) = match text.char_indices().last() {
            Some((at, 'K' | 'k')) => (&text[..at], 10),
            Some((at, 'M' | 'm')) => (&text[..at], 20),
            Some((at, 'G' | 'g')) => (&text[..at], 30),
            _ => (text, 0),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| "expected bytes per second such as 100M, or unlimited")?;
        let rate = number
            .checked_mul(1 << shift)
            .ok_or("the rate is too high")?;
        if rate < LOWEST {
            return Err("the lowest rate is 64K".to_owned());
        }
        Ok(Self(rate))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("unlimited"),
            rate => write!(f, "{}/s", indicatif::BinaryBytes(rate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_bytes_with_or_without_a_unit_or_unlimited() {
        let rate = |text: &str| text.parse::<Rate>().map(|rate| rate.0);
        assert_eq!(rate("unlimited"), Ok(0));
        assert_eq!(rate("65536"), Ok(65536));
        assert_eq!(rate("100M"), Ok(100 << 20));
        assert_eq!(rate("2g"), Ok(2 << 30));
        for bad in ["", "0", "M", "1K", "-5M", "99999999999G", "1 M", "ß"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
