//! JSON as the readers of seeds take it.

use std::io::{self, Write};

use serde::Serialize;
use zeroize::Zeroizing;

/// JSON on one line, which is YAML too once the characters that PyYAML refuses, drops or takes for
/// line breaks are escaped. All others stay as they are: PyYAML reads an escaped surrogate pair as
/// two characters.
pub(super) fn line(head: &str, value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let json = plain(value);
    let escaped: usize = json.chars().filter(|c| breaks_yaml(*c)).count();
    // Enough from the start: a buffer that grows leaves copies of the secret behind.
    let mut line = Zeroizing::new(String::with_capacity(head.len() + json.len() + escaped * 6 + 1));
    line.push_str(head);
    for character in json.chars() {
        if breaks_yaml(character) {
            line.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    Zeroizing::new(std::mem::take(&mut *line).into_bytes())
}

/// The JSON of a value, in a buffer that never grows.
fn plain(value: &impl Serialize) -> Zeroizing<String> {
    const PLAIN: &str = "these values have string keys only, and memory takes what is written to it";
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).expect(PLAIN);
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, value).expect(PLAIN);
    let text = String::from_utf8(std::mem::take(&mut *bytes));
    Zeroizing::new(text.expect("serde_json writes UTF-8"))
}

/// Counts what is written, and keeps nothing.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn breaks_yaml(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}
