//! MIME documents, as far as cloud-init looks into them: headers, boundaries, encodings.

use zeroize::Zeroizing;

/// How deep documents may be nested.
const MOST_DEPTH: usize = 8;
/// How many parts are looked at.
const MOST_PARTS: usize = 512;

/// The headers of a document or part that matter.
#[derive(Default)]
pub(super) struct Headers {
    content_type: String,
    encoding: String,
}

impl Headers {
    /// In lower case, without parameters; `text/plain` if there is none.
    pub(super) fn kind(&self) -> String {
        let blank = |letter: char| letter.is_whitespace() || letter.is_control();
        let kind = self.content_type.split(';').next().unwrap_or_default();
        let kind = kind.trim_matches(blank).to_ascii_lowercase();
        if kind.contains('/') { kind } else { String::from("text/plain") }
    }

    pub(super) fn is_multipart(&self) -> bool {
        self.kind().starts_with("multipart/")
    }

    pub(super) fn boundary(&self) -> Option<&str> {
        if !self.is_multipart() {
            return None;
        }
        let mut is_quoted = false;
        let between = |letter: char| {
            is_quoted ^= letter == '"';
            letter == ';' && !is_quoted
        };
        let value = self.content_type.split(between).skip(1).find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim_start())
        })?;
        let boundary = match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next()?,
            None => value.split([' ', '\t']).next()?,
        };
        (!boundary.is_empty()).then_some(boundary)
    }
}

/// A part that holds no others.
pub(super) struct Leaf {
    pub(super) kind: String,
    /// None if it cannot be read here, though cloud-init may read it.
    pub(super) body: Option<Zeroizing<Vec<u8>>>,
    /// The line of the document where the body begins, from 1.
    pub(super) line: usize,
    /// Whether a line of the body is a line of the document.
    pub(super) lines: Lines,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lines {
    AsGiven,
    Encoded,
}

/// The headers at the beginning of `text`.
pub(super) fn headers(text: &str) -> Headers {
    split(text).0
}

/// The parts of a document, nested ones too; the last stands for all that are too many.
pub(super) fn leaves(text: &str) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    collect(text, 1, 0, &mut leaves);
    // Python ends lines here too.
    let lone = text.match_indices('\r').find(|(at, _)| !text[at + 1..].starts_with('\n'));
    leaves.extend(lone.map(|(at, _)| {
        let line = text[..at].matches('\n').count() + 1;
        Leaf { kind: String::from("text/plain"), body: None, line, lines: Lines::Encoded }
    }));
    leaves
}

fn collect(text: &str, line: usize, depth: usize, leaves: &mut Vec<Leaf>) {
    if leaves.len() > MOST_PARTS {
        return;
    }
    let (headers, body, skipped) = split(text);
    let line = line + skipped;
    if depth > MOST_DEPTH || leaves.len() == MOST_PARTS {
        leaves.push(Leaf { kind: headers.kind(), body: None, line, lines: Lines::Encoded });
        return;
    }
    let Some(boundary) = headers.boundary() else {
        let (body, lines) = decoded(&headers, body);
        // Python looks for more parts in these.
        let body = body.filter(|_| !headers.is_multipart() && !headers.kind().starts_with("message/"));
        leaves.push(Leaf { kind: headers.kind(), body, line, lines });
        return;
    };
    let (mut start, mut first, mut at, mut closed) = (None, 0, 0, None);
    for (number, row) in body.split_inclusive('\n').enumerate() {
        let end = at + row.len();
        let after = row.trim_end().strip_prefix("--").and_then(|row| row.strip_prefix(boundary));
        if let Some("" | "--") = after {
            if let Some(start) = start {
                collect(&body[start..at], line + first, depth + 1, leaves);
            }
            start = (after == Some("")).then_some(end);
            closed = closed.or((after == Some("--")).then_some((end, number + 1)));
            first = number + 1;
        }
        at = end;
    }
    if let Some(start) = start {
        collect(&body[start..], line + first, depth + 1, leaves);
    }
    // Behind an empty part Python goes on.
    if let Some((end, number)) = closed
        && !body[end..].trim().is_empty()
    {
        let line = line + number;
        leaves.push(Leaf { kind: headers.kind(), body: None, line, lines: Lines::Encoded });
    }
}

