//! A customer's user-data: what kind cloud-init takes it for, and how ours is put beside it.

use base64ct::{Base64, Encoding as _};
use zeroize::Zeroizing;

use super::error::SeedError;
use super::forms::{CustomersUsers, OurParts};
use super::revoke;
use crate::request::OldCredentials;

/// The most that compressed user-data may grow to.
const MOST_UNPACKED_BYTES: usize = 8 << 20;
/// How far cloud-init looks for `MIME-Version:`.
const MIME_WINDOW_BYTES: usize = 4096;

/// A customer's user-data, of a kind that cloud-init acts on; its bytes are wiped when it is dropped.
pub(super) struct CustomerData {
    bytes: Zeroizing<Vec<u8>>,
    unpacked: Option<Zeroizing<Vec<u8>>>,
    kind: Kind,
}

/// What cloud-init takes a document for, by how it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    CloudConfig,
    Archive,
    JsonPatch,
    Jinja,
    Script,
    Boothook,
    Include,
    PartHandler,
    Mime,
}

/// Longest first, as cloud-init 22.4.2 looks them up (`cloudinit/handlers/__init__.py`).
const BEGINNINGS: [(&str, Kind); 10] = [
    ("#cloud-config-archive", Kind::Archive),
    ("#cloud-config-jsonp", Kind::JsonPatch),
    ("## template: jinja", Kind::Jinja),
    ("#cloud-boothook", Kind::Boothook),
    ("#include-once", Kind::Include),
    ("#cloud-config", Kind::CloudConfig),
    ("#part-handler", Kind::PartHandler),
    ("#include", Kind::Include),
    ("#!", Kind::Script),
    ("mime-version:", Kind::Mime),
];

impl Kind {
    /// Letters' case and leading white space do not matter to cloud-init.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let begins = bytes.trim_ascii_start();
        let known = BEGINNINGS.iter().find(|(text, _)| {
            begins.get(..text.len()).is_some_and(|head| head.eq_ignore_ascii_case(text.as_bytes()))
        });
        match known {
            Some((_, kind)) => Some(*kind),
            None if is_mime(bytes) => Some(Self::Mime),
            None => None,
        }
    }
}

impl CustomerData {
    /// Refuses what cloud-init would overlook.
    pub(super) fn new(bytes: Zeroizing<Vec<u8>>) -> Result<Self, SeedError> {
        let unpacked =
            bytes.starts_with(&[0x1f, 0x8b]).then(|| gunzip(&bytes)).transpose().map_err(refused)?;
        let text = unpacked.as_ref().unwrap_or(&bytes);
        if text.trim_ascii().is_empty() {
            return Err(refused("is empty"));
        }
        if text.starts_with("\u{feff}".as_bytes()) {
            return Err(refused("begins with a byte order mark, and cloud-init would overlook it"));
        }
        let Some(kind) = Kind::of(text) else {
            return Err(refused("begins like nothing that cloud-init knows, and would be overlooked"));
        };
        if kind == Kind::Mime {
            check_mime(text).map_err(refused)?;
        }
        Ok(Self { bytes, unpacked, kind })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// The document, unpacked if it came compressed.
    pub(super) fn document(&self) -> &[u8] {
        self.unpacked.as_ref().unwrap_or(&self.bytes)
    }

    /// The bytes as they were given.
    pub(super) fn into_given(self) -> Zeroizing<Vec<u8>> {
        self.bytes
    }

    /// Anything that names users, may spell the word with escapes, or brings more text from elsewhere.
    fn users(&self) -> CustomersUsers {
        let text = self.document();
        let escapes = matches!(self.kind, Kind::CloudConfig | Kind::Archive | Kind::JsonPatch);
        let named = text.windows(5).any(|word| word == b"users") || (escapes && text.contains(&b'\\'));
        let brings_more = matches!(self.kind, Kind::Include | Kind::PartHandler | Kind::Mime | Kind::Jinja);
        if named || brings_more { CustomersUsers::Perhaps } else { CustomersUsers::None }
    }

    /// The customer's part: a MIME document nested as it is, all else in base64.
    fn part(&self) -> Part<'_> {
        match (self.kind, &self.unpacked) {
            (Kind::Mime, _) => Part::Whole(self.document()),
            // cloud-init decodes the text inside a compressed part as UTF-8, and loses it otherwise.
            (_, Some(text)) if std::str::from_utf8(text).is_ok() => {
                Part::Encoded("application/x-gzip", &self.bytes)
            }
            // As plain text, its first line tells cloud-init what it is.
            _ => Part::Encoded("text/plain", self.document()),
        }
    }
}

