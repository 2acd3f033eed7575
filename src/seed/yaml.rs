//! YAML with the lines it was written on, bounded: aliases are followed and never copied.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use zeroize::Zeroizing;

use super::mime;

/// Deeper than any configuration, and shallow enough to recurse.
const MOST_DEPTH: usize = 64;
/// More than any configuration has.
const MOST_NODES: usize = 100_000;
/// How many chained aliases are followed.
const MOST_HOPS: usize = 8;

/// A document whose nodes are named by number.
pub(super) struct Document {
    nodes: Vec<Node>,
}

/// A node and the line it begins on, from 1.
pub(super) enum Node {
    Scalar {
        text: Zeroizing<String>,
        line: usize,
        /// Whether it is in quotes, or a block, and so certainly a string.
        is_quoted: bool,
        /// Whether the text's lines are the document's, the first of them on `line`, below the mark.
        is_block: bool,
    },
    List {
        line: usize,
        items: Vec<usize>,
    },
    Map {
        line: usize,
        /// Keys and values in turn.
        items: Vec<usize>,
    },
    Alias {
        line: usize,
        target: usize,
    },
}

/// It cannot be read, from about this line on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) line: usize,
}

/// Reads the one document of a text.
pub(super) fn parse(text: &str) -> Result<Document, Unreadable> {
    // PyYAML has YAML 1.1, where these end a line; in 1.2, as here, they are letters.
    if let Some(at) = text.find(['\u{85}', '\u{2028}', '\u{2029}']) {
        return Err(Unreadable { line: text[..at].matches('\n').count() + 1 });
    }
    let mut builder = Builder::default();
    let mut documents = 0;
    let mut parser = Parser::new_from_str(text);
    let mut line = 1;
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Unreadable { line: error.marker().line().max(1) })?;
        line = span.start.line().max(1);
        if matches!(event, Event::DocumentStart(_)) {
            documents += 1;
        }
        if documents > 1 {
            return Err(Unreadable { line });
        }
        builder.take(event, span).ok_or(Unreadable { line })?;
    }
    if builder.open.is_empty() { Ok(Document { nodes: builder.nodes }) } else { Err(Unreadable { line }) }
}

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    open: Vec<usize>,
    anchors: HashMap<usize, usize>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let line = span.start.line().max(1);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                let text = Zeroizing::new(text.into_owned());
                let (text, is_block) = match tag.as_deref().is_some_and(is_binary) {
                    true => (mime::from_base64(&text).map(|bytes| lossy(&bytes))?, false),
                    false => (text, is_block),
                };
                let is_quoted = style != ScalarStyle::Plain;
                self.add(Node::Scalar { text, line, is_quoted, is_block }, anchor)?;
            }
            Event::Alias(anchor) => {
                let target = *self.anchors.get(&anchor)?;
                self.add(Node::Alias { line, target }, 0)?;
            }
            Event::SequenceStart(anchor, _) => {
                let at = self.add(Node::List { line, items: Vec::new() }, anchor)?;
                self.open.push(at);
            }
            Event::MappingStart(anchor, _) => {
                let at = self.add(Node::Map { line, items: Vec::new() }, anchor)?;
                self.open.push(at);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.open.pop()?;
            }
            _ => {}
        }
        (self.open.len() <= MOST_DEPTH).then_some(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Option<usize> {
        let at = self.nodes.len();
        if at >= MOST_NODES {
            return None;
        }
        if anchor != 0 {
            self.anchors.insert(anchor, at);
        }
        if let Some(parent) = self.open.last() {
            match &mut self.nodes[*parent] {
                Node::List { items, .. } | Node::Map { items, .. } => items.push(at),
                Node::Scalar { .. } | Node::Alias { .. } => return None,
            }
        }
        self.nodes.push(node);
        Some(at)
    }
}

fn is_binary(tag: &Tag) -> bool {
    format!("{}{}", tag.handle, tag.suffix).ends_with("yaml.org,2002:binary")
}

fn lossy(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(String::from_utf8_lossy(bytes).into_owned())
}

impl Document {
    /// The outermost node, which comes first; none in an empty document.
    pub(super) fn root(&self) -> Option<usize> {
        match self.nodes.first()? {
            Node::Scalar { text, is_quoted: false, .. } if text.is_empty() => None,
            _ => Some(0),
        }
    }

    /// The node, or the one that an alias stands for.
    pub(super) fn node(&self, at: usize) -> &Node {
        let mut node = &self.nodes[at];
        for _ in 0..MOST_HOPS {
            match node {
                Node::Alias { target, .. } => node = &self.nodes[*target],
                _ => break,
            }
        }
        node
    }