/// Headers, body, and how many lines the headers take with the empty line behind them.
fn split(text: &str) -> (Headers, &str, usize) {
    let mut headers = Headers::default();
    let (mut at, mut count) = (0, 0);
    let mut last: Option<&mut String> = None;
    for row in text.split_inclusive('\n') {
        let row_text = row.trim_end_matches(['\n', '\r']);
        if row_text.is_empty() {
            return (headers, &text[at + row.len()..], count + 1);
        }
        if row_text.starts_with([' ', '\t']) {
            if let Some(value) = last.as_deref_mut() {
                value.push_str(row_text);
            }
        } else {
            let name = row_text.split(':').next().unwrap_or_default();
            if name.len() == row_text.len() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                // Python's parser takes the rest for the body.
                return (headers, &text[at..], count);
            }
            let value = row_text[name.len() + 1..].trim();
            last = match name.to_ascii_lowercase().as_str() {
                "content-type" => Some(&mut headers.content_type),
                "content-transfer-encoding" => Some(&mut headers.encoding),
                _ => None,
            };
            // Of two, Python takes the first.
            last = last.filter(|kept| kept.is_empty());
            if let Some(kept) = last.as_deref_mut() {
                value.clone_into(kept);
            }
        }
        at += row.len();
        count += 1;
    }
    (headers, "", count)
}

fn decoded(headers: &Headers, body: &str) -> (Option<Zeroizing<Vec<u8>>>, Lines) {
    match headers.encoding.trim().to_ascii_lowercase().as_str() {
        "base64" => (from_base64(body), Lines::Encoded),
        "quoted-printable" => (Some(Zeroizing::new(unquoted(body.as_bytes()))), Lines::Encoded),
        "x-uuencode" | "uuencode" | "uue" | "x-uue" => (None, Lines::Encoded),
        _ => (Some(Zeroizing::new(body.as_bytes().to_vec())), Lines::AsGiven),
    }
}

/// As Python has it: what is no letter of base64 is left out, and `=` ends it; none if letters follow.
pub(super) fn from_base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
    let (mut bits, mut count) = (0_u32, 0_usize);
    let mut has_ended = false;
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => {
                has_ended |= letter == b'=';
                continue;
            }
        };
        if has_ended {
            return None;
        }
        (bits, count) = (bits << 6 | u32::from(value), count + 1);
        let unused = [0, 6, 4, 2][count % 4];
        if unused != 6 {
            bytes.push((bits >> unused).to_le_bytes()[0]);
        }
    }
    (count % 4 != 1).then_some(bytes)
}

