//! How often clusters of a stretch of the file are used, in bounded memory: a number for each where they are close to
//! each other, else a list.

/// How much is counted at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsesRoom {
    /// How many clusters of the file, one behind the other, if these are too many for the list; none if a list must do.
    pub(super) clusters: u64,
    /// How many uses that lie apart are listed; behind one stretch it may be half of them.
    pub(super) listed: usize,
}

/// How often a cluster is used, and whether an entry says that nobody else uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Users(u32);

/// The same in less room: 15 bits of the count, of which the highest number stands for all that are not less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cell(u16);

/// What `Users::MANY` may be, at least.
pub(super) const MANY_LEAST: u64 = Cell::MANY as u64;

impl Cell {
    const SAID_ALONE: u16 = 1 << 15;
    const MANY: u16 = Self::SAID_ALONE - 1;

    fn and(self, users: Users) -> Self {
        Users::from(self).and(users).into()
    }
}

impl From<Cell> for Users {
    fn from(Cell(cell): Cell) -> Self {
        let count = cell & Cell::MANY;
        let count = if count == Cell::MANY { Self::MANY } else { u32::from(count) };
        Self::new(count, cell & Cell::SAID_ALONE != 0)
    }
}

impl From<Users> for Cell {
    fn from(users: Users) -> Self {
        let count = u16::try_from(users.count()).map_or(Self::MANY, |count| count.min(Self::MANY));
        Self(count | if users.said_alone() { Self::SAID_ALONE } else { 0 })
    }
}

impl Users {
    const SAID_ALONE: u32 = 1 << 31;
    /// So many that only `MANY_LEAST` are known.
    pub(super) const MANY: u32 = Self::SAID_ALONE - 1;

    pub(super) fn new(count: u32, says_alone: bool) -> Self {
        Self(count.min(Self::MANY) | if says_alone { Self::SAID_ALONE } else { 0 })
    }

    pub(super) fn count(self) -> u32 {
        self.0 & Self::MANY
    }

    pub(super) fn said_alone(self) -> bool {
        self.0 & Self::SAID_ALONE != 0
    }

    fn and(self, other: Self) -> Self {
        Self::new(self.count().saturating_add(other.count()), self.said_alone() || other.said_alone())
    }
}

/// The uses of a stretch that begins at the cluster `first`.
pub(super) struct Uses {
    first: u64,
    /// The number of the first cluster behind it.
    end: u64,
    room: UsesRoom,
    form: Form,
    /// The first cluster behind the stretch that is used.
    behind: Option<u64>,
}

enum Form {
    /// One for each cluster from `first` on.
    Cells(Vec<Cell>),
    /// In any order before the end, and any number of one cluster.
    List(Vec<(u64, Users)>),
}

impl Uses {
    /// Of a file of so many clusters.
    pub(super) fn of(first: u64, file_clusters: u64, room: UsesRoom) -> Self {
        let len = file_clusters.saturating_sub(first);
        let form = if len <= room.clusters {
            Form::Cells(cells(len))
        } else {
            Form::List(Vec::with_capacity(room.listed))
        };
        Self { first, end: u64::MAX, room, form, behind: None }
    }

    /// Where the stretch begins, and where it ends now.
    pub(super) fn stretch(&self) -> (u64, u64) {
        (self.first, self.end)
    }

    /// Counts the uses of a cluster of the file.
    pub(super) fn add(&mut self, cluster: u64, users: Users) {
        if cluster < self.first {
            return;
        }
        if cluster >= self.end {
            self.leave(cluster);
            return;
        }
        match &mut self.form {
            Form::Cells(cells) => {
                let cell = &mut cells[place(cluster - self.first)];
                *cell = cell.and(users);
            }
            Form::List(list) => {
                list.push((cluster, users));
                if list.len() >= self.room.listed {
                    self.make_room();
                }
            }
        }
    }

    /// Puts a full list in order; if that is not enough, the stretch must be shorter.
    fn make_room(&mut self) {
        let Form::List(list) = &mut self.form else { return };
        put_together(list);
        let Some((middle, _)) = list.get(self.room.listed / 2) else { return };
        self.end = (*middle).max(self.first + self.room.clusters);
        let len = list.partition_point(|(cluster, _)| *cluster < self.end);
        let next = list.get(len).map(|(cluster, _)| *cluster);
        list.truncate(len);
        if self.end - self.first <= self.room.clusters {
            let mut cells = cells(self.end - self.first);
            for (cluster, users) in list {
                cells[place(*cluster - self.first)] = (*users).into();
            }
            self.form = Form::Cells(cells);
        }
        if let Some(next) = next {
            self.leave(next);
        }
    }

    /// Leaves a cluster to another stretch.
    fn leave(&mut self, cluster: u64) {
        self.behind = Some(self.behind.map_or(cluster, |behind| behind.min(cluster)));
    }

