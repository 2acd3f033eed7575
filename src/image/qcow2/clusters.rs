//! A set of clusters of a stretch of the file, in bounded memory: bits where they are close to each other, else a list.

use std::ops::RangeInclusive;

use super::owners::Room;

/// The set; the stretch begins at the cluster `first`.
pub(super) struct Clusters {
    first: u64,
    room: Room,
    form: Form,
}

enum Form {
    /// A bit for each cluster from `first` on.
    Bits(Vec<u64>),
    /// Their numbers, in any order until `finish`; how many of them `first_of` has passed.
    List(Vec<u64>, usize),
}

impl Clusters {
    /// Of a file of so many clusters.
    pub(super) fn of(first: u64, file_clusters: u64, room: Room) -> Self {
        let len = file_clusters.saturating_sub(first);
        let form = if len <= room.clusters { Form::Bits(bits(len)) } else { Form::List(Vec::new(), 0) };
        Self { first, room, form }
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.form, Form::List(..))
    }

    /// Puts in a cluster from `first` on that is in the stretch; whether it is known to have been in it already.
    #[inline]
    pub(super) fn add(&mut self, cluster: u64) -> bool {
        match &mut self.form {
            Form::Bits(bits) => {
                let (word, bit) = place(cluster - self.first);
                let was = bits[word] & bit != 0;
                bits[word] |= bit;
                was
            }
            Form::List(list, _) => {
                list.push(cluster);
                false
            }
        }
    }

    #[inline]
    pub(super) fn is_full(&self) -> bool {
        matches!(&self.form, Form::List(list, _) if list.len() >= self.room.listed)
    }

    /// Makes room in a full list; where the stretch must end for that, if it must. `twice` gets what is in it again.
    pub(super) fn make_room(&mut self, twice: impl FnMut(u64)) -> Option<u64> {
        let Form::List(list, _) = &mut self.form else { return None };
        sort(list, twice);
        let middle = *list.get(self.room.listed / 2)?;
        Some(middle.max(self.first + self.room.clusters))
    }

    /// Takes out what lies behind the stretch's new end; the first of that, if there is any. `twice` as above.
    pub(super) fn cut(&mut self, end: u64, mut twice: impl FnMut(u64)) -> Option<u64> {
        let len = end - self.first;
        match &mut self.form {
            Form::Bits(bits) => {
                let (first_word, bit) = place(len);
                let behind = bits
                    .get_mut(first_word)
                    .map(|word| std::mem::replace(word, *word & (bit - 1)) & !(bit - 1));
                let rest = bits.get(first_word + 1..).unwrap_or_default();
                let words = behind.into_iter().chain(rest.iter().copied());
                let mut words = (len / 64..).zip(words);
                let found = words.find(|(_, word)| *word != 0);
                let found =
                    found.map(|(index, word)| self.first + index * 64 + u64::from(word.trailing_zeros()));
                bits.truncate(first_word + 1);
                found
            }
            Form::List(list, _) => {
                let behind = list.iter().copied().filter(|cluster| *cluster >= end).min();
                list.retain(|cluster| *cluster < end);
                if len <= self.room.clusters {
                    let mut bits = bits(len);
                    for cluster in list {
                        let (word, bit) = place(*cluster - self.first);
                        if bits[word] & bit != 0 {
                            twice(*cluster);
                        }
                        bits[word] |= bit;
                    }
                    self.form = Form::Bits(bits);
                }
                behind
            }
        }
    }

    /// Puts a list in order. `twice` gets what is in it again.
    pub(super) fn finish(&mut self, twice: impl FnMut(u64)) {
        if let Form::List(list, _) = &mut self.form {
            sort(list, twice);
        }
    }

    /// The first cluster that is in the set, of a few; after `finish`, asked in their order.
    pub(super) fn first_of(&mut self, mut clusters: RangeInclusive<u64>) -> Option<u64> {
        match &mut self.form {
            Form::Bits(bits) => clusters.find(|cluster| {
                let (word, bit) = place(cluster - self.first);
                bits.get(word).is_some_and(|word| word & bit != 0)
            }),
            Form::List(list, passed) => {
                *passed += list[*passed..].iter().take_while(|cluster| *cluster < clusters.start()).count();
                list.get(*passed).copied().filter(|cluster| clusters.contains(cluster))
            }
        }
    }
}

fn bits(len: u64) -> Vec<u64> {
    vec![0; usize::try_from(len.div_ceil(64)).expect("at most 2 Mi words")]
}

/// The word and the bit of a cluster by its number in the stretch.
fn place(index: u64) -> (usize, u64) {
    (usize::try_from(index / 64).expect("at most 2 Mi words"), 1 << (index % 64))
}

/// Puts a list in order, each number once; `twice` gets the others.
fn sort(list: &mut Vec<u64>, mut twice: impl FnMut(u64)) {
    list.sort_unstable();
    list.dedup_by(|later, earlier| {
        let is_same = later == earlier;
        if is_same {
            twice(*later);
        }
        is_same
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_before_its_end_whichever_form_it_has() {
        for (file_clusters, spacing) in [(1000, 1), (1 << 40, 1), (1 << 40, 3), (1 << 40, 1 << 20)] {
            for end in [1, 63, 64, 65, 128, 200, 1 << 21] {
                let room = Room { clusters: 1000, listed: 64, streams: 64 };
                let mut set = Clusters::of(7, file_clusters, room);
                let all: BTreeSet<u64> = (0..50).map(|number| 7 + number * spacing).collect();
                for cluster in &all {
                    assert!(!set.add(*cluster));
                }
                set.add(7);
                let mut again = Vec::new();
                let behind = set.cut(7 + end, |cluster| again.push(cluster));
                assert_eq!(behind, all.range(7 + end..).next().copied(), "spacing {spacing}, end {end}");
                set.finish(|cluster| again.push(cluster));
                assert_eq!(again, if file_clusters == 1000 { vec![] } else { vec![7] });
                for cluster in 7..7 + end.min(300) {
                    let expected =
                        all.range(cluster..=cluster + 2).next().copied().filter(|found| *found < 7 + end);
                    assert_eq!(set.first_of(cluster..=cluster + 2), expected, "{spacing}, {end}, {cluster}");
                }
            }
        }
    }
}
