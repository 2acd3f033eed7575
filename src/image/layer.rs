//! One layer of an image: a file and how its content is to be understood.

use super::content::{self, Content, Seen};
use super::error::ImageError;
use super::fault::{Scope, Sink};
use super::file::SourceFile;
use super::qcow2::{Budget, Compression, ENTRIES_MAX, Qcow2};
use super::run::{Run, RunKind};
use super::stream::Codec;
use super::{Format, LayerInfo, Nested};
use crate::range::ByteRange;

/// A file and its format.
pub(super) struct Layer {
    pub(super) file: SourceFile,
    pub(super) format: LayerFormat,
}

/// How far what a layer tells at an offset of its disk reaches.
pub(super) struct Reach {
    /// The rest of that of which one entry tells.
    pub(super) entry: ByteRange,
    /// The rest of that of which the table around it tells.
    pub(super) table: ByteRange,
    /// How many bytes one look at entries takes in at most.
    pub(super) most: u64,
}

/// How a layer's content is to be understood.
pub(super) enum LayerFormat {
    /// The file is the disk.
    Raw,
    /// The file describes the disk.
    Qcow2(Box<Qcow2>),
}

impl Layer {
    /// Decides the format of an open file and checks everything but L2 tables.
    pub(super) fn open(
        file: SourceFile,
        format: Format,
        nested: Nested,
        (budget, sink): (&mut Budget, &mut Sink<'_>),
    ) -> Result<Self, ImageError> {
        let format = match decide(&file, format, nested)? {
            // What is no version 2 or 3 is refused by its header.
            Content::Qcow2 | Content::Qcow1 => {
                LayerFormat::Qcow2(Box::new(Qcow2::open(&file, budget, sink)?))
            }
            Content::Plain | Content::Foreign(_) | Content::Packed(_) => LayerFormat::Raw,
        };
        Ok(Self { file, format })
    }

    pub(super) fn virtual_size(&self) -> u64 {
        match &self.format {
            LayerFormat::Raw => self.file.len(),
            LayerFormat::Qcow2(qcow2) => qcow2.header.virtual_size,
        }
    }

    /// The first run of a range, which is not empty and within the layer's virtual disk.
    pub(super) fn run_at(&self, range: ByteRange) -> Result<Run, ImageError> {
        match &self.format {
            LayerFormat::Raw => Ok(Run { range, kind: RunKind::Data { host_offset: range.start() } }),
            LayerFormat::Qcow2(qcow2) => qcow2.run_at(&self.file, range),
        }
    }

    /// How far what its entries tell at an offset of its disk reaches.
    pub(super) fn reach_at(&self, at: u64) -> Reach {
        let (entry, table, most) = match &self.format {
            LayerFormat::Raw => (1 << 63, 1 << 63, u64::MAX),
            LayerFormat::Qcow2(qcow2) => (
                qcow2.header.cluster_size(),
                1 << qcow2.header.l2_span_bits(),
                qcow2.header.cluster_size() * u64::from(ENTRIES_MAX),
            ),
        };
        let rest = |len: u64| {
            let end = (at - at % len).saturating_add(len);
            ByteRange::between(at, end.min(self.virtual_size()))
        };
        Reach { entry: rest(entry), table: rest(table), most }
    }

    /// Checks all tables, whatever part of them is needed.
    pub(super) fn walk(&self, scope: Scope, sink: &mut Sink<'_>) -> Result<(), ImageError> {
        match &self.format {
            LayerFormat::Raw => Ok(()),
            LayerFormat::Qcow2(qcow2) => qcow2.walk(&self.file, scope, sink),
        }
    }

    pub(super) fn info(&self) -> LayerInfo {
        let mut info = LayerInfo {
            path: self.file.path().into(),
            format: "raw",
            virtual_size: self.virtual_size(),
            file_size: self.file.len(),
            version: None,
            cluster_size: None,
            compression: None,
            checksums: None,
            extended_l2: None,
            refcount_bits: None,
            snapshots: None,
            dirty: None,
            lazy_refcounts: None,
        };
        if let LayerFormat::Qcow2(qcow2) = &self.format {
            let header = &qcow2.header;
            info.format = "qcow2";
            info.version = Some(header.version);
            info.cluster_size = Some(header.cluster_size());
            info.compression = Some(match header.compression {
                Compression::Zlib => "zlib",
                Compression::Zstd => "zstd",
            });
            info.extended_l2 = Some(header.has_extended_l2());
            info.refcount_bits = Some(header.refcount_bits);
            info.snapshots = Some(header.snapshots);
            info.dirty = Some(header.dirty);
            info.lazy_refcounts = Some(header.lazy_refcounts);
        }
        info
    }
}

/// What a file is packed with, if content and name both say so and nobody says otherwise.
pub(super) fn packed_with(file: &SourceFile, format: Format) -> Result<Option<Codec>, ImageError> {
    let named = Codec::of_name(file.path()).filter(|_| format == Format::Auto);
    let Some(named) = named else { return Ok(None) };
    Ok((content::look(file)?.content == Content::Packed(named)).then_some(named))
}

/// What the content is to be read as: qcow2, or raw for everything else.
fn decide(file: &SourceFile, format: Format, nested: Nested) -> Result<Content, ImageError> {
    if (format, nested) == (Format::Raw, Nested::Allow) {
        // Whatever it holds, and whether or not that can be read.
        return Ok(Content::Plain);
    }
    let Seen { content, range } = content::look(file)?;
    let path = file.path();
    let named = path.extension().map(|ending| ending.to_ascii_lowercase());
    let named_qcow2 = named.as_ref().is_some_and(|ending| ending == "qcow2");
    let named_raw = named.as_ref().is_some_and(|ending| ending == "raw");
    let named_packed = Codec::of_name(path);
    let disagrees =
        |named| Err(ImageError::NameDisagrees { path: path.into(), named, content: content.name(), range });
    let is_to_be_qcow2 = format == Format::Qcow2 || (format == Format::Auto && named_qcow2);
    if is_to_be_qcow2
        && content == Content::Plain
        && let Some(holds) = content::nothing_in(file)?
    {
        return Err(ImageError::NoHeader { path: path.into(), holds, range });
    }
    match (format, content) {
        (Format::Qcow2, Content::Qcow2 | Content::Qcow1) => Ok(content),
        (Format::Qcow2, _) => Err(ImageError::NotQcow2 { path: path.into(), content: content.name(), range }),
        (Format::Auto, Content::Qcow2 | Content::Qcow1) if !named_raw && named_packed.is_none() => {
            Ok(content)
        }
        (Format::Auto, Content::Plain | Content::Foreign(_) | Content::Packed(_)) if named_qcow2 => {
            disagrees("qcow2")
        }
        (Format::Auto, _) if named_packed.is_some_and(|named| content != Content::Packed(named)) => {
            disagrees(named_packed.map_or("", Codec::name))
        }
        (_, Content::Plain) => Ok(content),
        _ if nested == Nested::Allow => Ok(Content::Plain),
        (Format::Auto, Content::Qcow2 | Content::Qcow1) => disagrees("raw"),
        (_, Content::Packed(codec)) => Err(ImageError::PackedUnsaid {
            path: path.into(),
            codec: codec.name(),
            ending: codec.ending(),
            range,
        }),
        (_, Content::Qcow2 | Content::Qcow1 | Content::Foreign(_)) => {
            Err(ImageError::NestedFormat { path: path.into(), content: content.name(), range })
        }
    }
}
