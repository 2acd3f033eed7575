//! What in a customer's user-data would hurt when a new instance id makes it run again.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::commands::{self, Around, Does};
use super::mime::{self, Lines};
use super::user_data::{CustomerData, Kind};
use super::yaml::{self, Document, Unreadable};

/// How deep archives and MIME documents may hold one another.
const MOST_DEPTH: usize = 4;
/// How many nodes below the keys of one document are looked at; aliases count each time.
const MOST_VISITS: usize = 100_000;
/// How deep these nodes may lie, aliases followed.
const MOST_NESTING: usize = 16;
/// The most that all compressed parts and files together may grow to.
const MOST_UNPACKED_BYTES: usize = 16 << 20;
/// So many findings tell enough.
const MOST_FINDINGS: usize = 64;

/// Against what the user-data is held.
pub(super) struct Against<'a> {
    /// The account that gets the new credentials, unless it is the image's default user.
    pub(super) user: Option<&'a str>,
    pub(super) password: NewPassword,
    /// The system disk's names in the guest, as `/dev/vda`.
    pub(super) system_disks: &'a [&'a str],
}

/// Whether the seed sets a password.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NewPassword {
    Set,
    /// Keys only: the old password is to be locked.
    None,
}

/// Something that must be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The line of the customer's file, unpacked if it is compressed; of an encoded part, the line
    /// where that begins.
    pub(super) line: usize,
    /// The key, or the program with its device; never a secret.
    pub(super) what: String,
    pub(super) harm: Harm,
}

/// What would happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// A data disk may be partitioned, formatted or overwritten.
    Disk,
    /// It may set the same user's password, at the first boot or a later one.
    Password,
    /// The new credentials would reach nobody: cloud-init cannot add an account to what is there.
    Lockout,
    /// Passwords for other users, for which cloud-init takes ours instead.
    Dropped,
    /// It cannot be read, and so not judged; cloud-init may overlook it too.
    Unread,
    /// It brings text from elsewhere, which cannot be judged.
    Elsewhere,
}

impl Harm {
    /// Whether a seed with it is refused, by default at least.
    fn is_refused(self) -> bool {
        matches!(self, Self::Disk | Self::Lockout | Self::Unread)
    }
}

/// All findings, in the order of lines.
pub(super) fn lint(customer: &CustomerData, against: &Against<'_>) -> Vec<Finding> {
    let mut lint = Lint { against, findings: Vec::new(), unpacked: 0 };
    let place = Place { line: 1, lines: Lines::AsGiven };
    lint.document(customer.document(), customer.kind(), place, 0);
    // What is refused comes before all that is only warned of, however much of that there is.
    lint.findings.sort_by_key(|finding| (!finding.harm.is_refused(), finding.line));
    lint.findings.dedup();
    lint.findings.truncate(MOST_FINDINGS);
    lint.findings.sort_by_key(|finding| finding.line);
    lint.findings
}

/// Where a text lies in the customer's file.
#[derive(Clone, Copy)]
struct Place {
    line: usize,
    lines: Lines,
}

impl Place {
    /// The line of the file for a line of the text, both from 1.
    fn of(self, line: usize) -> usize {
        match self.lines {
            Lines::AsGiven => self.line + line.saturating_sub(1),
            Lines::Encoded => self.line,
        }
    }
}

struct Lint<'a> {
    against: &'a Against<'a>,
    findings: Vec<Finding>,
    /// Bytes that were unpacked until now.
    unpacked: usize,
}