    /// Ends the counting: what was counted, and the first cluster that is left for another stretch, if one is.
    pub(super) fn finish(mut self) -> (Counted, Option<u64>) {
        if let Form::List(list) = &mut self.form {
            put_together(list);
        }
        (Counted { first: self.first, form: self.form }, self.behind)
    }
}

/// What was counted of a stretch.
pub(super) struct Counted {
    first: u64,
    form: Form,
}

impl Counted {
    /// Every cluster that is used, in order.
    pub(super) fn each(&self) -> impl Iterator<Item = (u64, Users)> {
        let (cells, list) = match &self.form {
            Form::Cells(cells) => (&cells[..], &[][..]),
            Form::List(list) => (&[][..], &list[..]),
        };
        let in_cells = (self.first..).zip(cells).filter(|(_, cell)| **cell != Cell::default());
        in_cells.map(|(cluster, cell)| (cluster, (*cell).into())).chain(list.iter().copied())
    }
}

/// Puts a list in order, each cluster once.
fn put_together(list: &mut Vec<(u64, Users)>) {
    list.sort_unstable_by_key(|(cluster, _)| *cluster);
    list.dedup_by(|later, earlier| {
        let is_same = later.0 == earlier.0;
        if is_same {
            earlier.1 = earlier.1.and(later.1);
        }
        is_same
    });
}

fn cells(len: u64) -> Vec<Cell> {
    vec![Cell::default(); place(len)]
}

fn place(index: u64) -> usize {
    usize::try_from(index).expect("at most some Mi clusters have cells")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Stretch after stretch until all are counted, and how many these are.
    fn counted(uses: &[(u64, Users)], file_clusters: u64, room: UsesRoom) -> (BTreeMap<u64, Users>, u32) {
        let (mut all, mut stretches) = (BTreeMap::new(), 0);
        let mut next = Some(0);
        while let Some(first) = next {
            let mut stretch = Uses::of(first, file_clusters, room);
            uses.iter().for_each(|(cluster, users)| stretch.add(*cluster, *users));
            let (counted, rest) = stretch.finish();
            let mut last = None;
            for (cluster, users) in counted.each() {
                assert!(last.replace(cluster).is_none_or(|last| last < cluster), "in order");
                assert!(all.insert(cluster, users).is_none(), "{cluster} is counted once");
            }
            stretches += 1;
            next = rest;
            assert!(next.is_none_or(|next| next > first), "each stretch gets on");
        }
        (all, stretches)
    }

    #[test]
    fn all_uses_are_counted_whatever_has_room() {
        let mut state = 11_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for (file_clusters, clusters) in [(1 << 20, 1 << 20), (1 << 20, 100), (1 << 40, 100), (1 << 40, 5000)]
        {
            let room = UsesRoom { clusters, listed: 64 };
            for spread in [50, 2000, 1 << 19] {
                let uses: Vec<_> = (0..3000)
                    .map(|_| {
                        let count = u32::try_from(random(3) + 1).unwrap();
                        (random(spread), Users::new(count, random(10) == 0))
                    })
                    .collect();
                let mut expected = BTreeMap::new();
                for (cluster, users) in &uses {
                    let all = expected.entry(*cluster).or_insert((0, false));
                    *all = (all.0 + users.count(), all.1 | users.said_alone());
                }
                let (found, stretches) = counted(&uses, file_clusters, room);
                let found: BTreeMap<_, _> = found
                    .iter()
                    .map(|(cluster, users)| (*cluster, (users.count(), users.said_alone())))
                    .collect();
                assert_eq!(found, expected, "{room:?}, within {spread}");
                assert!(stretches <= 2 + 3000 / 32, "{room:?}, within {spread}: {stretches}");
            }
        }
    }

    #[test]
    fn a_stretch_ends_early_only_where_it_must() {
        let once = Users::new(1, false);
        let room = UsesRoom { clusters: 1000, listed: 64 };
        let dense: Vec<_> = (0..4000).map(|cluster| (cluster, once)).collect();
        assert_eq!(counted(&dense, 1 << 40, room).1, 4);
        let apart: Vec<_> = (0..640).map(|number| (number << 20, once)).collect();
        assert_eq!(counted(&apart, 1 << 40, room).1, 20);
        let one: Vec<_> = (0..100_000).map(|_| (7, once)).collect();
        let (found, stretches) = counted(&one, 1 << 40, room);
        assert_eq!((found[&7].count(), stretches), (100_000, 1));
    }

    #[test]
    fn more_uses_than_can_be_counted_are_many() {
        let many = Users::new(u32::MAX, true);
        assert_eq!((many.count(), many.said_alone()), (Users::MANY, true));
        assert_eq!(many.and(Users::new(7, false)), many);
        for (uses, expected) in [(32_766, 32_766), (32_767, Users::MANY), (1 << 20, Users::MANY)] {
            let uses: Vec<_> = (0..uses).map(|_| (5, Users::new(1, false))).collect();
            let room = UsesRoom { clusters: 1000, listed: 64 };
            assert_eq!(counted(&uses, 10, room).0[&5].count(), expected);
        }
    }
}
