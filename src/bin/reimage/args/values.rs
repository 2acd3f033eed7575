//! Values that are typed in a notation of their own: sizes, times, digests, what a disk must be.

use std::time::Duration;

use reimage::{Expect, ExpectedDigest};

/// The sizes that end in these letters, by powers of 1024.
const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// A number of bytes: `4096`, `40G`, `40GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let power = power(&text[digits.len()..])
        .ok_or_else(|| format!("{text:?} is no size: give bytes, or a number with K, M, G or T"))?;
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} does not begin with a whole number"))?;
    let bytes = 1024_u64.checked_pow(power).and_then(|unit| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("{text:?} is more than any disk holds"))
}

fn power(suffix: &str) -> Option<u32> {
    let upper = suffix.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(0);
    }
    let unit = upper.strip_suffix("IB").unwrap_or(&upper);
    let place = UNITS.iter().position(|name| unit.len() == 1 && unit.starts_with(*name))?;
    u32::try_from(place + 1).ok()
}

/// Seconds between two checkpoints: the sync of each costs time, and what lies between two is written again.
pub(crate) fn checkpoint(text: &str) -> Result<Duration, String> {
    seconds(text, 3600.0)
}

/// Seconds for which a disk may do nothing.
pub(crate) fn stall_timeout(text: &str) -> Result<Duration, String> {
    seconds(text, 86400.0)
}

fn seconds(text: &str, most: f64) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.01..=most).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("give seconds, from 0.01 to {most}"))
}

/// The digest of a file: `sha256:HEX` or `blake3:HEX`.
pub(crate) fn digest(text: &str) -> Result<ExpectedDigest, String> {
    let wrong = || "give sha256:HEX or blake3:HEX, with 64 hexadecimal digits".to_owned();
    let (algorithm, hex) = text.split_once(':').ok_or_else(wrong)?;
    let bytes = bytes_of(hex).ok_or_else(wrong)?;
    match algorithm {
        "sha256" => Ok(ExpectedDigest::Sha256(bytes)),
        "blake3" => Ok(ExpectedDigest::Blake3(bytes)),
        _ => Err(wrong()),
    }
}

fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

/// What a disk must be: `serial=…,wwn=…,size=…,ptuuid=…`, each at most once.
pub(crate) fn expect(text: &str) -> Result<Expect, String> {
    let mut expect = Expect::default();
    for part in text.split(',') {
        let wrong = || format!("{part:?} is none of serial=…, wwn=…, size=…, ptuuid=…");
        let (key, value) = part.split_once('=').ok_or_else(wrong)?;
        if value.is_empty() {
            return Err(format!("{key} has no value"));
        }
        let again = match key {
            "serial" => expect.serial.replace(value.to_owned()).is_some(),
            "wwn" => expect.wwn.replace(value.to_owned()).is_some(),
            "ptuuid" => expect.ptuuid.replace(value.to_owned()).is_some(),
            "size" => expect.size.replace(size(value)?).is_some(),
            _ => return Err(wrong()),
        };
        if again {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(expect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("512B", Some(512)),
            ("1K", Some(1024)),
            ("40g", Some(40 << 30)),
            ("40GiB", Some(40 << 30)),
            ("3TiB", Some(3 << 40)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1.5G", None),
            ("1GB", None),
            ("1 G", None),
            ("16E", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(size(text).ok(), bytes, "{text:?}");
        }
    }

    #[test]
    fn times_are_seconds_and_neither_nothing_nor_for_ever() {
        for (text, ms) in [
            ("3", Some(3000)),
            ("0.01", Some(10)),
            ("3600", Some(3_600_000)),
            ("0", None),
            ("0.001", None),
            ("-1", None),
            ("3601", None),
            ("inf", None),
            ("nan", None),
            ("3s", None),
            ("", None),
        ] {
            assert_eq!(checkpoint(text).ok(), ms.map(Duration::from_millis), "{text:?}");
        }
        assert_eq!(stall_timeout("86400"), Ok(Duration::from_secs(86400)));
    }

    #[test]
    fn a_digest_names_its_algorithm_and_has_64_digits() {
        let hex = "0aFF".repeat(16);
        let bytes = [[0x0a, 0xff]; 16].concat().try_into().unwrap();
        assert_eq!(digest(&format!("sha256:{hex}")), Ok(ExpectedDigest::Sha256(bytes)));
        assert_eq!(digest(&format!("blake3:{hex}")), Ok(ExpectedDigest::Blake3(bytes)));
        for wrong in
            [hex.clone(), format!("md5:{hex}"), format!("sha256:{hex}0"), format!("sha256:+{}", &hex[1..])]
        {
            assert!(digest(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_disk_must_be_is_said_once_for_each_key() {
        let found = expect("serial=abc,size=10G,ptuuid=12345678").unwrap();
        assert_eq!((found.serial.as_deref(), found.size), (Some("abc"), Some(10 << 30)));
        assert_eq!((found.wwn, found.ptuuid.as_deref()), (None, Some("12345678")));
        for wrong in ["", "serial", "serial=", "colour=red", "size=1,size=2", "size=big"] {
            assert!(expect(wrong).is_err(), "{wrong}");
        }
    }
}
