//! A table of digests as JSON: runs of neighbouring chunks that hold data; what is left out is zero.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Serialize, Serializer};

use super::{CHUNK, CHUNK_LEN, Digest, DigestTable};

/// More chunks with data than this are neither written nor read: 2 TiB of data, and 80 MiB of memory.
pub(crate) const MOST_CHUNKS: usize = 1 << 21;
/// A table is read for no larger disk: what a file or a device can have.
pub(crate) const LARGEST_DISK: u64 = i64::MAX as u64;

/// What is wrong with a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TableFault {
    #[error("a disk of {0} bytes is larger than any")]
    Size(u64),
    #[error("chunk {0} comes behind one that it must come before")]
    Order(u64),
    #[error("chunk {0} lies behind the end of the disk")]
    BehindEnd(u64),
    #[error("chunk {0} has the digest of zeroes, and chunks of zeroes are left out")]
    Zeroes(u64),
}

/// The digests of a table's chunks, in the order in which they were read; nothing of them is checked yet.
#[derive(Default)]
pub(crate) struct Runs(Vec<(u64, Digest)>);

impl Runs {
    /// The table of a disk of that size, if these are its chunks: ascending, on the disk, none of them zero.
    pub(crate) fn into_table(self, virtual_size: u64) -> Result<DigestTable, TableFault> {
        if virtual_size > LARGEST_DISK {
            return Err(TableFault::Size(virtual_size));
        }
        let count = virtual_size.div_ceil(CHUNK);
        let zeroes = vec![0; CHUNK_LEN];
        let of_zeroes = Digest::of(&zeroes);
        let rest = usize::try_from(virtual_size % CHUNK).expect("less than a chunk");
        let last_of_zeroes = if rest == 0 { of_zeroes } else { Digest::of(&zeroes[..rest]) };
        let mut least = 0;
        for (index, digest) in &self.0 {
            let fault = match *index {
                index if index < least => TableFault::Order(index),
                index if index >= count => TableFault::BehindEnd(index),
                index if *digest == (if index + 1 == count { last_of_zeroes } else { of_zeroes }) => {
                    TableFault::Zeroes(index)
                }
                index => {
                    least = index + 1;
                    continue;
                }
            };
            return Err(fault);
        }
        Ok(DigestTable::of_sorted(virtual_size, self.0))
    }
}

/// The table as runs: each says which chunk is its first, and has their digests.
impl Serialize for DigestTable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Run<'a> {
            first: u64,
            digests: Digests<'a>,
        }
        struct Digests<'a>(&'a [(u64, Digest)]);
        impl Serialize for Digests<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.iter().map(|(_, digest)| digest))
            }
        }
        let mut runs = serializer.serialize_seq(None)?;
        for run in self.chunks().chunk_by(|left, right| left.0 + 1 == right.0) {
            runs.serialize_element(&Run { first: run[0].0, digests: Digests(run) })?;
        }
        runs.end()
    }
}

impl<'de> Deserialize<'de> for Runs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut chunks = Vec::new();
        deserializer.deserialize_seq(AllRuns(&mut chunks))?;
        Ok(Self(chunks))
    }
}

/// Reads run after run straight into one list, so that a table is in memory once.
struct AllRuns<'a>(&'a mut Vec<(u64, Digest)>);

impl<'de> Visitor<'de> for AllRuns<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of runs of chunks")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut runs: A) -> Result<(), A::Error> {
        while runs.next_element_seed(OneRun(self.0))?.is_some() {}
        Ok(())
    }
}

struct OneRun<'a>(&'a mut Vec<(u64, Digest)>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    First,
    Digests,
    #[serde(other)]
    Unknown,
}

impl<'de> DeserializeSeed<'de> for OneRun<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneRun<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a run of chunks: first and digests")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        use serde::de::Error as _;
        let (begin, mut first, mut has_digests) = (self.0.len(), None, false);
        while let Some(field) = fields.next_key()? {
            match field {
                Field::First if first.is_none() => first = Some(fields.next_value::<u64>()?),
                Field::Digests if !has_digests => {
                    has_digests = true;
                    fields.next_value_seed(Digests(self.0))?;
                }
                Field::First => return Err(A::Error::duplicate_field("first")),
                Field::Digests => return Err(A::Error::duplicate_field("digests")),
                Field::Unknown => {
                    fields.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        let first = first.ok_or_else(|| A::Error::missing_field("first"))?;
        if !has_digests {
            return Err(A::Error::missing_field("digests"));
        }
        if self.0.len() == begin {
            return Err(A::Error::custom("a run has one digest at the least"));
        }
        for (index, _) in &mut self.0[begin..] {
            *index =
                index.checked_add(first).ok_or_else(|| A::Error::custom("a chunk's number is too large"))?;
        }
        Ok(())
    }
}

/// Reads the digests of a run behind those of the runs before; chunks are counted from the run's first.
struct Digests<'a>(&'a mut Vec<(u64, Digest)>);

impl<'de> DeserializeSeed<'de> for Digests<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Digests<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of digests")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut digests: A) -> Result<(), A::Error> {
        use serde::de::Error as _;
        let mut index = 0;
        while let Some(digest) = digests.next_element()? {
            if self.0.len() == MOST_CHUNKS {
                return Err(A::Error::custom(format!("there are more than {MOST_CHUNKS} chunks")));
            }
            self.0.push((index, digest));
            index += 1;
        }
        Ok(())
    }
}
