//! Damage to texts and tables of any kind.

use crate::random::Random;

/// What parsers stumble over.
const TOKENS: [&[u8]; 26] = [
    b"\0",
    b"\xff\xfe",
    b"\xf0\x9f\x94\x91",
    b"\xed\xa0\x80",
    b"\n",
    b"\r\n",
    b"\t",
    b"\"",
    b"'",
    b"\\",
    b"\\u0000",
    b"{{",
    b"]]",
    b"&a [*a, *a]",
    b"<<: *a",
    b"---\n",
    b"!!binary |\n",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"18446744073709551616",
    b"9223372036854775808",
    b"0x7fffffff",
    b"null",
    b"true",
    b"../../etc/passwd",
];

/// One input of the corpus with one to four changes.
pub(super) fn damaged(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.place(corpus.len())].clone();
    for _ in 0..1 + random.below(4) {
        change(&mut input, corpus, random);
    }
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let mut at = random.place(input.len() + 1);
    // Where something is, more depends on it.
    for _ in 0..20 {
        if input.get(at) == Some(&0) {
            at = random.place(input.len() + 1);
        }
    }
    match random.below(15) {
        0 | 1 if !input.is_empty() => {
            let at = at.min(input.len() - 1);
            input[at] ^= 1 << random.below(8);
        }
        2 => input.truncate(at),
        3 => drop(input.splice(at..at, random.pick(&TOKENS).iter().copied())),
        4 => {
            let end = (at + random.place(32)).min(input.len());
            input.drain(at..end);
        }
        5 => {
            // Once more, many times.
            let end = (at + 1 + random.place(64)).min(input.len());
            let again = input[at..end].repeat(random.pick(&[1, 2, 100]));
            input.splice(at..at, again);
        }
        6 => {
            // A number that is another.
            let digits = input.iter().skip(at).position(u8::is_ascii_digit).map(|offset| at + offset);
            if let Some(at) = digits {
                let end = input[at..].iter().position(|byte| !byte.is_ascii_digit());
                let end = end.map_or(input.len(), |len| at + len);
                let numbers: [&[u8]; 5] = [b"0", b"-1", b"4294967296", b"18446744073709551615", b"1.5"];
                input.splice(at..end, random.pick(&numbers).iter().copied());
            }
        }
        7 => {
            let other = &corpus[random.place(corpus.len())];
            let from = random.place(other.len() + 1);
            input.truncate(at);
            input.extend(&other[from..]);
        }
        9 => {
            // Up to the end of a word.
            let end = input.iter().skip(at).position(|byte| b" \n,:\"".contains(byte)).map(|len| at + len);
            input.truncate(end.unwrap_or(at));
        }
        10 => {
            // Without a line.
            let start =
                input[..at.min(input.len())].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let end = input.iter().skip(start).position(|byte| *byte == b'\n').map(|len| start + len + 1);
            input.drain(start..end.unwrap_or(input.len()));
        }
        11 => {
            // A number in bytes, most often where numbers lie.
            let value =
                random.pick(&[0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, 1 << 63, u64::MAX]);
            let (at, len) = (at - at % 4, random.pick(&[4, 8]));
            let bytes = match random.once_in(2) {
                true => value.to_le_bytes()[..len].to_vec(),
                false => value.to_be_bytes()[8 - len..].to_vec(),
            };
            let end = (at + len).min(input.len());
            input.splice(at.min(end)..end, bytes);
        }
        12 => {
            let (open, close): (&[u8], &[u8]) = random.pick(&[(b"[", b"]"), (b"{a: ", b"}"), (b"[[", b"]]")]);
            let times = random.pick(&[10, 100, 10_000]);
            input.splice(at..at, [open.repeat(times), close.repeat(times)].concat());
        }
        8 => {
            let brackets: [&[u8]; 5] = [b"[", b"{", b"(", b"- ", b"a: "];
            let deep = random.pick(&brackets);
            let deep = deep.repeat(random.pick(&[10, 1000, 50_000]));
            input.splice(at..at, deep);
        }
        _ => {
            let len = random.place(16);
            let bytes = random.bytes(len);
            let end = (at + len).min(input.len());
            input.splice(at..end, bytes);
        }
    }
}
