//! Characters that steer whoever shows them: a terminal, or an editor that shows a line in another order than it is in.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

/// Control characters, and all others that show nothing themselves: Unicode's format characters (category Cf), which
/// reorder or hide what is around them, and the separators of lines and paragraphs.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

/// Text that cannot steer a terminal; line ends stay.
pub(crate) fn clean(text: &str) -> String {
    text.split('\n').map(clean_name).collect::<Vec<_>>().join("\n")
}

/// A name that somebody else gave, so that it cannot steer a terminal or pretend to be another line.
pub(crate) fn clean_name(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A path as `clean_name` shows it.
pub(crate) fn clean_path(path: &Path) -> String {
    clean_name(&path.to_string_lossy())
}

/// JSON of several lines in which nothing steers who shows it.
pub(crate) fn json(value: &impl Serialize) -> String {
    escaped(&serde_json::to_string_pretty(value).expect("results are plain data"))
}

/// The same on one line.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    escaped(&serde_json::to_string(value).expect("events are plain data"))
}

/// JSON of the same value: outside of strings it has no such character but line ends, and in them only those are
/// escaped by then that JSON demands.
fn escaped(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if steers(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_escaped_and_has_the_same_value() {
        let text =
            "a\u{7f}\u{9b}31m\u{ad}\u{61c}\u{200b}\u{202e}\u{2028}\u{2066}\u{feff}\u{e0041}\u{1d173}\n\"é\\";
        let value = serde_json::json!({ text: [text] });
        for form in [json(&value), json_line(&value)] {
            assert!(!form.chars().any(|c| steers(c) && c != '\n'), "{form:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&form).unwrap(), value);
        }
        assert_eq!(json_line(&"\u{9b}é\u{e0041}"), r#""\u009bé\udb40\udc41""#);
    }

    #[test]
    fn a_name_steers_nothing_and_pretends_nothing() {
        let name = "a\nb\u{1b}[2J\u{9b}2J\u{61c}\u{200b}\u{202e}\u{feff}\u{e0041}é";
        assert_eq!(clean_name(name), r"a\nb\u{1b}[2J\u{9b}2J\u{61c}\u{200b}\u{202e}\u{feff}\u{e0041}é");
        assert_eq!(clean("a\nb\u{9b}"), "a\nb\\u{9b}");
    }

    #[test]
    fn what_steers_is_what_cannot_be_printed() {
        // The standard library's table knows of every character whether it shows something.
        let shows = |c: char| c.escape_debug().count() == 1;
        let hidden = (' '..=char::MAX).filter(|c| steers(*c) && shows(*c));
        assert_eq!(hidden.collect::<Vec<_>>(), [], "these show something");
    }
}