fn unquoted(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len());
    let mut rest = body;
    while let [first, after @ ..] = rest {
        let (byte, left) = match rest {
            [b'=', b'\r', b'\n', left @ ..] | [b'=', b'\n', left @ ..] => (None, left),
            // Broken, and taken by Python.
            [b'=', b'=', left @ ..] => (Some(b'='), left),
            [b'=', high, low, left @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap_or("20");
                (u8::from_str_radix(digits, 16).ok(), left)
            }
            _ => (Some(*first), after),
        };
        bytes.extend(byte);
        rest = left;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(leaf: &Leaf) -> &[u8] {
        leaf.body.as_deref().expect("it is read")
    }

    #[test]
    fn every_part_is_found_with_its_line() {
        let text = "Content-Type: multipart/mixed;\n boundary=\"a\"\nMIME-Version: 1.0\n\npreamble\n--a\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n--a\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/cloud-config\nContent-Transfer-Encoding: base64\n\nI2Ns\nb3Vk\n--b\nContent-Transfer-Encoding: quoted-printable\n\n=23!=\n/bin/sh\n--b--\n--a--\n\n";
        let leaves = leaves(text);
        let seen: Vec<_> =
            leaves.iter().map(|leaf| (leaf.kind.as_str(), body(leaf), leaf.line, leaf.lines)).collect();
        assert_eq!(
            seen,
            [
                ("text/x-shellscript", &b"#!/bin/sh\n"[..], 9, Lines::AsGiven),
                ("text/cloud-config", b"#cloud", 17, Lines::Encoded),
                ("text/plain", b"#!/bin/sh\n", 22, Lines::Encoded),
            ]
        );
    }

    #[test]
    fn an_unclosed_document_still_gives_its_last_part() {
        let found = leaves("Content-Type: multipart/mixed; boundary=a; x=y\n\n--a\n\nlast");
        assert_eq!(found.len(), 1);
        assert_eq!((body(&found[0]), found[0].line), (&b"last"[..], 5));
    }

    #[test]
    fn headers_are_read_as_python_reads_them() {
        for head in [
            "Content-Type: multipart/mixed; x-boundary=c; boundary=b",
            "Content-Type: multipart/x-boundary=c; charset=\"a;boundary=c\"; Boundary = \"b\"",
            "Content-Type: multipart/mixed; boundary=b\nContent-Type: text/plain",
            "Content-Type: \x1cmultipart/mixed; boundary=b",
        ] {
            let found = leaves(&format!("{head}\n\n--b\n\nx\n--b--\n"));
            assert!(found.len() == 1 && body(&found[0]) == b"x\n", "{head}");
        }
        let found = leaves("Content-Type: multipart/mixed; boundary=b\n\n--b\n--b--\n\n#!/bin/sh\n--b--\n");
        assert_eq!((found.len(), found[1].body.is_none(), found[1].line), (2, true, 5));
        let found = leaves("Content-Type: multipart/mixed; boundary=b\r\n\r\n\r--b\r\n\r\nx\r\n--b--\r\n");
        assert!(found.iter().any(|leaf| leaf.body.is_none() && leaf.line == 3));
    }

    #[test]
    fn nesting_ends_at_a_bound() {
        let head = |n: usize| format!("Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n");
        let deep: String = (0..100).map(head).collect();
        assert_eq!(leaves(&deep).iter().map(|leaf| leaf.body.is_none()).collect::<Vec<_>>(), [true]);
        let wide = format!("{}{}", head(0), "\nx\n--b0\n".repeat(2000));
        let found = leaves(&wide);
        assert_eq!(found.len(), MOST_PARTS + 1);
        assert_eq!(found.iter().position(|leaf| leaf.body.is_none()), Some(MOST_PARTS));
    }

    #[test]
    fn what_python_reads_otherwise_is_not_taken_for_read() {
        for headers in [
            "Content-Type: message/rfc822",
            "Content-Type: multipart/mixed",
            "Content-Transfer-Encoding: x-uuencode",
            "Content-Transfer-Encoding: base64\n\nxy",
        ] {
            let found = leaves(&format!("{headers}\n\n#!/bin/sh\n"));
            assert!(found.len() == 1 && found[0].body.is_none(), "{headers}");
        }
    }

    #[test]
    fn quoted_printable_is_read_as_python_reads_it() {
        for (text, bytes) in
            [("a=\nb=\r\n=63", &b"abc"[..]), ("a==\nb", b"a=\nb"), ("=4", b"=4"), ("a=", b"a=")]
        {
            assert_eq!(unquoted(text.as_bytes()), bytes, "{text}");
        }
    }

    #[test]
    fn base64_is_read_as_python_reads_it() {
        let read = |text| from_base64(text).map(|bytes| bytes.to_vec());
        for (text, bytes) in [
            ("", &b""[..]),
            ("bWtmcw==", b"mkfs"),
            ("bWtm\r\ncw", b"mkfs"),
            ("bW-tmcw==\n-", b"mkfs"),
            ("+/+/", b"\xfb\xff\xbf"),
            ("bWs=", b"mk"),
        ] {
            assert_eq!(read(text).as_deref(), Some(bytes), "{text}");
        }
        assert_eq!(read("bWtmc"), None);
        assert_eq!(read("bW=tmcw=="), None, "Python reads on where = is out of place");
    }
}