/// The user-data of the seed: ours alone, or behind the customer's, so that ours is merged last.
pub(super) fn combine(customer: Option<&CustomerData>, ours: &OurParts<'_>) -> Zeroizing<Vec<u8>> {
    let revoked = ours.image_credentials == OldCredentials::Revoke;
    if customer.is_none() && !revoked {
        return ours.alone();
    }
    let (replacing, accounts) = match customer {
        Some(customer) => (ours.replacing(), ours.accounts(customer.users())),
        None => (Some(ours.alone()), None),
    };
    let mut parts = Vec::new();
    let boothook = revoked.then(revoke::boothook);
    // First: the keys that a customer's own boothook adds are to stay.
    parts.extend(boothook.as_deref().map(|hook| Part::Encoded("text/cloud-boothook", hook)));
    parts.extend(customer.map(CustomerData::part));
    for ours in [&replacing, &accounts] {
        parts.extend(ours.as_deref().map(|bytes| Part::Encoded("text/cloud-config", bytes)));
    }
    multipart(&parts, customer.map_or(&[], CustomerData::document))
}

enum Part<'a> {
    /// With its own headers.
    Whole(&'a [u8]),
    Encoded(&'static str, &'a [u8]),
}

impl Part<'_> {
    fn most_bytes(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len() + 128,
            Self::Encoded(_, bytes) => bytes.len() / 3 * 4 + bytes.len() / 57 + 256,
        }
    }

    fn append_to(&self, document: &mut Vec<u8>) {
        match self {
            Self::Whole(bytes) => document.extend_from_slice(bytes),
            Self::Encoded(kind, bytes) => {
                let head = "MIME-Version: 1.0\nContent-Transfer-Encoding: base64\n\n";
                document.extend_from_slice(format!("Content-Type: {kind}\n{head}").as_bytes());
                for line in bytes.chunks(57) {
                    let mut encoded = Zeroizing::new([0; 76]);
                    let encoded = Base64::encode(line, &mut *encoded).expect("57 bytes make 76 letters");
                    document.extend_from_slice(encoded.as_bytes());
                    document.push(b'\n');
                }
            }
        }
    }
}

fn multipart(parts: &[Part<'_>], customers: &[u8]) -> Zeroizing<Vec<u8>> {
    let boundary = boundary(customers);
    let most = parts.iter().map(Part::most_bytes).sum::<usize>() + 512;
    // Enough from the start: a buffer that grows leaves copies behind.
    let mut document = Zeroizing::new(Vec::with_capacity(most));
    let head = format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n");
    document.extend_from_slice(head.as_bytes());
    for part in parts {
        document.extend_from_slice(format!("--{boundary}\n").as_bytes());
        part.append_to(&mut document);
        document.push(b'\n');
    }
    document.extend_from_slice(format!("--{boundary}--\n").as_bytes());
    assert!(document.len() <= most, "the buffer did not grow");
    document
}

/// The same for the same data, and nowhere in it.
fn boundary(customers: &[u8]) -> String {
    for count in 0_u64.. {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&count.to_le_bytes()).update(customers);
        let boundary = format!("=={}", &hasher.finalize().to_hex()[..32]);
        if !customers.windows(boundary.len()).any(|window| window == boundary.as_bytes()) {
            return boundary;
        }
    }
    unreachable!("no text holds every boundary")
}