    /// The line where it is written, for an alias that of the alias.
    pub(super) fn line(&self, at: usize) -> usize {
        match &self.nodes[at] {
            Node::Scalar { line, .. }
            | Node::List { line, .. }
            | Node::Map { line, .. }
            | Node::Alias { line, .. } => *line,
        }
    }

    pub(super) fn is_map(&self, at: usize) -> bool {
        matches!(self.node(at), Node::Map { .. })
    }

    pub(super) fn is_list(&self, at: usize) -> bool {
        matches!(self.node(at), Node::List { .. })
    }

    pub(super) fn text(&self, at: usize) -> Option<&str> {
        match self.node(at) {
            Node::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether the text's lines are lines of the document.
    pub(super) fn is_block(&self, at: usize) -> bool {
        matches!(self.node(at), Node::Scalar { is_block: true, .. })
    }

    /// How much a look at each of its items takes.
    pub(super) fn len(&self, at: usize) -> usize {
        match self.node(at) {
            Node::List { items, .. } | Node::Map { items, .. } => items.len() + 1,
            Node::Scalar { text, .. } => text.len() / 64 + 1,
            Node::Alias { .. } => 1,
        }
    }

    /// The items of a list, none for anything else.
    pub(super) fn items(&self, at: usize) -> &[usize] {
        match self.node(at) {
            Node::List { items, .. } => items,
            _ => &[],
        }
    }

    /// Keys with their values, none for anything but a mapping.
    pub(super) fn pairs(&self, at: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let items: &[usize] = match self.node(at) {
            Node::Map { items, .. } => items,
            _ => &[],
        };
        items.chunks_exact(2).map(|pair| (pair[0], pair[1]))
    }

    /// The value of a key; of a key given twice the last one, as PyYAML has it.
    pub(super) fn get(&self, map: usize, key: &str) -> Option<usize> {
        self.pairs(map).filter(|(name, _)| self.text(*name) == Some(key)).last().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_text() {
        let text =
            "#cloud-config\na: 1\nb:\n  - x\n  - |\n    one\n    two\n  - \"q\"\nc: &c [1, 2]\nd: *c\n";
        let document = parse(text).unwrap();
        let root = document.root().unwrap();
        let lines: Vec<_> =
            document.pairs(root).map(|(key, value)| (document.line(key), document.line(value))).collect();
        assert_eq!(lines, [(2, 2), (3, 4), (9, 9), (10, 10)]);
        let list = document.get(root, "b").unwrap();
        let lines: Vec<_> = document.items(list).iter().map(|at| document.line(*at)).collect();
        assert_eq!(lines, [4, 6, 8]);
        assert_eq!(document.items(document.get(root, "d").unwrap()).len(), 2);
    }

    #[test]
    fn what_would_not_end_is_unreadable() {
        for text in ["[".repeat(1 << 20), "- ".repeat(1 << 19), "{a: ".repeat(1 << 18), "? ".repeat(1 << 19)]
        {
            assert!(parse(&text).is_err(), "{}", &text[..4]);
        }
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(MOST_DEPTH)).is_ok());
        assert!(parse(&nested(MOST_DEPTH + 1)).is_err());
        assert!(parse(&"- a\n".repeat(MOST_NODES + 1)).is_err());
        let mut bomb = String::from("a0: &a0 [x, x]\n");
        for n in 1..40 {
            bomb.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
        }
        assert!(parse(&bomb).is_ok(), "aliases are not copied");
        for text in ["a: *none\n", "a: [1\n", "a: b: c\n", "a: 1\n---\nb: 2\n", "a: !!binary x\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("").unwrap().root().is_none());
    }

    #[test]
    fn line_ends_of_yaml_1_1_are_unreadable_where_they_stand() {
        for end in ['\u{85}', '\u{2028}', '\u{2029}'] {
            let read = parse(&format!("#cloud-config\n\n{end}fs_setup: []\n"));
            assert_eq!(read.err(), Some(Unreadable { line: 3 }), "{end:?}");
        }
    }

    #[test]
    fn binary_text_is_decoded() {
        for tag in ["!!binary", "!<tag:yaml.org,2002:binary>"] {
            let document = parse(&format!("a: {tag} |\n  bWt\n  mcw==\n")).unwrap();
            let text = document.get(document.root().unwrap(), "a").unwrap();
            assert_eq!((document.text(text), document.is_block(text)), (Some("mkfs"), false), "{tag}");
        }
    }
}