impl Lint<'_> {
    fn document(&mut self, bytes: &[u8], kind: Kind, place: Place, depth: usize) {
        let text = String::from_utf8_lossy(bytes);
        if depth > MOST_DEPTH {
            self.find(place.of(1), "a part in too many others", Harm::Unread);
            return;
        }
        match kind {
            Kind::CloudConfig => match yaml::parse(&text) {
                Ok(document) => self.cloud_config(&document, place),
                Err(unreadable) => self.unreadable(&text, unreadable, place),
            },
            Kind::Archive => match yaml::parse(&text) {
                Ok(document) => self.archive(&document, place, depth),
                Err(unreadable) => self.unreadable(&text, unreadable, place),
            },
            Kind::Mime => {
                for leaf in mime::leaves(&text) {
                    let lines = if place.lines == Lines::Encoded { Lines::Encoded } else { leaf.lines };
                    let inside = Place { line: place.of(leaf.line), lines };
                    match &leaf.body {
                        Some(body) => self.part(&leaf.kind, body, inside, depth + 1),
                        None => self.find(inside.line, "a MIME part that cannot be read", Harm::Unread),
                    }
                }
            }
            Kind::Jinja | Kind::JsonPatch => self.as_text(&text, place),
            Kind::Script | Kind::Boothook => self.shell(&text, Around::Shell, place),
            Kind::PartHandler => {
                self.shell(&text, Around::Anything, place);
                self.find(place.of(1), "#part-handler", Harm::Elsewhere);
            }
            Kind::Include => self.find(place.of(1), "#include", Harm::Elsewhere),
        }
    }

    /// A part whose content type may say what it is.
    fn part(&mut self, kind: &str, bytes: &[u8], place: Place, depth: usize) {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let text = self.unpack(bytes);
            match text.as_ref().and_then(|text| Some((text, Kind::of(text)?))) {
                Some((text, kind)) => {
                    self.document(text, kind, Place { lines: Lines::Encoded, ..place }, depth + 1);
                }
                None => self.find(place.line, "a compressed part", Harm::Unread),
            }
            return;
        }
        let said = match kind {
            "text/cloud-config" => Some(Kind::CloudConfig),
            "text/cloud-config-archive" => Some(Kind::Archive),
            "text/cloud-config-jsonp" => Some(Kind::JsonPatch),
            "text/jinja2" => Some(Kind::Jinja),
            "text/cloud-boothook" => Some(Kind::Boothook),
            "text/x-include-url" | "text/x-include-once-url" => Some(Kind::Include),
            "text/part-handler" => Some(Kind::PartHandler),
            _ if kind.starts_with("text/x-shellscript") => Some(Kind::Script),
            _ => Kind::of(bytes),
        };
        self.document(bytes, said.unwrap_or(Kind::Script), place, depth);
    }

    fn archive(&mut self, document: &Document, place: Place, depth: usize) {
        let Some(root) = document.root() else { return };
        let items = document.items(root);
        if items.len() > MOST_FINDINGS * 4 {
            self.find(place.of(1), "more parts than are looked at", Harm::Unread);
        }
        for item in items.iter().take(MOST_FINDINGS * 4) {
            let content = document.get(*item, "content").unwrap_or(*item);
            let Some(text) = document.text(content) else { continue };
            let said =
                document.get(*item, "type").and_then(|at| document.text(at)).unwrap_or("text/cloud-config");
            let kind = if said.contains('/') && document.is_map(*item) { said } else { "text/plain" };
            let detected = Kind::of(text.as_bytes()).is_some();
            let kind = if detected && document.get(*item, "type").is_none() { "text/plain" } else { kind };
            let lines = if document.is_block(content) { place.lines } else { Lines::Encoded };
            let inside = Place { line: place.of(document.line(content)), lines };
            self.part(kind, text.as_bytes(), inside, depth + 1);
        }
    }

    fn cloud_config(&mut self, document: &Document, place: Place) {
        let Some(root) = document.root() else { return };
        let mut visits = MOST_VISITS;
        let mut keys = Vec::new();
        merged_pairs(document, root, 0, &mut visits, &mut keys);
        let ran = words_that_run(document, &keys, &mut visits);
        for (key, value) in keys {
            let line = place.of(document.line(key));
            let Some(name) = document.text(key) else { continue };
            match name {
                "disk_setup" | "fs_setup" => self.find(line, name, Harm::Disk),
                // What is looked through below counts too: an alias can be there a thousand times.
                _ if !spend(&mut visits, document.len(value)) => break,
                "growpart" => self.growpart(document, value, line),
                "bootcmd" | "runcmd" => self.run(document, value, place, &mut visits),
                "write_files" => self.files(document, value, &ran, place, &mut visits),
                "users" => self.users(document, value, line, &mut visits),
                "password" | "chpasswd" if self.against.password == NewPassword::None => {
                    self.find(line, name, Harm::Password);
                }
                "chpasswd" if document.get(value, "users").or(document.get(value, "list")).is_some() => {
                    self.find(line, name, Harm::Dropped);
                }
                "user" | "groups" | "packages" | "password" | "chpasswd" => {}
                _ => self.others(document, value, place, 0, &mut visits),
            }
        }
        if visits == 0 {
            self.find(place.of(1), "more aliases than can be followed", Harm::Unread);
        }
    }

    fn growpart(&mut self, document: &Document, value: usize, line: usize) {
        let Some(devices) = document.get(value, "devices") else { return };
        let listed = document.items(devices);
        let all_root = listed.iter().all(|at| document.text(*at) == Some("/"));
        if !all_root || (listed.is_empty() && !document.is_list(devices)) {
            self.find(line, "growpart", Harm::Disk);
        }
    }

    /// cloud-init adds ours to a list only; a string, a mapping or nothing stays as it is.
    fn users(&mut self, document: &Document, value: usize, line: usize, visits: &mut usize) {
        if !document.is_list(value) {
            if matches!(self.against.user, None | Some("root")) {
                self.find(line, "users", Harm::Lockout);
            }
            return;
        }
        if self.against.password == NewPassword::Set {
            return;
        }
        for user in document.items(value) {
            if !spend(visits, document.len(*user)) {
                return;
            }
            let name = document.get(*user, "name").and_then(|at| document.text(at));
            let same = self.against.user.is_none() || name == self.against.user;
            let sets = ["passwd", "hashed_passwd", "plain_text_passwd", "hashed-passwd", "plain-text-passwd"];
            if same && sets.iter().any(|key| document.get(*user, key).is_some()) {
                self.find(line, "users", Harm::Password);
            }
        }
    }

    fn run(&mut self, document: &Document, value: usize, place: Place, visits: &mut usize) {
        if let Some(text) = document.text(value) {
            self.command(document, value, text, place);
        }
        for item in document.items(value) {
            if !spend(visits, document.len(*item)) {
                return;
            }
            match document.text(*item) {
                Some(text) => self.command(document, *item, text, place),
                None => {
                    let mut words = Vec::new();
                    collect_words(document, *item, 0, visits, &mut words);
                    let inside = Place { line: place.of(document.line(*item)), lines: Lines::Encoded };
                    self.shell(&words.join(" "), Around::Shell, inside);
                }
            }
        }
    }

    fn command(&mut self, document: &Document, at: usize, text: &str, place: Place) {
        self.shell(text, Around::Shell, within(document, at, place));
    }

    /// cloud-init runs what it writes into its own folder of scripts, and `runcmd` may run any other file.
    fn files(
        &mut self,
        document: &Document,
        list: usize,
        ran: &HashSet<&str>,
        place: Place,
        visits: &mut usize,
    ) {
        for file in document.items(list) {
            let mut pairs = Vec::new();
            merged_pairs(document, *file, 0, visits, &mut pairs);
            let get = |key: &str| {
                let merged = || pairs.iter().find(|(name, _)| document.text(*name) == Some(key));
                document.get(*file, key).or_else(|| Some(merged()?.1))
            };
            let text = |key: &str| get(key).and_then(|at| document.text(at)).unwrap_or_default();
            if get("source").is_some() {
                self.find(place.of(document.line(*file)), "write_files, source", Harm::Elsewhere);
            }
            let Some(content) = get("content") else { continue };
            if !spend(visits, document.len(content) + document.len(*file)) {
                return;
            }
            let inside = within(document, content, place);
            let packed = document.text(content).unwrap_or_default();
            let (bytes, lines) = match text("encoding").trim().to_ascii_lowercase().as_str() {
                "gz" | "gzip" => (self.unpack(packed.as_bytes()), Lines::Encoded),
                "b64" | "base64" => (mime::from_base64(packed), Lines::Encoded),
                "gz+base64" | "gzip+base64" | "gz+b64" | "gzip+b64" => {
                    (mime::from_base64(packed).and_then(|bytes| self.unpack(&bytes)), Lines::Encoded)
                }
                _ => (Some(Zeroizing::new(packed.as_bytes().to_vec())), inside.lines),
            };
            let Some(bytes) = bytes else {
                self.find(inside.line, "write_files, content", Harm::Unread);
                continue;
            };
            let path = text("path");
            let runs =
                path.starts_with("/var/lib/cloud/scripts") || bytes.starts_with(b"#!") || ran.contains(path);
            let around = if runs { Around::Shell } else { Around::Anything };
            self.shell(&String::from_utf8_lossy(&bytes), around, Place { lines, ..inside });
        }
    }

    /// Of keys that are not known here: some run commands too, such as `power_state` and `snap`.
    fn others(&mut self, document: &Document, at: usize, place: Place, depth: usize, visits: &mut usize) {
        if depth > MOST_NESTING {
            *visits = 0;
        }
        if !spend(visits, document.len(at)) {
            return;
        }
        if let Some(text) = document.text(at) {
            self.shell(text, Around::Anything, within(document, at, place));
        }
        let words: Vec<&str> = document.items(at).iter().filter_map(|item| document.text(*item)).collect();
        // A command may be a list of its words.
        if !words.iter().any(|word| word.contains(char::is_whitespace)) {
            let inside = Place { line: place.of(document.line(at)), lines: Lines::Encoded };
            self.shell(&words.join(" "), Around::Anything, inside);
        }
        let values = document.pairs(at).map(|(_, value)| value);
        for item in document.items(at).iter().copied().chain(values) {
            self.others(document, item, place, depth + 1, visits);
        }
    }

    fn unpack(&mut self, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if self.unpacked > MOST_UNPACKED_BYTES {
            return None;
        }
        let text = super::user_data::gunzip(bytes).ok()?;
        self.unpacked += text.len();
        (self.unpacked <= MOST_UNPACKED_BYTES).then_some(text)
    }

    /// Keys and commands of what cannot be read as a tree.
    fn as_text(&mut self, text: &str, place: Place) {
        for (number, line) in text.lines().enumerate() {
            for key in ["disk_setup", "fs_setup"] {
                let before = line.split(key).next().unwrap_or_default();
                let is_comment = before.trim_start().starts_with('#') || before.len() == line.len();
                let begins =
                    before.chars().last().is_none_or(|letter| !letter.is_alphanumeric() && letter != '_');
                if !is_comment && begins {
                    self.find(place.of(number + 1), key, Harm::Disk);
                }
            }
        }
        self.shell(text, Around::Anything, place);
    }

    fn unreadable(&mut self, text: &str, unreadable: Unreadable, place: Place) {
        self.find(place.of(unreadable.line), "YAML that cannot be read", Harm::Unread);
        self.as_text(text, place);
    }

    fn shell(&mut self, text: &str, around: Around, place: Place) {
        for command in commands::commands(text, around, self.against.system_disks) {
            let harm = match command.does {
                Does::DestroyDisk => Harm::Disk,
                Does::SetPassword => Harm::Password,
            };
            self.find(place.of(command.line + 1), &command.shown, harm);
        }
    }

    fn find(&mut self, line: usize, what: &str, harm: Harm) {
        // Enough to be told, and no more than fits: hostile text could have one on each line.
        let alike = self.findings.iter().filter(|found| found.harm.is_refused() == harm.is_refused()).count();
        if alike < MOST_FINDINGS * 16 {
            self.findings.push(Finding { line, what: what.into(), harm });
        }
    }
}