/// One gzip member, as RFC 1952 has it, whose trailer must tell the truth.
pub(super) fn gunzip(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let trailer = bytes.last_chunk::<8>().ok_or("is a torn gzip file")?;
    let [.., a, b, c, d] = *trailer;
    let size = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if size > MOST_UNPACKED_BYTES {
        return Err("is compressed and longer than 8 MiB");
    }
    let mut text = Zeroizing::new(vec![0; size]);
    let made = libdeflater::Decompressor::new().gzip_decompress(bytes, &mut text);
    let whole = made.is_ok_and(|made| made == size);
    let [a, b, c, d, ..] = *trailer;
    // Of a second member, the trailer would tell of that one.
    if !whole || libdeflater::crc32(&text) != u32::from_le_bytes([a, b, c, d]) {
        return Err("is a torn gzip file, or one of several members");
    }
    Ok(text)
}

fn is_mime(bytes: &[u8]) -> bool {
    let window = &bytes[..bytes.len().min(MIME_WINDOW_BYTES)];
    let first = window.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_header = |line: &[u8]| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        name.len() < line.len() && !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
    };
    is_header(first) && window.to_ascii_lowercase().windows(13).any(|word| word == b"mime-version:")
}

fn check_mime(bytes: &[u8]) -> Result<(), &'static str> {
    // cloud-init decodes the whole document before it looks at the parts.
    let text = std::str::from_utf8(bytes).map_err(|_| "is a MIME document that is not UTF-8")?;
    let headers = super::mime::headers(text);
    match headers.boundary() {
        None if headers.is_multipart() => Err("is a MIME document without a boundary"),
        Some(boundary) if !text.contains(&format!("--{boundary}")) => {
            Err("is a MIME document whose boundary is nowhere in it")
        }
        _ => Ok(()),
    }
}

