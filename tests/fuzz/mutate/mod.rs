//! What is done to an image: each kind of damage knows how images are built, and where it hurts.

mod content;
mod header;
mod tables;

use crate::draft::Draft;
use crate::random::Random;
pub(crate) use header::{EXTENSIONS, FIELDS};

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A field of the header.
    Header,
    /// Feature bits and the compression type.
    Features,
    /// A header extension.
    Extension,
    /// The name of a backing file, and its format.
    Backing,
    /// An entry of the L1 table.
    L1,
    /// An entry of an L2 table.
    L2,
    /// A compressed cluster's entry.
    Descriptor,
    /// The bitmap of an extended entry.
    Subclusters,
    /// Bytes of a cluster, compressed or not.
    Payload,
    /// The file ends early.
    Cut,
    /// Bytes anywhere.
    Blind,
    /// Parts of another image.
    Splice,
    /// Several of the above.
    Several,
    /// Reference counts, which nobody who reads needs.
    Refcounts,
    /// Flags that change nothing for who reads.
    Flags,
    /// The internal snapshots.
    Snapshots,
    /// Bytes behind the end.
    Behind,
}

const KINDS: [Kind; 17] = [
    Kind::Header,
    Kind::Features,
    Kind::Extension,
    Kind::Backing,
    Kind::L1,
    Kind::L2,
    Kind::Descriptor,
    Kind::Subclusters,
    Kind::Payload,
    Kind::Cut,
    Kind::Blind,
    Kind::Splice,
    Kind::Several,
    Kind::Refcounts,
    Kind::Flags,
    Kind::Snapshots,
    Kind::Behind,
];

/// Those with the most ways to go wrong, which are tried twice as often.
const RICH: [Kind; 4] = [Kind::Header, Kind::L2, Kind::Descriptor, Kind::Payload];

impl Kind {
    pub(crate) fn any(random: &mut Random) -> Self {
        let number = random.place(KINDS.len() + RICH.len());
        KINDS.get(number).copied().unwrap_or_else(|| RICH[number - KINDS.len()])
    }

    /// Whether the image must still be read, and hold the same disk.
    pub(crate) fn is_benign(self) -> bool {
        matches!(self, Self::Refcounts | Self::Flags | Self::Snapshots | Self::Behind)
    }

    /// Damages an image; `other` is one to take parts from. An image that has nothing of that kind stays as it is.
    pub(crate) fn apply(self, draft: &mut Draft, other: &Draft, random: &mut Random) {
        match self {
            Self::Header => header::header(draft, random),
            Self::Features => header::features(draft, random),
            Self::Extension => header::extension(draft, random),
            Self::Backing => header::backing(draft, random),
            Self::L1 => tables::l1(draft, random),
            Self::L2 => tables::l2(draft, random),
            Self::Descriptor => tables::descriptor(draft, random),
            Self::Subclusters => tables::subclusters(draft, random),
            Self::Payload => content::payload(draft, random),
            Self::Cut => content::cut(draft, random),
            Self::Blind => content::blind(draft, random),
            Self::Splice => content::splice(draft, other, random),
            Self::Several => {
                for _ in 0..2 + random.below(3) {
                    KINDS[random.place(12)].apply(draft, other, random);
                }
            }
            Self::Refcounts => content::refcounts(draft, random),
            Self::Flags => content::flags(draft, random),
            Self::Snapshots => content::snapshots(draft, random),
            Self::Behind => {
                let len = 1 + random.place(3 * 4096);
                draft.bytes.extend(random.bytes(len));
            }
        }
    }
}