/// Whether so much may still be looked at.
fn spend(visits: &mut usize, cost: usize) -> bool {
    *visits = visits.saturating_sub(cost);
    *visits > 0
}

/// Where a text of a document lies in the customer's file.
fn within(document: &Document, at: usize, place: Place) -> Place {
    let lines = if document.is_block(at) { place.lines } else { Lines::Encoded };
    Place { line: place.of(document.line(at)), lines }
}

/// Every word that the commands of a configuration hold.
fn words_that_run<'a>(
    document: &'a Document,
    keys: &[(usize, usize)],
    visits: &mut usize,
) -> HashSet<&'a str> {
    let mut texts = Vec::new();
    for (key, value) in keys {
        if let Some("runcmd" | "bootcmd") = document.text(*key) {
            texts.extend(document.text(*value));
            collect_words(document, *value, 0, visits, &mut texts);
        }
    }
    let ends = |letter: char| letter.is_whitespace() || "\"'`;|&()<>".contains(letter);
    texts.into_iter().flat_map(|text| text.split(ends)).collect()
}

/// Keys with their values, those that `<<` brings included.
fn merged_pairs(
    document: &Document,
    map: usize,
    depth: usize,
    visits: &mut usize,
    pairs: &mut Vec<(usize, usize)>,
) {
    for (key, value) in document.pairs(map) {
        if depth > MOST_NESTING {
            *visits = 0;
        }
        if !spend(visits, 1) {
            return;
        }
        if document.text(key) != Some("<<") {
            pairs.push((key, value));
            continue;
        }
        merged_pairs(document, value, depth + 1, visits, pairs);
        for one in document.items(value) {
            merged_pairs(document, *one, depth + 1, visits, pairs);
        }
    }
}

fn collect_words<'a>(
    document: &'a Document,
    at: usize,
    depth: usize,
    visits: &mut usize,
    words: &mut Vec<&'a str>,
) {
    for item in document.items(at) {
        if depth > MOST_NESTING {
            *visits = 0;
        }
        if !spend(visits, document.len(*item)) {
            return;
        }
        match document.text(*item) {
            Some(text) => words.push(text),
            None => collect_words(document, *item, depth + 1, visits, words),
        }
    }
}

#[cfg(test)]
mod tests;