fn refused(why: &'static str) -> SeedError {
    SeedError::UserData { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn customer(bytes: &[u8]) -> Result<CustomerData, SeedError> {
        CustomerData::new(Zeroizing::new(bytes.to_vec()))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut packed = vec![0; packer.gzip_compress_bound(bytes.len())];
        let length = packer.gzip_compress(bytes, &mut packed).unwrap();
        packed.truncate(length);
        packed
    }

    const MIME: &[u8] =
        b"Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\n\n#!/bin/sh\n--b--\n";

    #[test]
    fn the_kind_is_what_cloud_init_takes_it_for() {
        let kinds: [(&[u8], Kind); 13] = [
            (b"#cloud-config\n", Kind::CloudConfig),
            (b"\n  #Cloud-Config\r\n{}", Kind::CloudConfig),
            (b"#cloud-config-archive\n[]", Kind::Archive),
            (b"#cloud-config-jsonp\n[]", Kind::JsonPatch),
            (b"## template: jinja\n#cloud-config\n", Kind::Jinja),
            (b"#!/bin/sh\n", Kind::Script),
            (b"#!/bin/sh\nMIME-Version: 1.0\n", Kind::Script),
            (b"#cloud-boothook\n", Kind::Boothook),
            (b"#include\nhttps://a", Kind::Include),
            (b"#include-once\nhttps://a", Kind::Include),
            (b"#part-handler\n", Kind::PartHandler),
            (MIME, Kind::Mime),
            (b"mime-version: 1.0\ncontent-type: text/cloud-config\n\n#cloud-config\n", Kind::Mime),
        ];
        for (bytes, kind) in kinds {
            assert_eq!(customer(bytes).unwrap().kind(), kind);
            let packed = customer(&gzip(bytes)).unwrap();
            assert_eq!((packed.kind(), packed.document()), (kind, bytes));
        }
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], expected: &str) {
        let error = customer(bytes).err().expect("it is refused");
        assert_eq!(error.to_string(), format!("the user-data {expected}"));
    }

    #[test]
    fn what_cloud_init_would_overlook_is_refused() {
        let unknown = "begins like nothing that cloud-init knows, and would be overlooked";
        check_refused(b"", "is empty");
        check_refused(b" \n", "is empty");
        check_refused(b"hello\n", unknown);
        check_refused(b"users: []\n", unknown);
        check_refused(b"<script>\n", unknown);
        check_refused(
            "\u{feff}#cloud-config\n".as_bytes(),
            "begins with a byte order mark, and cloud-init would overlook it",
        );
        check_refused(
            b"MIME-Version: 1.0\nContent-Type: multipart/mixed\n\n--b\n",
            "is a MIME document without a boundary",
        );
        check_refused(
            b"MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--c\n",
            "is a MIME document whose boundary is nowhere in it",
        );
        check_refused(b"MIME-Version: 1.0\n\n\xff", "is a MIME document that is not UTF-8");
        let torn = "is a torn gzip file, or one of several members";
        check_refused(&[0x1f, 0x8b, 8, 0], "is a torn gzip file");
        check_refused(&[&[0x1f, 0x8b][..], &[0; 30]].concat(), torn);
        let two = [gzip(b"#!/bin/sh\n"), gzip(b"echo\n")].concat();
        check_refused(&two, torn);
        check_refused(&gzip(&vec![b'#'; MOST_UNPACKED_BYTES + 1]), "is compressed and longer than 8 MiB");
        check_refused(&gzip(&gzip(b"#!/bin/sh\n")), unknown);
    }

    fn ours(image_credentials: OldCredentials) -> OurParts<'static> {
        OurParts { user: None, hash: Some("H"), keys: &[], image_credentials }
    }

    #[track_caller]
    fn combined(customer: Option<&CustomerData>, image: OldCredentials) -> String {
        let bytes = combine(customer, &ours(image));
        assert_eq!(*bytes, *combine(customer, &ours(image)), "the same twice");
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_customers_bytes_stand_before_ours() {
        assert_eq!(
            combined(None, OldCredentials::Stay),
            String::from_utf8(ours(OldCredentials::Stay).alone().to_vec()).unwrap()
        );
        let binary = [&b"#!/bin/sh\n"[..], &[0xff; 200]].concat();
        let text = combined(Some(&customer(&binary).unwrap()), OldCredentials::Stay);
        let encoded = text.split("text/plain\n").nth(1).unwrap().split("\n\n").nth(1).unwrap();
        assert_eq!(Base64::decode_vec(&encoded.replace('\n', "")).unwrap(), binary);
        assert!(encoded.lines().all(|line| line.len() <= 76));
        assert_eq!(text.matches("Content-Type: ").count(), 3, "no list of users, so no third part");

        let listed = combined(Some(&customer(b"#cloud-config\nusers: []\n").unwrap()), OldCredentials::Stay);
        assert_eq!(listed.matches("Content-Type: text/cloud-config").count(), 2);
        let escaped = customer(b"#cloud-config\n{\"\\u0075sers\": []}\n").unwrap();
        let listed = combined(Some(&escaped), OldCredentials::Stay);
        assert_eq!(listed.matches("Content-Type: text/cloud-config").count(), 2);
        let mime = combined(Some(&customer(MIME).unwrap()), OldCredentials::Stay);
        assert!(mime.contains(std::str::from_utf8(MIME).unwrap()), "nested as it is");
        let packed = combined(Some(&customer(&gzip(b"#!/bin/sh\n")).unwrap()), OldCredentials::Stay);
        assert!(packed.contains("application/x-gzip"));
        let packed = combined(Some(&customer(&gzip(MIME)).unwrap()), OldCredentials::Stay);
        assert!(packed.contains(std::str::from_utf8(MIME).unwrap()), "cloud-init opens no MIME inside gzip");
    }

    #[test]
    fn the_boothook_stands_before_all_else() {
        let script = customer(b"#!/bin/sh\n").unwrap();
        for customer in [None, Some(&script)] {
            let text = combined(customer, OldCredentials::Revoke);
            let kinds: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("Content-Type: ")).collect();
            assert_eq!(kinds[1], "text/cloud-boothook", "{text}");
            assert_eq!(kinds.last(), Some(&"text/cloud-config"));
        }
    }

    #[test]
    fn the_boundary_is_in_no_part() {
        let first = boundary(b"");
        assert_eq!(boundary(b""), first);
        let holding = format!("--{}", boundary(b"x"));
        assert!(!holding.contains(&boundary(holding.as_bytes())));
    }
}
